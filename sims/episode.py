"""One episode: what is played, who plays it, the loop, and what came of it."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pi0_control.control.chunking import Strategy
from pi0_control.robot import RobotSpec
from pi0_control.types import Command
from sims.expert import Expert
from sims.smoothness import Smoothness, SmoothnessMeter
from sims.tabletop_env import TabletopEnv
from sims.tasks import Goal
from sims.variation import NONE

EXPERT, RANDOM = "expert", "random"
ORIGINAL, SWAPPED, SHUFFLED = INSTRUCTIONS = ("original", "swapped", "shuffled")
CAMERAS = RobotSpec.from_yaml("arm6").cameras


@dataclass(frozen=True)
class Play:
    """How chunks are played.

    Attributes:
        strategy: as in :class:`pi0_control.control.ChunkingConfig`.
        latency_steps: the chunk inferred from an observation is there so many control steps later.
        execution_horizon: actions played of each chunk; the policy's recommendation if None.
        is_guarded: every action passes the safety layer.
    """

    strategy: Strategy = "sync"
    latency_steps: int = 0
    execution_horizon: int | None = None
    is_guarded: bool = False

    @property
    def words(self) -> str:
        """In words; empty where chunks are played one after the other without delay."""
        delay = f" {self.latency_steps} steps late" if self.latency_steps else ""
        return f"{self.strategy}{delay}" if delay or self.strategy != "sync" else ""


@dataclass(frozen=True)
class Setting:
    """What all episodes of one run have in common; episodes differ in their seed.

    Attributes:
        policy: :data:`EXPERT`, :data:`RANDOM` or the name of a learned policy.
        task: name of the task.
        suite: one of :data:`sims.variation.SUITES`.
        instruction: one of :data:`INSTRUCTIONS`; what they mean is told by :func:`sims.controls.instruct`.
        masked_cameras: cameras whose images the policy does not get.
        play: how the policy's chunks are played.
        render_mode: ``human`` opens MuJoCo's viewer.
    """

    policy: str
    task: str = "Reach"
    suite: str = NONE
    instruction: str = ORIGINAL
    masked_cameras: tuple[str, ...] = ()
    play: Play = Play()
    render_mode: str | None = None

    @property
    def is_scripted(self) -> bool:
        """Whether the actor knows the world, and so needs neither images nor inference."""
        return self.policy in (EXPERT, RANDOM)

    @property
    def is_perturbed(self) -> bool:
        """Whether anything differs from the plain scenes."""
        return self.suite != NONE

    @property
    def is_control(self) -> bool:
        """Whether the policy is deprived of anything, so that its success is no result."""
        return bool(self.control)

    @property
    def is_swapped(self) -> bool:
        """Whether other blocks are asked for than the scenes' own."""
        return self.instruction == SWAPPED

    @property
    def control(self) -> str:
        """In words, what the policy is deprived of; empty for an honest run."""
        words = [] if self.instruction == ORIGINAL else [f"{self.instruction} instruction"]
        cameras = "cameras" if self.is_blind else "+".join(self.masked_cameras)
        return ", ".join([*words, *([f"without {cameras}"] if cameras else [])])

    @property
    def is_blind(self) -> bool:
        """Whether the policy gets no image at all."""
        return set(self.masked_cameras) == set(CAMERAS)

    @property
    def label(self) -> str:
        """The policy with what it is deprived of, so that a control is never taken for a result."""
        return f"{self.policy} [{self.control}]" if self.is_control else self.policy

    @property
    def file_stem(self) -> str:
        """The label as part of a file name; labels that differ in punctuation only share it."""
        return re.sub(r"[^\w.+]+", "-", self.label).strip("-.")

    def video_name(self, seed: int) -> str:
        """File name of the video of one episode."""
        play = "_" + self.play.words.replace(" ", "-") if self.play.words else ""
        return f"{self.file_stem}{play}_{self.suite}_{self.task}_{seed}.mp4"


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    Attributes:
        prompt: the instruction as the policy read it.
        target_block: the block that counts.
        taken_block: the first block that was touched (Reach) or lifted, if any.
        steps: control periods it took.
        wall_s: time spent acting and simulating [s].
        video: where it was filmed.
        chunks_ms: what each inference cost, by stage [ms]; none where several episodes were inferred in one batch.
        smoothness: how the arm was commanded.
    """

    seed: int
    prompt: str
    is_success: bool
    wrong_object: bool
    steps: int
    simulated_s: float
    wall_s: float
    target_block: str = ""
    taken_block: str | None = None
    video: Path | None = None
    chunks_ms: list[Mapping[str, float]] = field(default_factory=list)
    smoothness: Smoothness = field(default_factory=Smoothness)


class Actor(Protocol):
    """What is evaluated; ``Pi0Agent`` is one."""

    def reset(self, seed: int | None = None) -> None:
        """A new episode begins."""

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Joint targets for the next control period."""

    @property
    def chunk_timing_ms(self) -> Mapping[str, float] | None:
        """What inference cost in the last ``get_action`` by stage [ms]; nothing where it needed none, or unknown."""

    @property
    def commands(self) -> Sequence[Command]:
        """The last command with its status; none where there are no chunks."""

    @property
    def seam_jumps(self) -> Sequence[NDArray[np.float32] | None]:
        """How far apart two chunks were where one took over in the last ``get_action``; none or None elsewhere."""


class _ScriptedActor:
    """Has no chunks."""

    chunk_timing_ms = None
    commands = ()
    seam_jumps = ()


class ExpertActor(_ScriptedActor):
    """The scripted expert: sees the true poses, so its success is the upper bound of a task."""

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env
        self._expert = Expert(env.world, env.task)

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget."""

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """The expert's next joint targets."""
        assert self._env.goal is not None
        return self._expert.act(self._env.goal)


class RandomActor(_ScriptedActor):
    """Uniform joint targets: its success is what chance gives."""

    def __init__(self, env: TabletopEnv) -> None:
        self._space = env.action_space

    def reset(self, seed: int | None = None) -> None:
        """Seed the draws."""
        self._space.seed(seed)

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Any joint targets within limits."""
        return self._space.sample()


def run_episode(
    env: TabletopEnv,
    actor: Actor,
    seed: int,
    goal: Goal | None = None,
    on_observation: Callable[[Mapping[str, Any]], None] | None = None,
    perceive: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda observation: observation,
) -> EpisodeResult:
    """One episode.

    Args:
        goal: replaces the one drawn.
        on_observation: gets every observation from the first on.
        perceive: what the actor gets to see of an observation.
    """
    observation, info = env.reset(seed=seed, options={"goal": goal} if goal else None)
    actor.reset(seed)
    if on_observation is not None:
        on_observation(observation)
    chunks, meter = list[Mapping[str, float]](), SmoothnessMeter(env.robot)
    steps, ended, start_s = 0, False, time.perf_counter()
    while not ended and steps < env.task.max_episode_steps:
        action = actor.get_action(perceive(observation))
        meter.add(action, actor.commands, actor.seam_jumps)
        if actor.chunk_timing_ms:
            chunks.append(actor.chunk_timing_ms)
        observation, _, ended, _, info = env.step(action)
        steps += 1
        if on_observation is not None:
            on_observation(observation)
    return EpisodeResult(
        seed=seed,
        prompt=observation["prompt"],
        is_success=bool(info["is_success"]),
        wrong_object=bool(info["wrong_object"]),
        steps=steps,
        simulated_s=info["time_s"],
        wall_s=time.perf_counter() - start_s,
        target_block=info["target_block"],
        taken_block=info["taken_block"],
        chunks_ms=chunks,
        smoothness=meter.result(),
    )
