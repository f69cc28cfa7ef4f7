"""Demonstrations by the scripted expert, and random scenes for learning what the words mean.

A demonstration alone teaches little about the instruction, because the arm's own motion gives the target away. So
goals change in mid-motion, the arm is pushed about while the labels stay the expert's, and the random
scenes of :data:`SCENES` show many arrangements with every block's position known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pi0_control.errors import ConfigError
from sims.episode import Actor
from sims.expert import Expert
from sims.tabletop_env import TabletopEnv
from sims.tasks import TASKS, Goal, Task, get_tasks
from sims.variation import NONE, draw_aspects

SCENES = "scenes"
"""What to ask :func:`record` for to get random scenes instead of a task."""
SCENES_PROMPT = "look at the blocks"
SCENES_PER_EPISODE = 100
SCENE_REGION_M = ((0.26, -0.36, 0.02), (0.54, 0.24, 0.34))
"""Corners (x, y, z) of the box where the tool is in a random scene."""
GOALS_PER_SCENE = 3


_Aspects = Callable[[np.random.Generator], frozenset[str]]  # draws what varies in a scene


class EpisodeWriter(Protocol):
    """Where episodes go; ``pi0_control.train`` writes them to disk."""

    num_episodes: int

    @property
    def episode_length(self) -> int:
        """Frames of the episode under way."""

    def add_frame(
        self, images: Mapping[str, NDArray[np.uint8]], state: ArrayLike, action: ArrayLike, objects: ArrayLike
    ) -> None:
        """Append a frame to the episode under way."""

    def save_episode(self, prompt: str, targets: Sequence[int] = ()) -> int:
        """End the episode under way; ``targets`` are the indices of the objects the prompt names, in its order."""

    def discard_episode(self) -> None:
        """Forget the episode under way."""


@dataclass(frozen=True)
class Disturbance:
    """How the arm is pushed about while demonstrating; labels stay clean (DART, Laskey et al. 2017).

    Attributes:
        push_rad: spread of the joint offsets while a push lasts [rad].
        start, stop: chance per control step that a push begins or ends.
        memory: how much of the last offset the next one keeps.
        new_goal: chance per control step that the instruction changes while the gripper holds nothing.
    """

    push_rad: float = 0.03
    start: float = 0.06
    stop: float = 0.15
    memory: float = 0.7
    new_goal: float = 0.01


def record(
    what: Sequence[str],
    episodes: int,
    seed: int,
    writer: EpisodeWriter,
    disturbance: Disturbance | None = None,
    perturb: str = NONE,
    make_pilot: Callable[[TabletopEnv], Actor] | None = None,
    on_episode: Callable[[int], None] = lambda count: None,
) -> None:
    """Record until ``writer`` holds ``episodes`` episodes, each of a task drawn from ``what``.

    Every scene is drawn from ``seed`` and the number of episodes so far, in a stream that no environment seeded with a
    plain integer shares; a recording that was interrupted goes on with the next scene.

    Args:
        what: names of tasks, ``all``, or :data:`SCENES` alone.
        perturb: one of :data:`sims.variation.SUITES`; each of its aspects varies in half of the scenes.
        make_pilot: makes who acts first, for a random while that is not recorded; the expert takes over from there
            (as in DAgger, Ross et al. 2011: it corrects in states that the pilot itself reaches).
        on_episode: called with the number of episodes so far.

    Raises:
        ConfigError: an unknown task or suite, or scenes mixed with tasks.
    """
    tasks, aspects = recorded_tasks(what), partial(draw_aspects, perturb)
    env = TabletopEnv()
    pilot = make_pilot(env) if make_pilot else None
    try:
        attempt = 0
        while writer.num_episodes < episodes:
            before = writer.num_episodes
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(before, attempt)))
            if not tasks:
                _record_scenes(env, rng, writer, aspects)
            else:
                _record_goals(env, tasks, rng, writer, episodes, disturbance or Disturbance(), aspects, pilot)
            attempt = attempt + 1 if writer.num_episodes == before else 0
            on_episode(writer.num_episodes)
    finally:
        env.close()


def recorded_tasks(what: Sequence[str]) -> list[Task]:
    """The tasks that ``what`` asks for: names, ``all``, or none for :data:`SCENES`.

    Raises:
        ConfigError: an unknown task, or scenes mixed with tasks.
    """
    if SCENES in what and len(what) > 1:
        raise ConfigError(f"{SCENES!r} is recorded alone, got {', '.join(what)}.")
    return [] if SCENES in what else get_tasks(what)


def grounding_wordings() -> tuple[str, ...]:
    """Every wording of every task with ``{object}`` for the block to find and ``{other}`` for a second one."""
    return tuple(
        wording.replace("{block}", "{object}").replace("{onto}", "{other}")
        for task in TASKS.values()
        for wording in (*task.wordings, *task.paraphrases)
    )


def _record_scenes(env: TabletopEnv, rng: np.random.Generator, writer: EpisodeWriter, aspects: _Aspects) -> None:
    """One episode of unrelated frames: random blocks, tool pose and gripper opening each."""
    world = env.world
    env.goal = Goal(world.blocks[0], None, SCENES_PROMPT)
    for _ in range(SCENES_PER_EPISODE):
        world.reset(rng)
        world.vary(aspects(rng), rng)
        world.place_tool(rng.uniform(*SCENE_REGION_M), rng.uniform(-0.5, 0.5), rng)
        if rng.random() < 0.2:  # as if carried
            world.place_block(str(rng.choice(world.blocks)), world.tool_position)
        seen = env.observe()
        writer.add_frame(seen["images"], seen["state"], seen["state"], world.block_positions())
    writer.save_episode(SCENES_PROMPT)


def _record_goals(
    env: TabletopEnv,
    tasks: Sequence[Task],
    rng: np.random.Generator,
    writer: EpisodeWriter,
    episodes: int,
    disturbance: Disturbance,
    aspects: _Aspects,
    pilot: Actor | None,
) -> None:
    """One scene with up to :data:`GOALS_PER_SCENE` goals one after another, each an episode of its own."""
    env.world.reset(rng)
    varied = aspects(rng)
    env.world.vary(varied, rng)
    for _ in range(GOALS_PER_SCENE):
        env.task = task = tasks[int(rng.integers(len(tasks)))]
        wordings = (*task.wordings, *task.paraphrases) if "wording" in varied else task.wordings
        env.goal = task.sample_goal(rng, env.world.blocks, wordings)
        if pilot is not None:
            _let_act(pilot, env, rng)
        outcome = _demonstrate(env, rng, writer, disturbance)
        if outcome == "failed" or writer.episode_length < 2:
            writer.discard_episode()
            return
        writer.save_episode(env.goal.prompt, [env.world.blocks.index(block) for block in env.goal.named_blocks])
        if writer.num_episodes == episodes or (outcome == "done" and env.task.name != "Reach"):
            return  # enough, or the scene is no longer a fresh one


def _let_act(pilot: Actor, env: TabletopEnv, rng: np.random.Generator) -> None:
    """Let the pilot work at the goal for a random while."""
    pilot.reset(int(rng.integers(2**31)))
    for _ in range(int(rng.integers(env.task.max_episode_steps // 2))):
        env.world.drive(pilot.get_action(env.observe()))


def _demonstrate(env: TabletopEnv, rng: np.random.Generator, writer: EpisodeWriter, disturbance: Disturbance) -> str:
    """Act until the goal is reached (``done``), is replaced (``replaced``) or time is up (``failed``)."""
    world, goal, task = env.world, env.goal, env.task
    assert goal is not None
    expert, offset, pushed, held = Expert(world, task), np.zeros(len(env.robot.joints)), False, 0
    for _ in range(task.max_episode_steps):
        seen, action = env.observe(), expert.act(goal)
        writer.add_frame(seen["images"], seen["state"], action, world.block_positions())
        pushed = rng.random() > disturbance.stop if pushed else rng.random() < disturbance.start
        fresh = rng.normal(0, disturbance.push_rad, len(offset)) * np.sqrt(1 - disturbance.memory**2) * pushed
        offset = disturbance.memory * offset + fresh
        offset[-1] = 0  # the gripper is never pushed
        world.drive(action + offset)
        held = held + 1 if task.is_done(world, goal) else 0
        if held >= task.hold_steps + 2:
            return "done"
        if rng.random() < disturbance.new_goal and not any(map(world.is_grasped, world.blocks)):
            return "replaced"
    return "failed"
