"""Success of a policy on the bundled tasks: episodes on fixed seeds, figures with intervals, policies compared."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pi0_control.files import write_text
from pi0_control.policy import Policy
from sims.episode import ORIGINAL, EpisodeResult, Setting
from sims.pool import LocalPool, Pool
from sims.simulator import Job
from sims.smoothness import Smoothness


@dataclass(frozen=True)
class RunResult:
    """All episodes of one setting, by seed, and what they add up to.

    Attributes:
        wall_s: how long the run took, however many episodes were played at a time [s].
    """

    setting: Setting
    episodes: tuple[EpisodeResult, ...]
    wall_s: float

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(episode.is_success for episode in self.episodes)

    def summary(self) -> dict[str, Any]:
        """Figures of the run by name, as in ``results.json``."""
        count, simulated_s = len(self.episodes), sum(episode.simulated_s for episode in self.episodes)
        chunks = [chunk for episode in self.episodes for chunk in episode.chunks_ms]
        return {
            "success_rate": self.successes / count,
            "successes": self.successes,
            "episodes": count,
            "wilson_95": wilson_interval(self.successes, count),
            "wrong_object_rate": sum(episode.wrong_object for episode in self.episodes) / count,
            "mean_episode_steps": sum(episode.steps for episode in self.episodes) / count,
            "mean_episode_s": simulated_s / count,
            "wall_s": self.wall_s,
            "real_time_factor": simulated_s / self.wall_s,
            "chunk_s": _chunk_times(chunks),
            "chunk_total_ms": [round(sum(chunk.values()), 1) for chunk in chunks],
            "smoothness": _smoothness([episode.smoothness for episode in self.episodes]),
        }


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same scenes: in how many of them both succeeded, only one, or neither."""

    policy: str
    against: str
    suite: str
    task: str
    both: int
    only_policy: int
    only_against: int
    neither: int
    p_value: float


@dataclass(frozen=True)
class SwapCount:
    """In how many scenes the block asked for was taken both times: the scene's own, and the one with words swapped."""

    suite: str
    task: str
    obeyed: int
    scenes: int
    wilson_95: tuple[float, float]


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927), 95 % for z = 1.96."""
    if count == 0:
        return 0.0, 1.0
    rate, spread = successes / count, z * z / count
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test (1947): the chance of so uneven a split of the scenes that only one solved."""
    count = only_first + only_second
    tail = sum(math.comb(count, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**count)


def evaluate_run(
    setting: Setting,
    policy: Policy | None,
    episodes: int,
    seed: int,
    *,
    pool: Pool | None = None,
    videos: Path | None = None,
    num_videos: int = 1,
    on_episode: Callable[[EpisodeResult], None] = lambda result: None,
) -> RunResult:
    """Play ``episodes`` episodes from seeds ``seed``, ``seed + 1``, ...

    Args:
        policy: what infers; None where the setting is scripted.
        pool: where to play; this process if None. Scenes do not depend on it, nor does noise but for policies that draw
            their own, such as a server's; results agree up to the rounding of batched inference.
        videos: folder for films of the first ``num_videos`` episodes and of as many further failures, those of the
            lowest seeds (of learned policies; filming every episode of a scripted actor would slow it tenfold).
        on_episode: called after each episode.
    """
    started_s, results, failures = time.perf_counter(), dict[int, EpisodeResult](), list[int]()
    jobs = _jobs(setting, episodes, seed, videos, num_videos, failures)
    with nullcontext(pool) if pool is not None else closing(LocalPool()) as chosen:
        for result in chosen.play(jobs, policy):
            results[result.seed] = result
            if result.video is not None and result.seed >= seed + num_videos:
                failures.append(result.seed)
            if len(failures) > num_videos:  # episodes begun before filming ended
                _drop_video(results, max(failures))
                failures.remove(max(failures))
            on_episode(result)
    return RunResult(setting, tuple(results[key] for key in sorted(results)), time.perf_counter() - started_s)


def compare(results: Sequence[RunResult]) -> list[Comparison]:
    """The first policy against each other one, suite by suite and task by task, where both had the same goals."""
    main = [result for result in results if result.setting.label == results[0].setting.label]
    return [
        _compare(ours, theirs)
        for theirs in results
        for ours in main
        if theirs not in main and _goals(ours) == _goals(theirs)
    ]


def count_swaps(results: Sequence[RunResult]) -> list[SwapCount]:
    """For each run with swapped instructions: in how many of its scenes the words decided which block was taken.

    That is where each time the first block taken was the one asked for. The same policy's run with the original
    instructions and the same cameras has to be among the results, in the same scenes.
    """
    plain = {_seen(result): result for result in results if result.setting.instruction == ORIGINAL}
    swapped = [result for result in results if result.setting.is_swapped and _seen(result) in plain]
    return [_count_swaps(plain[_seen(result)], result) for result in swapped]


def write_results(path: Path, results: Sequence[RunResult], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``results.json``: ``about`` at the top, every run under ``runs``, then what follows from several of them.

    The file appears whole or not at all.

    Returns:
        What was written.
    """
    content = {
        **about,
        "runs": [_run_row(result, path.parent) for result in results],
        "comparisons": list(map(asdict, compare(results))),
        "swaps": list(map(asdict, count_swaps(results))),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    return content


def _jobs(
    setting: Setting, episodes: int, seed: int, videos: Path | None, num_videos: int, failures: Sequence[int]
) -> Iterator[Job]:
    """The episodes in the order of their seeds; later ones are filmed until there are ``failures`` enough."""
    for index in range(episodes):
        is_first = index < num_videos
        is_filmed = is_first or (not setting.is_scripted and len(failures) < num_videos)
        video = videos / setting.video_name(seed + index) if videos is not None and is_filmed else None
        yield Job(setting, seed + index, video, only_failure=not is_first)


def _drop_video(results: dict[int, EpisodeResult], seed: int) -> None:
    video = results[seed].video
    assert video is not None
    video.unlink()
    results[seed] = replace(results[seed], video=None)


def _scenes(result: RunResult) -> tuple[Any, ...]:
    setting = result.setting
    return setting.suite, setting.task, setting.play, tuple(episode.seed for episode in result.episodes)


def _goals(result: RunResult) -> tuple[Any, ...]:
    return result.setting.is_swapped, *_scenes(result)


def _seen(result: RunResult) -> tuple[Any, ...]:
    return result.setting.policy, result.setting.masked_cameras, *_scenes(result)


def _compare(ours: RunResult, theirs: RunResult) -> Comparison:
    pairs = [(a.is_success, b.is_success) for a, b in zip(ours.episodes, theirs.episodes, strict=True)]
    both, ours_only, theirs_only, neither = (
        pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
    )
    return Comparison(
        ours.setting.label,
        theirs.setting.label,
        ours.setting.suite,
        ours.setting.task,
        both,
        ours_only,
        theirs_only,
        neither,
        mcnemar_p(ours_only, theirs_only),
    )


def _count_swaps(plain: RunResult, swapped: RunResult) -> SwapCount:
    pairs = list(zip(plain.episodes, swapped.episodes, strict=True))
    obeyed = sum(all(episode.taken_block == episode.target_block for episode in pair) for pair in pairs)
    interval = wilson_interval(obeyed, len(pairs))
    return SwapCount(plain.setting.suite, plain.setting.task, obeyed, len(pairs), interval)


def _run_row(result: RunResult, folder: Path) -> dict[str, Any]:
    setting = result.setting
    return {
        "policy": setting.label,
        "suite": setting.suite,
        "task": setting.task,
        "instruction": setting.instruction,
        "mask_cameras": list(setting.masked_cameras),
        "strategy": setting.play.strategy,
        "latency_steps": setting.play.latency_steps,
        **result.summary(),
        "episode_results": [_episode_row(episode, folder) for episode in result.episodes],
    }


def _episode_row(episode: EpisodeResult, folder: Path) -> dict[str, Any]:
    video = None if episode.video is None else episode.video.relative_to(folder).as_posix()
    row = {key: value for key, value in vars(episode).items() if key not in ("chunks_ms", "smoothness")}
    return {**row, "video": video, **_smoothness([episode.smoothness])}


def _smoothness(episodes: Sequence[Smoothness]) -> dict[str, float | None]:
    """Means over the episodes of jerk and time of holding; over all seams the worst and the 95th percentile."""
    seams = [seam for episode in episodes for seam in episode.seams_rad]
    return {
        "jerk_rad_s3": float(np.mean([episode.jerk_rad_s3 for episode in episodes])),
        "worst_seam_rad": max(seams, default=None),
        "p95_seam_rad": float(np.percentile(seams, 95)) if seams else None,
        "hold_s": float(np.mean([episode.hold_s for episode in episodes])),
    }


def _chunk_times(chunks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each stage, where there was one, and of their sum [s]; empty without inference."""
    return dict(_stage_times(chunks)) if chunks else {}


def _stage_times(chunks: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, dict[str, float]]]:
    times_ms_by_stage = {"total": [sum(chunk.values()) for chunk in chunks]}
    for name, time_ms in chain.from_iterable(chunk.items() for chunk in chunks):
        times_ms_by_stage.setdefault(name, []).append(time_ms)
    for stage, times_ms in times_ms_by_stage.items():
        median, p95 = np.percentile(times_ms, [50, 95]) / 1e3
        yield stage, {"median": float(median), "p95": float(p95)}
