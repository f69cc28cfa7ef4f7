from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sims.episode import EpisodeResult, Setting
from sims.evaluate import RunResult, SwapCount, compare
from sims.report import comparison_table, success_legend, success_table, suite_table, swap_lines

CHUNKS = [{"preprocess": 1.0, "prefix": 2.0, "denoise": 3.0}]


def run(policy: str, successes: int, of: int = 4, chunks=CHUNKS, **changes) -> RunResult:
    episodes = tuple(
        EpisodeResult(seed, "lift it", seed < successes, False, 40, 2.0, 0.5, chunks_ms=chunks) for seed in range(of)
    )
    return RunResult(Setting(policy, **changes), episodes, wall_s=1.0)


def cells(table) -> list[list[str]]:
    return np.array([list(column.cells) for column in table.columns]).T.tolist()


def test_success_table_has_a_row_per_run() -> None:
    table = success_table([run("mini", 4), run("mini", 1, task="Lift")])
    reach, lift, average = cells(table)
    assert average[:2] == ["average", "62.5%"]
    assert len(cells(success_table([run("mini", 4)]))) == 1
    assert reach == ["Reach", "100% (4/4)", "51..100", "0%", "2.0 s", "6.0 (6.0)", "1.0+2.0+3.0", "8.0x"]
    assert lift[:2] == ["Lift", "25% (1/4)"]


@pytest.mark.parametrize(
    ("chunks", "figures", "names"),
    [
        (CHUNKS, "1.0+2.0+3.0", "preprocess+prefix+denoise"),
        ([{"all": 4.0, "remote": 1.0}], "4.0+1.0", "all+remote"),
        ([{"all": 4.0}, {"remote": 1.0}], "4.0+1.0", "all+remote"),
        ([], "-", "its stages"),
    ],
)
def test_success_table_has_the_stages_that_the_policy_tells(chunks, figures, names) -> None:
    result = run("ws://robot:8000", 4, chunks=chunks)
    (row,) = cells(success_table([result]))
    assert row[-2] == figures
    assert f"of which {names}, medians" in success_legend([result])


def test_suite_table_has_tasks_by_suites_and_their_average() -> None:
    results = [
        run("mini", successes, task=task, suite=suite)
        for suite, counts in {"none": (4, 3), "light": (2, 1)}.items()
        for task, successes in zip(("Reach", "Lift"), counts, strict=True)
    ]
    table = suite_table(results)
    assert [column.header for column in table.columns][1:] == ["none", "light"]
    assert cells(table) == [["Reach", "100", "50"], ["Lift", "75", "25"], ["average", "87.5", "37.5"]]


def test_comparison_table_names_the_suite_where_scenes_were_perturbed() -> None:
    plain = comparison_table(compare([run("mini", 4), run("expert", 3)]))
    assert cells(plain) == [["expert", "Reach", "100%", "75%", "3", "1", "0", "0", "1"]]
    far = compare([run("mini", 0, of=40, suite="all"), run("expert", 40, of=40, suite="all")])
    assert cells(comparison_table(far)) == [["expert", "all", "Reach", "0%", "100%", "0", "0", "40", "0", "<0.0001"]]


def test_nothing_is_cut_off_in_100_columns() -> None:
    suites = ("none", "camera", "light", "colour", "size", "distractors", "wording", "start", "all")
    tasks = ("Reach", "Lift", "PickPlace", "Stack")
    results = [run("mini", 100, of=100, task=task, suite=suite) for suite in suites for task in tasks]
    others = [run("outputs/an_older_policy", 0, of=100, task=task, suite="distractors") for task in tasks]
    console = Console(width=100, record=True, file=StringIO())
    for table in (
        suite_table(results),
        success_table(results),
        comparison_table(compare(results + others)),
    ):
        console.print(table)
    assert "…" not in console.export_text()


def test_a_swap_is_told_in_one_line() -> None:
    (line,) = swap_lines([SwapCount("none", "Lift", 97, 100, (0.915, 0.99))])
    assert line == "Lift: with either colour the block asked for was taken in 97 of 100 scenes, 97% (95 %: 92..99)."
