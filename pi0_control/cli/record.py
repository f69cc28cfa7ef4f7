"""``pi0 record``."""

from pathlib import Path

from pi0_control.cli.terminal import check_counts, progress_bars


def record(
    task: tuple[str, ...] = ("all",),
    episodes: int = 100,
    seed: int = 0,
    *,
    out: Path,
) -> None:
    """Record demonstrations of the scripted expert as a LeRobotDataset v3.0; goes on where an earlier run stopped.

    Args:
        task: one or more of Reach, Lift, PickPlace, Stack, or all; scenes records random scenes instead, each with
            the place of every block, to learn the words from.
        episodes: episodes the dataset shall hold in the end.
        seed: from which all scenes are drawn.
        out: folder of the dataset.
    """
    from pi0_control.robot import RobotSpec
    from pi0_control.train.writer import DatasetWriter
    from sims import record as recorder
    from sims.scene import BLOCK_COLOURS

    check_counts(episodes, seed)
    recorder.recorded_tasks(task)  # refuses a wrong name before the folder is made
    with DatasetWriter(out, RobotSpec.from_yaml("arm6"), tuple(BLOCK_COLOURS)) as writer, progress_bars() as progress:
        bar = progress.add_task(", ".join(task), total=episodes, completed=writer.num_episodes)
        recorder.record(task, episodes, seed, writer, on_episode=lambda count: progress.update(bar, completed=count))
    print(f"{out}: {writer.num_episodes} episodes, {writer.num_frames} frames.")
