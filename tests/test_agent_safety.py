"""The whole control floor at once: a policy that may predict anything, played by an agent with safety."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from counting_policy import ARM6, CountingPolicy, observe
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapters import DROID_SPACE, vector

from pi0_control.control import ChunkingConfig, Pi0Agent, SafetyConfig
from pi0_control.control.adapters import droid
from pi0_control.control.chunking import Strategy
from pi0_control.control.mapping import EnvironmentMapping
from pi0_control.errors import ConfigError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.types import ActionChunk, Observation

DROID = RobotSpec.from_yaml("droid")
EPS = 1e-5  # commands are float32


class WildPolicy(HoldPolicy):
    """Predicts anything, now and then something that is not a number."""

    def __init__(self, seed: int, share_of_nan: float) -> None:
        super().__init__(ARM6, horizon=8, execution_horizon=3)
        self._rng, self._share_of_nan = np.random.default_rng(seed), share_of_nan

    def infer_batch(self, observations: Sequence[Observation], **_: Any) -> list[ActionChunk]:
        return [replace(chunk, actions=self._wild(chunk.actions)) for chunk in super().infer_batch(observations)]

    def _wild(self, actions: np.ndarray) -> np.ndarray:
        wild = actions + self._rng.normal(0, 3, actions.shape).astype(np.float32)
        return np.where(self._rng.random(actions.shape) < self._share_of_nan, np.float32(np.nan), wild)


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(get_args(Strategy)),
    latency=st.lists(st.integers(0, 10), min_size=1, max_size=3),
    share_of_nan=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 1000),
)
def test_whatever_a_policy_predicts_and_however_late_the_arm_stays_within_its_limits(
    strategy: Strategy, latency: list[int], share_of_nan: float, seed: int
) -> None:
    agent = Pi0Agent(
        WildPolicy(seed, share_of_nan), chunking=ChunkingConfig(strategy), latency_steps=latency, safety=SafetyConfig()
    )
    agent.reset(seed)
    measured, step = ARM6.home, ARM6.max_velocity * ARM6.dt_s
    for _ in range(60):
        action = agent.get_action({**observe(), "state": measured})
        assert np.isfinite(action).all()
        assert (ARM6.lower <= action).all()
        assert (action <= ARM6.upper).all()
        assert (np.abs(action - measured) <= step + EPS).all()
        measured = action
        assert agent.commands[0].status != "fault"  # what is not finite is refused before it is played


def test_a_fault_of_one_environment_is_its_own_and_lasts_until_its_reset() -> None:
    agent = Pi0Agent(CountingPolicy(), safety=SafetyConfig())
    seen = {"images": {name: np.zeros((2, 8, 8, 3), np.uint8) for name in ARM6.cameras}, "prompt": ("go", "go")}
    far = np.stack([ARM6.home, ARM6.upper + 1])
    for _ in range(3):
        agent.get_action({**seen, "state": far})
    assert [command.status for command in agent.commands] == ["tracking", "fault"]
    assert "outside the position limits" in agent.commands[1].reason
    well = np.stack([ARM6.home, ARM6.home])
    agent.get_action({**seen, "state": well})
    assert agent.commands[1].status == "fault"
    agent.reset(mask=[False, True])
    agent.get_action({**seen, "state": well})
    assert [command.status for command in agent.commands] == ["tracking", "tracking"]


def test_without_safety_actions_are_those_of_the_policy() -> None:
    agent = Pi0Agent(CountingPolicy())
    agent.get_action(observe())
    assert (agent.get_action(observe()) == 1).all()
    assert [(command.status, command.reason) for command in agent.commands] == [("tracking", "")]


def test_safety_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="camera_ages_s"):
        Pi0Agent(CountingPolicy(), safety=SafetyConfig(camera_ages_s={"top": 1.0}))


class SteadyPolicy(HoldPolicy):
    """Turns every joint but the gripper at 0.5 rad/s."""

    rates = ARM6.joint_names[:6]

    def infer_batch(self, observations: Sequence[Observation], **_: Any) -> list[ActionChunk]:
        return [replace(chunk, actions=np.full_like(chunk.actions, 0.5)) for chunk in super().infer_batch(observations)]


@pytest.mark.parametrize("safety", [None, SafetyConfig()], ids=["plain", "safe"])
@pytest.mark.parametrize("is_outside", [False, True], ids=["home", "outside"])
def test_without_an_action_velocities_are_zero(is_outside: bool, safety: SafetyConfig | None) -> None:
    agent = Pi0Agent(SteadyPolicy(ARM6, 4, 2), latency_steps=2, safety=safety)
    state, statuses = ARM6.upper + 1 if is_outside else ARM6.home, set()
    for _ in range(12):
        action = agent.get_action({**observe(), "state": state})
        (command,) = agent.commands
        statuses.add(command.status)
        assert command.status == "tracking" or (np.abs(action[:6]) < EPS).all()
    assert statuses == ({"fault"} if safety and is_outside else {"tracking", "holding"})


def test_velocities_are_not_taken_for_positions() -> None:
    velocities = EnvironmentMapping(droid(), DROID, DROID_SPACE, vector(8, 1))
    with pytest.raises(ConfigError, match=r"environment takes \['panda_joint1'"):
        Pi0Agent(HoldPolicy(DROID), mapping=velocities)
