from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import ARM6, tiny_policy

from pi0_control.errors import ConfigError
from pi0_control.model.rtc import prefix_weights
from pi0_control.policy import HoldPolicy, Pi0Policy, RtcConfig
from pi0_control.policy.rtc import steer
from pi0_control.types import ChunkPrefix, Observation

H, WIDTH = 6, 9  # the tiny policy's horizon, and two dimensions more than the robot has
SPACES: list[Any] = ["joint_delta", "joint_absolute"]
NOISE = np.random.default_rng(9).normal(size=(3, H, WIDTH)).astype(np.float32)


def observe(seed: int, prompt: str = "go") -> Observation:
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (24, 32, 3), dtype=np.uint8) for name in ARM6.cameras}
    return Observation(images, generator.uniform(-1, 1, 7).astype(np.float32), prompt, stamp_s=1.5)


def prefix_of(seed: int = 0, length: int = 4, delay: int = 2, end: int = 4) -> ChunkPrefix:
    return ChunkPrefix(np.random.default_rng(seed).normal(size=(length, 7)).astype(np.float32), delay, end)


def policy_of(mode: Any = "guided", **settings: Any) -> Pi0Policy:
    rtc = RtcConfig(mode, max_guidance=settings.pop("max_guidance", 5.0))
    return tiny_policy(WIDTH, rtc, **{"num_steps": 5, "rtc_max_delay": 3, **settings})


@pytest.mark.parametrize("space", SPACES)
def test_frozen_actions_come_back_where_they_were_though_the_robot_moved(space: Any) -> None:
    policy = policy_of("trained", action_space=space)
    first = policy.infer(observe(0), noise=NOISE[0])
    second = policy.infer(observe(1), noise=NOISE[1], prefix=ChunkPrefix(first.actions[2:], 3, 4))
    np.testing.assert_allclose(second.actions[:3], first.actions[2:5], atol=1e-6)
    assert not np.allclose(second.actions[3], first.actions[5], atol=1e-3)


@pytest.mark.parametrize("space", SPACES)
def test_guidance_pulls_to_the_leftover_though_the_robot_moved(space: Any) -> None:
    leftover = policy_of(action_space=space).infer(observe(0), noise=NOISE[0]).actions[2:]
    errors = []
    for strength in (0.0, 1.0, 2.0, 5.0):
        policy = policy_of(action_space=space, max_guidance=strength)
        chunk = policy.infer(observe(1), noise=NOISE[1], prefix=ChunkPrefix(leftover, 2, 4))
        errors.append(np.abs(chunk.actions[:2] - leftover[:2]).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("space", SPACES)
def test_only_joints_that_have_a_leftover_are_guided(space: Any) -> None:
    policy, states = policy_of(action_space=space), np.ones((3, 7), np.float32)
    prefixes = [prefix_of(length=4, delay=1, end=6), None, prefix_of(1, length=8, delay=2, end=5)]
    known, guidance = steer(policy.rtc, policy.transforms, prefixes, states)
    assert known is None
    assert guidance is not None
    assert (guidance.weights[..., 7:] == 0).all()
    assert (guidance.weights[1] == 0).all()
    for row, end in ((0, 4), (2, 5)):  # the first ends with its actions, the last where it says
        expected = prefix_weights(H, prefixes[row].delay, end, "exp")
        assert torch.equal(guidance.weights[row, :, :7], expected[:, None].expand(-1, 7))
        targets = policy.transforms.targets(prefixes[row].actions[None, :H], states[:1])[0]
        np.testing.assert_array_equal(guidance.targets[row, : len(targets)], targets)


@pytest.mark.parametrize("mode", ["guided", "trained"])
def test_a_batch_of_prefixes_equals_its_rows_one_by_one(mode: Any) -> None:
    policy, observations = policy_of(mode), [observe(seed) for seed in range(3)]
    prefixes = [prefix_of(0, delay=1), None, prefix_of(1, length=5, delay=3, end=5)]
    together = policy.infer_batch(observations, noise=NOISE, prefixes=prefixes)
    free = policy.infer_batch(observations, noise=NOISE)
    for row, prefix in enumerate(prefixes):
        alone = policy.infer(observations[row], noise=NOISE[row], prefix=prefix).actions
        np.testing.assert_allclose(together[row].actions, alone, atol=1e-5)
        assert np.allclose(alone, free[row].actions, atol=1e-5) == (prefix is None)
    none = policy.infer_batch(observations, noise=NOISE, prefixes=[None] * 3)
    assert all(np.array_equal(each.actions, other.actions) for each, other in zip(none, free, strict=True))


def test_a_continued_chunk_says_what_every_chunk_says() -> None:
    for policy in (policy_of(), policy_of("trained"), HoldPolicy(ARM6, H)):
        chunk = policy.infer(observe(0, "lift it"), prefix=prefix_of())
        assert (chunk.prompt, chunk.start_s, chunk.actions.shape) == ("lift it", 1.5, (H, 7))
        assert set(chunk.timing_ms) == {"preprocess", "prefix", "denoise"}
        assert len(policy.infer_batch([observe(0)], prefixes=[prefix_of()])) == 1


def test_more_guidance_than_denoising_steps_would_overshoot() -> None:
    policy = policy_of(num_steps=2)
    _, guidance = steer(RtcConfig(max_guidance=7.0), policy.transforms, [prefix_of()], np.zeros((1, 7)))
    assert guidance is not None
    assert guidance.max_guidance == 2


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (ChunkPrefix(np.zeros((4, 6), np.float32), 1, 3), r"shape \[4, 6\]; expected finite ones \[K, 7\]"),
        (ChunkPrefix(np.zeros(7, np.float32), 1, 3), r"shape \[7\]"),
        (ChunkPrefix(np.full((4, 7), np.nan, np.float32), 1, 3), "expected finite"),
        (prefix_of(delay=5, end=6), "4 actions, delay 5 and end 6; expected a delay within its actions"),
        (prefix_of(delay=-1), "delay -1"),
        (prefix_of(delay=3, end=2), "delay 3 and end 2"),
        (prefix_of(end=7), "to the horizon 6"),
        (prefix_of(delay=4), "delay 4; the policy was trained for 0 to 3"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(prefix: ChunkPrefix, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        policy_of("trained").infer(observe(0), prefix=prefix)


def test_settings_that_do_not_fit_are_refused() -> None:
    for setting, choice in (("mode", "clamped"), ("schedule", "cosine"), ("jacobian", "exact")):
        with pytest.raises(ConfigError, match=f"rtc {setting} is '{choice}'; expected one of "):
            RtcConfig(**{setting: choice})  # type: ignore[arg-type]
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected zero or more"):
            RtcConfig(max_guidance=strength)
    with pytest.raises(ConfigError, match="not trained to continue given actions"):
        policy_of("trained", rtc_max_delay=0)
    with pytest.raises(ConfigError, match="2 prefixes for 1 observations"):
        policy_of().infer_batch([observe(0)], prefixes=[None, None])
