"""``pi0 record``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pi0_control.cli.terminal import check_counts, progress_bars
from pi0_control.errors import ConfigError

if TYPE_CHECKING:
    from sims.episode import Actor
    from sims.tabletop_env import TabletopEnv


def record(
    task: tuple[str, ...] = ("all",),
    episodes: int = 100,
    seed: int = 0,
    *,
    out: Path,
    perturb: str = "none",
    pilot: str | None = None,
    mask_cameras: tuple[str, ...] = (),
) -> None:
    """Record demonstrations of the scripted expert as a LeRobotDataset v3.0; goes on where an earlier run stopped.

    Args:
        task: one or more of Reach, Lift, PickPlace, Stack, or all; scenes records random scenes instead, each with
            the place of every block, to learn the words from.
        episodes: episodes the dataset shall hold in the end.
        seed: from which all scenes are drawn.
        out: folder of the dataset.
        perturb: what varies in half of the scenes: camera, light, colour, size, distractors, wording, start, or all.
        pilot: a policy that acts first for a random while that is not recorded; the expert takes over from the states
            it reaches, so that the policy learns to correct itself.
        mask_cameras: cameras that the pilot gets no image of, so that it makes the mistakes of a robot that lost them.
    """
    from pi0_control.robot import RobotSpec
    from pi0_control.train.writer import DatasetWriter
    from sims import record as recorder
    from sims.scene import BLOCK_COLOURS
    from sims.variation import aspects_of

    check_counts(episodes, seed)
    recorder.recorded_tasks(task)  # refuses a wrong name before the folder is made
    aspects_of(perturb)
    if mask_cameras and not pilot:
        raise ConfigError("Only a pilot can lose cameras; give --pilot with --mask-cameras.")
    make_pilot = _pilot_factory(pilot, mask_cameras) if pilot else None
    with DatasetWriter(out, RobotSpec.from_yaml("arm6"), tuple(BLOCK_COLOURS)) as writer, progress_bars() as progress:
        bar = progress.add_task(", ".join(task), total=episodes, completed=writer.num_episodes)
        recorder.record(
            task,
            episodes,
            seed,
            writer,
            perturb=perturb,
            make_pilot=make_pilot,
            on_episode=lambda count: progress.update(bar, completed=count),
        )
    print(f"{out}: {writer.num_episodes} episodes, {writer.num_frames} frames.")


def _pilot_factory(policy: str, masked: tuple[str, ...]) -> Callable[["TabletopEnv"], "Actor"]:
    """How to make the agent that acts first in an environment."""
    from pi0_control.control.agent import Pi0Agent
    from pi0_control.policy import Pi0Policy
    from pi0_control.robot import RobotSpec
    from sims.controls import find_cameras, without_cameras

    robot = RobotSpec.from_yaml("arm6")
    loaded = without_cameras(Pi0Policy.from_pretrained(policy, robot=robot), find_cameras(masked, robot.cameras))
    return lambda env: Pi0Agent(loaded)
