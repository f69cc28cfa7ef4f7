"""What an evaluation prints: tables of success and speed, per suite and against others, and how to read them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from sims.evaluate import Comparison, RunResult, SwapCount
from sims.variation import NONE

COLUMNS = ("success", "95 %", "wrong", "length", "chunk ms", "in stages", "speed")
COMPARISON_COLUMNS = ("1", "2", "both", "only 1", "only 2", "neither", "p")
COMPARISON_LEGEND = (
    "Success of the two; scenes that both solved, only one of them, neither.\np: exact McNemar test, two-sided."
)
PLAY_LEGEND = (
    "late: control steps from an observation until its chunk is there. seam: how far apart two chunks\n"
    "are where one takes over, the worst of all and the 95th percentile [rad]. jerk: of the commands,\n"
    "mean of the episodes [rad/s³]. held: time per episode without an action to play, mean."
)
SHUFFLED_LEGEND = "Words that are heeded name the goal by chance: success near 1/3 (Stack 1/6) of who masters the task."


def success_table(results: Sequence[RunResult]) -> Table:
    """One row per task: success with its 95 % Wilson interval, length, time per chunk and simulated speed.

    Several tasks are followed by the average of their success.
    """
    table = _table("task", *COLUMNS)
    for result in results:
        table.add_row(*_success_row(result))
    if len(results) > 1:
        table.add_section()
        table.add_row("average", f"{sum(map(_rate, results)) / len(results):.1%}")
    return table


def success_legend(results: Sequence[RunResult]) -> str:
    """How to read the :func:`success_table`; names the stages in the order of its figures."""
    stages = dict.fromkeys(stage for result in results for stage in _stages(result.summary()["chunk_s"]))
    return (
        "95 %: Wilson interval. wrong: another block was taken. length: mean, simulated.\n"
        f"chunk: one inference, median (p95), of which {'+'.join(stages) or 'its stages'}, medians; not measured\n"
        "where --parallel infers in batches.\n"
        "speed: simulated against real time, of all episodes together."
    )


def suite_table(results: Sequence[RunResult]) -> Table:
    """Success [%] per task (rows) and suite (columns) of one policy, and the average of the tasks."""
    rates = {(result.setting.task, result.setting.suite): _rate(result) for result in results}
    tasks, suites = (list(dict.fromkeys(key[index] for key in rates)) for index in (0, 1))
    table = _table("success in %", *suites)
    for task in tasks:
        table.add_row(task, *(f"{100 * rates[task, suite]:.0f}" if (task, suite) in rates else "-" for suite in suites))
    table.add_section()
    columns = ([rate for (_, measured), rate in rates.items() if measured == suite] for suite in suites)
    table.add_row("average", *(f"{100 * sum(column) / len(column):.1f}" for column in columns))
    return table


def play_table(results: Sequence[RunResult]) -> Table:
    """One row per task, suite, strategy and latency: success and smoothness."""
    has_suites = any(result.setting.is_perturbed for result in results)
    headings = ("suite",) if has_suites else ()
    table = _table("task", *headings, "strategy", "late", "success", "95 %", "worst seam", "seam p95", "jerk", "held")
    for column in table.columns[: len(headings) + 2]:
        column.justify = "left"
    for result in results:
        setting, figures = result.setting, result.summary()
        smooth, (low, high) = figures["smoothness"], figures["wilson_95"]
        seams = (smooth["worst_seam_rad"], smooth["p95_seam_rad"])
        table.add_row(
            *(setting.task, *((setting.suite,) if has_suites else ()), setting.play.strategy),
            *(f"{setting.play.latency_steps}", f"{_rate(result):.0%}", f"{100 * low:.0f}..{100 * high:.0f}"),
            *("-" if seam is None else f"{seam:.3f}" for seam in seams),
            *(f"{smooth['jerk_rad_s3']:.0f}", f"{smooth['hold_s']:.2f} s"),
        )
    return table


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per policy compared with, suite and task."""
    has_suites = any(row.suite != NONE for row in comparisons)
    headings = ("suite",) if has_suites else ()
    table = _table("against", *headings, "task", *COMPARISON_COLUMNS)
    for column in table.columns[: len(headings) + 2]:
        column.justify = "left"
    for row in comparisons:
        counts = (row.both, row.only_policy, row.only_against, row.neither)
        rates = (f"{(row.both + only) / sum(counts):.0%}" for only in (row.only_policy, row.only_against))
        p_value = f"{row.p_value:.2g}" if row.p_value >= 1e-4 else "<0.0001"
        table.add_row(row.against, *((row.suite,) if has_suites else ()), row.task, *rates, *map(str, counts), p_value)
    return table


def swap_lines(counts: Sequence[SwapCount]) -> Iterator[str]:
    """A sentence per run: how often the block asked for was taken whichever colour was named."""
    for count in counts:
        suite = "" if count.suite == NONE else f" ({count.suite})"
        low, high = count.wilson_95
        yield (
            f"{count.task}{suite}: with either colour the block asked for was taken in {count.obeyed} of "
            f"{count.scenes} scenes, {count.obeyed / count.scenes:.0%} (95 %: {100 * low:.0f}..{100 * high:.0f})."
        )


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _rate(result: RunResult) -> float:
    return result.successes / len(result.episodes)


def _success_row(result: RunResult) -> tuple[str, ...]:
    figures = result.summary()
    low, high = figures["wilson_95"]
    chunk = figures["chunk_s"]
    return (
        result.setting.task,
        f"{figures['success_rate']:.0%} ({figures['successes']}/{figures['episodes']})",
        f"{100 * low:.0f}..{100 * high:.0f}",
        f"{figures['wrong_object_rate']:.0%}",
        f"{figures['mean_episode_s']:.1f} s",
        f"{_ms(chunk['total']['median'])} ({_ms(chunk['total']['p95'])})" if chunk else "-",
        "+".join(_ms(chunk[stage]["median"]) for stage in _stages(chunk)) or "-",
        f"{figures['real_time_factor']:.1f}x",
    )


def _stages(chunk: Mapping[str, Any]) -> list[str]:
    """The stages of an inference, which the policy names, from the figures of a run."""
    return [stage for stage in chunk if stage != "total"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
