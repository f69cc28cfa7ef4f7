import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from tiny_policy import ARM6, tiny_policy

from pi0_control.errors import ConfigError, Pi0Error, RemoteError
from pi0_control.policy import HoldPolicy, Pi0Policy, RtcConfig
from pi0_control.types import ActionChunk, Observation
from sims.controls import without_cameras
from sims.episode import EpisodeResult, Play, Setting
from sims.pool import LocalPool, WorkerPool, open_pool
from sims.simulator import Job

BLIND = Setting("tiny", "Reach", masked_cameras=ARM6.cameras, play=Play(execution_horizon=3))


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    pool = WorkerPool(3)
    yield pool
    pool.close()


class Recorder:
    """A policy whose chunks are remembered by the noise they came from."""

    def __init__(self, policy: Pi0Policy) -> None:
        self.chunks: dict[bytes, np.ndarray] = {}
        self.largest = 0
        infer_batch = policy.infer_batch

        def record(observations, *, noise=None, prefixes=None):
            chunks = infer_batch(observations, noise=noise, prefixes=prefixes)
            noises = noise if noise.ndim == 3 else noise[None]
            self.chunks.update((each.tobytes(), chunk.actions) for each, chunk in zip(noises, chunks, strict=True))
            self.largest = max(self.largest, len(chunks))
            return chunks

        policy.infer_batch = record


def outcomes(results: list[EpisodeResult]) -> list[dict[str, Any]]:
    ignored = ("wall_s", "chunks_ms")
    rows = sorted(map(asdict, results), key=lambda row: row["seed"])
    return [{key: value for key, value in row.items() if key not in ignored} for row in rows]


@pytest.mark.parametrize("policy", ["expert", "random"])
def test_scripted_episodes_do_not_depend_on_how_many_play_at_a_time(workers, policy) -> None:
    jobs = [Job(Setting(policy, "Reach", suite="all", instruction="swapped"), seed) for seed in range(5)]
    alone = outcomes(list(LocalPool().play(jobs)))
    assert outcomes(list(workers.play(jobs))) == alone
    assert [row["seed"] for row in alone] == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("one_thread")
def test_learned_episodes_get_the_same_noise_and_actions_however_many_play_at_a_time(workers) -> None:
    jobs, seen = [Job(BLIND, seed) for seed in range(4)], []
    for pool in (LocalPool(), workers):
        policy = without_cameras(tiny_policy(), BLIND.masked_cameras)
        recorder = Recorder(policy)
        seen.append((outcomes(list(pool.play(jobs, policy))), recorder))
    (alone, first), (together, second) = seen
    assert [row["steps"] for row in alone] == [row["steps"] for row in together]
    assert (first.largest, second.largest) == (1, 3)
    assert len(first.chunks) == sum(-(-row["steps"] // 3) for row in alone)
    assert first.chunks.keys() == second.chunks.keys()
    for noise, actions in first.chunks.items():
        np.testing.assert_allclose(second.chunks[noise], actions, atol=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_policies_that_look_see_the_same_scenes_however_many_play_at_a_time(workers) -> None:
    jobs, first = [Job(replace(BLIND, masked_cameras=()), seed) for seed in range(2)], list[dict[str, Any]]()
    for pool in (LocalPool(), workers):
        policy, seen = tiny_policy(), dict[str, Any]()
        infer_batch = policy.infer_batch

        def look(observations, *, infer_batch=infer_batch, seen=seen, **rest):
            chunks = infer_batch(observations, **rest)
            for observation, chunk in zip(observations, chunks, strict=True):
                seen.setdefault(observation.state.tobytes(), (observation, chunk.actions))
            return chunks

        policy.infer_batch = look
        results = list(pool.play(jobs, policy))
        assert [bool(result.chunks_ms) for result in results] == [pool is not workers] * 2
        first.append(dict(list(seen.items())[: len(jobs) if pool is workers else None]))
    for state, (observation, actions) in first[1].items():  # the first observation of each episode
        alone, actions_alone = first[0][state]
        np.testing.assert_allclose(actions, actions_alone, atol=1e-5)
        for camera, image in observation.images.items():
            np.testing.assert_array_equal(image, alone.images[camera])


@pytest.mark.usefixtures("one_thread")
def test_chunks_are_played_as_the_setting_says() -> None:
    policy, held, seams, delays = tiny_policy(rtc_max_delay=2), list[float](), list[bool](), list[int]()
    policy = without_cameras(policy.with_rtc(RtcConfig("trained")), BLIND.masked_cameras)
    infer = policy.infer

    def remember(observation, *, noise=None, prefix=None):
        delays.append(prefix.delay if prefix else 0)
        return infer(observation, noise=noise, prefix=prefix)

    policy.infer = remember
    for play in (Play("sync", 0, 3), Play("sync", 2, 3), Play("async", 2, 3), Play("rtc_trained", 2, 3)):
        (result,) = LocalPool().play([Job(replace(BLIND, play=play), 0)], policy)
        held.append(result.smoothness.hold_s / (result.steps * ARM6.dt_s))
        seams.append(len(result.smoothness.seams_rad) > 5)
        assert max(delays) == (2 if play.strategy == "rtc_trained" else 0)
    assert held == pytest.approx([0, 2 / 5, 0, 0], abs=0.06)
    assert seams == [True, False, True, True]
    (guarded,) = LocalPool().play([Job(replace(BLIND, play=Play(is_guarded=True)), 0)], policy)
    assert guarded.smoothness.jerk_rad_s3 < result.smoothness.jerk_rad_s3


def test_a_mistake_in_a_worker_is_told_as_if_made_here(workers) -> None:
    with pytest.raises(ConfigError, match="No suite 'fog'"):
        list(workers.play([Job(Setting("expert", "Reach", suite="fog"), 0)]))
    assert len(list(workers.play([Job(Setting("expert", "Reach"), 0)]))) == 1


class NoisyPolicy(HoldPolicy):
    """Draws noise of its own, as a server's does."""

    def __init__(self) -> None:
        super().__init__(ARM6, 8, 3)
        self.rng = np.random.default_rng()

    def infer(self, observation: Observation, **_: Any) -> ActionChunk:
        chunk = super().infer(observation)
        return replace(chunk, actions=chunk.actions + self.rng.normal(0, 0.1, chunk.actions.shape).astype(np.float32))

    def infer_batch(self, observations: Sequence[Observation], **_: Any) -> list[ActionChunk]:
        return [self.infer(observation) for observation in observations]

    def reset(self, seed: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)


def test_noise_of_a_policys_own_follows_from_the_seeds(workers) -> None:
    jobs, policy = [Job(BLIND, seed) for seed in range(4)], NoisyPolicy()
    alone = outcomes(list(LocalPool().play(jobs, policy)))
    assert outcomes(list(LocalPool().play(jobs[2:], policy))) == alone[2:]
    assert len({row["smoothness"]["jerk_rad_s3"] for row in alone}) == 4
    assert outcomes(list(workers.play(jobs, policy))) == outcomes(list(workers.play(jobs, policy)))


class FailingPolicy(HoldPolicy):
    """Fails when it is asked for the second time."""

    asked = 0

    def infer_batch(self, *args: Any, **kwargs: Any) -> list[ActionChunk]:
        self.asked += 1
        if self.asked == 2:
            raise RemoteError("no answer")
        return super().infer_batch(*args, **kwargs)


def test_nothing_of_a_run_that_was_given_up_is_in_the_next_one(workers) -> None:
    expert = [Job(Setting("expert", "Lift"), seed) for seed in (7, 8)]
    alone = outcomes(list(LocalPool().play(expert)))
    next(workers.play(Job(Setting("expert", "Reach"), seed) for seed in range(6)))
    assert outcomes(list(workers.play(expert))) == alone
    with pytest.raises(RemoteError, match="no answer"):
        list(workers.play([Job(BLIND, seed) for seed in range(6)], FailingPolicy(ARM6, 4)))
    assert outcomes(list(workers.play(expert))) == alone


def test_a_worker_that_dies_is_named_and_the_others_end() -> None:
    pool = WorkerPool(2)
    processes = list(pool._processes.values())
    jobs = (Job(Setting("random", "Reach"), seed) for seed in range(1000))
    results = pool.play(jobs)
    next(results)
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(Pi0Error, match=r"A worker process died \(exit code -9\); try fewer"):
        list(results)
    pool.close()
    assert not any(process.is_alive() for process in processes)


def test_a_pool_has_room_for_one_episode_at_least() -> None:
    with pytest.raises(ConfigError, match="--parallel is 0; expected 1 or more"):
        open_pool(0)
    assert isinstance(open_pool(1), LocalPool)
