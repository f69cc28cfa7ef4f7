"""``pi0 inspect``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pi0_control.train.dataset import Dataset

TABLE_WIDTH = 110  # a table is never cut off, not even in a pipe of 80 columns
TASKS_SHOWN = 20
PROBLEMS_SHOWN = 30


def inspect(dataset: tyro.conf.Positional[Path], out: Path | None = None) -> None:
    """Show what a dataset holds and what looks wrong in it; draw a contact sheet of its images.

    Args:
        dataset: folder of a LeRobotDataset v2.0, v2.1 or v3.0.
        out: PNG file of the contact sheet; outputs/inspect/NAME.png if not given.
    """
    from PIL import Image

    from pi0_control.train import layout
    from pi0_control.train.contact_sheet import contact_sheet
    from pi0_control.train.dataset import Dataset
    from pi0_control.train.inspection import find_camera_problems, find_problems, glimpse

    data, info = Dataset.open(dataset, require_finite=False), layout.read_info(dataset)
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    name = dataset.resolve().name
    for line in _summary(data, info):
        console.print(line)
    console.print(_feature_table(data), _task_table(data))
    for feature in (layout.STATE, layout.ACTION):
        console.print(_dimension_table(data, feature))
    glimpses = glimpse(data)
    problems = find_problems(data) + find_camera_problems(glimpses)
    for problem in problems[:PROBLEMS_SHOWN]:
        console.print(f"[yellow]! {escape(problem)}[/yellow]")
    if len(problems) > PROBLEMS_SHOWN:
        console.print(f"[yellow]! and {len(problems) - PROBLEMS_SHOWN} more[/yellow]")
    if not problems:
        console.print("[green]Nothing suspicious.[/green]")
    path = out or Path("outputs/inspect") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{name}: {len(data.episodes)} episodes, {len(data)} frames at {data.fps} fps"
    Image.fromarray(contact_sheet(glimpses, data.fps, title)).save(path, "PNG")
    print(f"Contact sheet: {path}")


def _summary(data: "Dataset", info: dict[str, Any]) -> Iterator[str]:
    from pi0_control.train.inspection import step_times

    lengths = np.array([episode.length for episode in data.episodes])
    robot = escape(str(info.get("robot_type") or "not named"))
    yield f"[bold]{escape(str(data.roots[0]))}[/bold]   LeRobotDataset {info['codebase_version']}   robot {robot}"
    duration = f"{len(data) / data.fps / 60:.1f} min at {data.fps} fps"
    yield f"{len(lengths)} episodes   {len(data)} frames   {duration}   {len(data.tasks)} tasks"
    spread = f"{lengths.min()} to {lengths.max()} frames, median {np.median(lengths):.0f}"
    yield f"lengths: {spread} ({lengths.min() / data.fps:.2f} to {lengths.max() / data.fps:.2f} s)"
    steps = step_times(data)
    if len(steps):
        yield f"rate as recorded: {1 / steps.mean():.2f} Hz, steps of {steps.min():.4f} to {steps.max():.4f} s"


def _feature_table(data: "Dataset") -> Table:
    table = Table("feature", "type", "shape", "names", title="Features", title_justify="left")
    for name, feature in data.features.items():
        names = feature.get("names")
        shape = " x ".join(map(str, feature["shape"]))
        table.add_row(escape(name), feature["dtype"], shape, escape(str(names)) if names else "")
    return table


def _task_table(data: "Dataset") -> Table:
    table = Table("task", "episodes", "frames", title="Tasks", title_justify="left")
    episodes = Counter(data.prompt(episode.start) for episode in data.episodes)
    frames = np.bincount(data.task_index, minlength=len(data.tasks))
    for task, count in episodes.most_common(TASKS_SHOWN):
        table.add_row(escape(task), str(count), str(frames[data.tasks.index(task)]))
    if len(episodes) > TASKS_SHOWN:
        table.add_row(f"... {len(episodes) - TASKS_SHOWN} more", "", "")
    return table


def _dimension_table(data: "Dataset", feature: str) -> Table:
    from pi0_control.train.inspection import dimensions_of

    dimensions = dimensions_of(data, feature)
    table = Table("", *dimensions[0].values, "remarks", title=feature, title_justify="left")
    for dimension in dimensions:
        figures = [f"{value:.4g}" for value in dimension.values.values()]
        table.add_row(escape(dimension.name), *figures, f"[yellow]{escape('; '.join(dimension.remarks))}[/yellow]")
    for column in table.columns[1:-1]:
        column.justify = "right"
    return table
