from contextlib import closing
from dataclasses import replace

import av
import numpy as np
import pytest
from tiny_policy import ARM6, tiny_policy

from pi0_control.errors import ConfigError
from pi0_control.policy import HoldPolicy
from pi0_control.types import ChunkPrefix
from sims.episode import Setting
from sims.pool import LocalPool
from sims.simulator import BlindEnv, EpisodePolicy, Job, PolicyShape, Simulator
from sims.tabletop_env import TabletopEnv

EXPERT = Setting("expert", "Reach")


def test_only_what_is_asked_for_is_filmed(tmp_path) -> None:
    with closing(Simulator()) as simulator:
        failed = Setting("random", "Reach", instruction="shuffled")
        jobs = [
            Job(EXPERT, 0, tmp_path / "first.mp4"),
            Job(EXPERT, 0, tmp_path / "good.mp4", only_failure=True),
            Job(EXPERT, 0),
            Job(failed, 0, tmp_path / "bad.mp4", only_failure=True),
        ]
        first, good, unfilmed, bad = map(simulator.play, jobs)
    assert (first.video, good.video, unfilmed.video, bad.video) == (jobs[0].video, None, None, jobs[3].video)
    assert (first.is_success, first.steps) == (unfilmed.is_success, unfilmed.steps)
    assert {file.name for file in tmp_path.iterdir()} == {"first.mp4", "bad.mp4"}
    with av.open(str(first.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= first.steps + 1


def test_an_environment_serves_until_another_is_needed(monkeypatch) -> None:
    made: list[str] = []
    init = TabletopEnv.__init__
    monkeypatch.setattr(TabletopEnv, "__init__", lambda env, *what: (made.append(what[0]), init(env, *what))[1])
    with closing(Simulator()) as simulator:
        for task, seed in (("Reach", 0), ("Reach", 1), ("Lift", 0), ("Reach", 0)):
            simulator.play(Job(Setting("expert", task), seed))
    assert made == ["Reach", "Lift", "Reach"]


@pytest.mark.parametrize("suite", ["none", "all"])
def test_a_blind_environment_is_the_same_but_for_its_images(suite) -> None:
    with closing(BlindEnv("Lift", None, suite)) as blind, closing(TabletopEnv("Lift", None, suite)) as seeing:
        for seed in range(3):
            first, second = blind.reset(seed=seed)[0], seeing.reset(seed=seed)[0]
            for _ in range(3):
                assert (first["state"] == second["state"]).all()
                assert first["prompt"] == second["prompt"]
                assert first["images"] == {}
                first, second = (env.step(env.robot.home)[0] for env in (blind, seeing))


def test_a_policy_that_gives_velocities_is_refused() -> None:
    policy = HoldPolicy(ARM6)
    policy.rates = ARM6.joint_names[:2]
    with pytest.raises(ConfigError, match=r"moves \['waist', 'shoulder'\] by velocities .*expected joint positions"):
        list(LocalPool().play([Job(replace(EXPERT, policy="velocities"), 0)], policy))


def test_the_noise_of_an_episode_follows_from_its_seed() -> None:
    noises: list[np.ndarray] = []
    shape = PolicyShape.of(tiny_policy())
    policy = EpisodePolicy(ARM6, shape, lambda observation, noise, prefix: noises.append(noise))
    for seed in (1, 2, 1):
        policy.reset(seed)
        policy.infer_batch([None, None])
    first, other, again = noises[:2], noises[2:4], noises[4:]
    assert first[0].shape == (6, 7)
    assert first[0].dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_each_row_of_an_episode_asks_with_its_own_prefix() -> None:
    policy = EpisodePolicy(ARM6, PolicyShape.of(tiny_policy()), lambda observation, noise, prefix: prefix)
    prefix = ChunkPrefix(np.zeros((2, 7), np.float32), 1, 2)
    assert policy.infer(None, prefix=prefix) is prefix
    assert policy.infer_batch([None, None], prefixes=[None, prefix]) == [None, prefix]
    assert policy.infer_batch([None]) == [None]
