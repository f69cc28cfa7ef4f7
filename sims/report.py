"""What an evaluation prints: a table of success and speed per task, and how to read it."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from sims.evaluate import TaskResult

STAGES = ("preprocess", "prefix", "denoise")
COLUMNS = ("success", "95 %", "wrong", "length", "chunk ms", "in stages", "speed")
LEGEND = (
    "95 %: Wilson interval. wrong: another block was taken. length: mean, simulated.\n"
    "chunk: one inference, median (p95), of which preprocess+prefix+denoise, medians.\n"
    "speed: simulated against real time."
)


def success_table(results: Sequence[TaskResult], title: str) -> Table:
    """One row per task: success with its 95 % Wilson interval, length, time per chunk and simulated speed."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    table.add_column("task", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_row(result.task, result.summary()))
    return table


def _row(task: str, figures: dict[str, Any]) -> tuple[str, ...]:
    low, high = figures["wilson_95"]
    chunk = figures["chunk_s"]
    return (
        task,
        f"{figures['success_rate']:.0%} ({figures['successes']}/{figures['episodes']})",
        f"{100 * low:.0f}..{100 * high:.0f}",
        f"{figures['wrong_object_rate']:.0%}",
        f"{figures['mean_episode_s']:.1f} s",
        f"{_ms(chunk['total']['median'])} ({_ms(chunk['total']['p95'])})" if chunk else "-",
        "+".join(_ms(chunk[stage]["median"]) for stage in STAGES) if chunk else "-",
        f"{figures['real_time_factor']:.1f}x",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
