"""Success of a policy on the bundled tasks: episodes on fixed seeds, figures with intervals, a video per task."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sims.expert import Expert
from sims.tabletop_env import TabletopEnv
from sims.tasks import Goal, Task
from sims.video import write_video


class Actor(Protocol):
    """What is evaluated; ``Pi0Agent`` is one."""

    def reset(self, seed: int | None = None) -> None:
        """A new episode begins."""

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Joint targets for the next control period."""

    @property
    def chunk_timing_ms(self) -> Mapping[str, float] | None:
        """What inference cost in the last ``get_action`` by stage [ms]; None where it needed none."""


class ExpertActor:
    """The scripted expert: sees the true poses, so its success is the upper bound of a task."""

    chunk_timing_ms = None

    def __init__(self, env: TabletopEnv) -> None:
        self._env = env
        self._expert = Expert(env.world, env.task)

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget."""

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """The expert's next joint targets."""
        assert self._env.goal is not None
        return self._expert.act(self._env.goal)


class RandomActor:
    """Uniform joint targets: its success is what chance gives."""

    chunk_timing_ms = None

    def __init__(self, env: TabletopEnv) -> None:
        self._space = env.action_space

    def reset(self, seed: int | None = None) -> None:
        """Seed the draws."""
        self._space.seed(seed)

    def get_action(self, observation: Mapping[str, Any]) -> NDArray[np.float32]:
        """Any joint targets within limits."""
        return self._space.sample()


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    Attributes:
        steps: control periods it took.
        wall_s: time spent acting and simulating [s].
        chunks_ms: what each inference cost, by stage [ms].
    """

    seed: int
    prompt: str
    is_success: bool
    wrong_object: bool
    steps: int
    simulated_s: float
    wall_s: float
    chunks_ms: list[Mapping[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TaskResult:
    """All episodes of one task and what they add up to."""

    task: str
    episodes: tuple[EpisodeResult, ...]

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(episode.is_success for episode in self.episodes)

    def summary(self) -> dict[str, Any]:
        """Figures of the task by name, as in ``results.json``."""
        count, simulated_s = len(self.episodes), sum(episode.simulated_s for episode in self.episodes)
        return {
            "success_rate": self.successes / count,
            "successes": self.successes,
            "episodes": count,
            "wilson_95": wilson_interval(self.successes, count),
            "wrong_object_rate": sum(episode.wrong_object for episode in self.episodes) / count,
            "mean_episode_steps": sum(episode.steps for episode in self.episodes) / count,
            "mean_episode_s": simulated_s / count,
            "real_time_factor": simulated_s / sum(episode.wall_s for episode in self.episodes),
            "chunk_s": _chunk_times([chunk for episode in self.episodes for chunk in episode.chunks_ms]),
        }


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927), 95 % for z = 1.96."""
    if count == 0:
        return 0.0, 1.0
    rate, spread = successes / count, z * z / count
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate_task(
    task: Task,
    make_actor: Callable[[TabletopEnv], Actor],
    episodes: int,
    seed: int,
    *,
    video: Path | None = None,
    render_mode: str | None = None,
    on_episode: Callable[[EpisodeResult], None] = lambda result: None,
) -> TaskResult:
    """Run ``episodes`` episodes from seeds ``seed``, ``seed + 1``, ...

    Args:
        video: where to film the first episode (MP4).
        render_mode: ``human`` opens MuJoCo's viewer.
        on_episode: called after each episode.
    """
    results = []
    with closing(TabletopEnv(task.name, render_mode)) as env:
        actor = make_actor(env)
        for index in range(episodes):
            frames: list[Mapping[str, NDArray[np.uint8]]] = []
            is_filmed = video is not None and index == 0
            keep = (lambda seen, frames=frames: frames.append(seen["images"])) if is_filmed else None
            result = run_episode(env, actor, seed + index, on_observation=keep)
            if video is not None and frames:
                write_video(video, frames, result.prompt, result.is_success, env.metadata["render_fps"])
            results.append(result)
            on_episode(result)
    return TaskResult(task.name, tuple(results))


def run_episode(
    env: TabletopEnv,
    actor: Actor,
    seed: int,
    goal: Goal | None = None,
    on_observation: Callable[[Mapping[str, Any]], None] | None = None,
) -> EpisodeResult:
    """One episode; ``goal`` replaces the one drawn, ``on_observation`` gets every observation from the first on."""
    observation, info = env.reset(seed=seed, options={"goal": goal} if goal else None)
    actor.reset(seed)
    if on_observation is not None:
        on_observation(observation)
    chunks: list[Mapping[str, float]] = []
    steps, ended, start_s = 0, False, time.perf_counter()
    while not ended and steps < env.task.max_episode_steps:
        action = actor.get_action(observation)
        if actor.chunk_timing_ms is not None:
            chunks.append(actor.chunk_timing_ms)
        observation, _, ended, _, info = env.step(action)
        steps += 1
        if on_observation is not None:
            on_observation(observation)
    wall_s = time.perf_counter() - start_s
    success, wrong = bool(info["is_success"]), bool(info["wrong_object"])
    return EpisodeResult(seed, observation["prompt"], success, wrong, steps, info["time_s"], wall_s, chunks)


def write_results(path: Path, results: Sequence[TaskResult], about: Mapping[str, Any]) -> None:
    """Write ``results.json``: ``about`` at the top, every figure under ``tasks.<name>``, and every episode.

    The file appears whole or not at all.
    """
    tasks = {
        result.task: {**result.summary(), "episode_results": list(map(_episode_row, result.episodes))}
        for result in results
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**about, "tasks": tasks}, indent=2) + "\n")
    partial.replace(path)


def _episode_row(episode: EpisodeResult) -> dict[str, Any]:
    return {key: value for key, value in asdict(episode).items() if key != "chunks_ms"}


def _chunk_times(chunks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each stage and of their sum [s]; empty where nothing was inferred."""
    return dict(_stage_times(chunks)) if chunks else {}


def _stage_times(chunks: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, dict[str, float]]]:
    totals = [sum(chunk.values()) for chunk in chunks]
    for stage, times_ms in (("total", totals), *((name, [chunk[name] for chunk in chunks]) for name in chunks[0])):
        median, p95 = np.percentile(times_ms, [50, 95]) / 1e3
        yield stage, {"median": float(median), "p95": float(p95)}
