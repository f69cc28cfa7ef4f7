"""The four tasks: how each is worded, how long it may take, and when it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pi0_control.errors import ConfigError
from sims.world import TabletopWorld

LIFT_HEIGHT_M = 0.10


@dataclass(frozen=True)
class Goal:
    """What one episode asks for: ``block`` is to be moved (``onto`` another one, for Stack), told as ``prompt``."""

    block: str
    onto: str | None
    prompt: str

    @property
    def named_blocks(self) -> tuple[str, ...]:
        """The blocks that the prompt names."""
        return (self.block,) if self.onto is None else (self.block, self.onto)


@dataclass(frozen=True)
class Task:
    """A kind of goal.

    Attributes:
        name: as in ``pi0_control/<name>-v0``.
        wordings: ways to say it, with ``{block}`` and ``{onto}`` for colours.
        paraphrases: further ways, to be learned from.
        unseen_wordings: ways that no recording uses, to be tested with.
        max_episode_steps: control periods before the episode is cut off.
        hold_steps: control periods in a row that ``is_done`` must hold to count as success.
        is_done: whether the goal holds in the world now.
    """

    name: str
    wordings: tuple[str, ...]
    paraphrases: tuple[str, ...]
    unseen_wordings: tuple[str, ...]
    max_episode_steps: int
    hold_steps: int
    is_done: Callable[[TabletopWorld, Goal], bool]

    @property
    def env_id(self) -> str:
        """Name under which Gymnasium knows the task."""
        return f"pi0_control/{self.name}-v0"

    def sample_goal(
        self, rng: np.random.Generator, blocks: tuple[str, ...], wordings: Sequence[str] | None = None
    ) -> Goal:
        """A random goal among the ``blocks`` in a random one of ``wordings``, by default the task's plain ones."""
        block, other = rng.choice(blocks, 2, replace=False).tolist()
        return self.goal(block, other, str(rng.choice(wordings or self.wordings)))

    def goal(self, block: str, onto: str, wording: str) -> Goal:
        """The goal that ``wording`` names with these colours; ``onto`` matters only where the wording has it."""
        stacks = "{onto}" in wording
        return Goal(block, onto if stacks else None, wording.format(block=block, onto=onto))


def _is_touched(world: TabletopWorld, goal: Goal) -> bool:
    return goal.block in world.touched_blocks()


def _is_lifted(world: TabletopWorld, goal: Goal) -> bool:
    return world.is_grasped(goal.block) and bool(world.block_position(goal.block)[2] > LIFT_HEIGHT_M)


def _is_in_tray(world: TabletopWorld, goal: Goal) -> bool:
    return world.is_in_tray(goal.block) and _is_released(world, goal.block)


def _is_stacked(world: TabletopWorld, goal: Goal) -> bool:
    assert goal.onto is not None, "a Stack goal always names a second block"
    offset = world.block_position(goal.block) - world.block_position(goal.onto)
    half = world.block_half(goal.block)
    level = abs(offset[2] - half - world.block_half(goal.onto)) < 0.3 * half
    return bool(level and world.is_resting_on(goal.block, goal.onto) and _is_released(world, goal.block))


def _is_released(world: TabletopWorld, block: str) -> bool:
    return block not in world.touched_blocks() and world.block_speed(block) < 0.05


TASKS = {
    task.name: task
    for task in (
        Task(
            "Reach",
            (
                "touch the {block} block",
                "tap the {block} cube",
                "reach for the {block} block",
                "move to the {block} cube",
            ),
            (
                "touch the {block} cube",
                "touch the {block} brick",
                "tap the {block} brick",
                "reach for the {block} cube",
                "reach the {block} block",
                "go to the {block} block",
                "please go to the {block} brick",
                "please touch the {block} block",
            ),
            (
                "tap the {block} block",
                "reach the {block} brick",
                "move to the {block} block",
                "please touch the {block} cube",
            ),
            max_episode_steps=120,
            hold_steps=1,
            is_done=_is_touched,
        ),
        Task(
            "Lift",
            ("pick up the {block} block", "lift the {block} cube", "grab the {block} block", "raise the {block} cube"),
            (
                "pick up the {block} cube",
                "pick the {block} brick up",
                "lift the {block} brick",
                "lift up the {block} block",
                "take the {block} block",
                "grab the {block} brick",
                "hold up the {block} cube",
                "please raise the {block} block",
            ),
            (
                "pick the {block} block up",
                "grab the {block} cube",
                "take the {block} brick",
                "please lift the {block} cube",
            ),
            max_episode_steps=200,
            hold_steps=5,
            is_done=_is_lifted,
        ),
        Task(
            "PickPlace",
            (
                "put the {block} block in the tray",
                "place the {block} cube into the tray",
                "drop the {block} block in the tray",
                "move the {block} cube to the tray",
            ),
            (
                "put the {block} cube into the tray",
                "put the {block} brick in the tray",
                "place the {block} block in the tray",
                "drop the {block} brick into the tray",
                "move the {block} block into the tray",
                "set the {block} brick in the tray",
                "please put the {block} cube in the tray",
                "please move the {block} brick to the tray",
            ),
            (
                "put the {block} block into the tray",
                "drop the {block} cube in the tray",
                "move the {block} brick into the tray",
                "please place the {block} block in the tray",
            ),
            max_episode_steps=300,
            hold_steps=5,
            is_done=_is_in_tray,
        ),
        Task(
            "Stack",
            (
                "stack the {block} block on the {onto} block",
                "put the {block} cube on the {onto} cube",
                "place the {block} block on top of the {onto} block",
                "set the {block} cube on the {onto} block",
            ),
            (
                "stack the {block} cube on the {onto} cube",
                "stack the {block} brick onto the {onto} block",
                "put the {block} block on the {onto} block",
                "put the {block} brick on top of the {onto} brick",
                "place the {block} cube on the {onto} one",
                "set the {block} block onto the {onto} cube",
                "please stack the {block} block on the {onto} one",
                "please put the {block} cube onto the {onto} block",
            ),
            (
                "stack the {block} cube onto the {onto} block",
                "put the {block} brick on the {onto} block",
                "place the {block} block on the {onto} cube",
                "please set the {block} cube on the {onto} one",
            ),
            max_episode_steps=300,
            hold_steps=5,
            is_done=_is_stacked,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"No task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def get_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names; every task where one of them is ``all``.

    Raises:
        ConfigError: an unknown name, or none at all.
    """
    if not names:
        raise ConfigError(f"No task was named; the tasks are {', '.join(TASKS)}, or all.")
    return list(TASKS.values()) if "all" in names else [get_task(name) for name in names]
