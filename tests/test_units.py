import math

import numpy as np
import pytest
from policy_parts import ARM6, TINY

from pi0_control.model.config import Pi0Config
from pi0_control.policy import NormStats, PolicyConfig, PolicyTransforms, Tokenizer, VectorStats
from pi0_control.policy.train_tokenizer import BUNDLED_FILE
from pi0_control.policy.units import UNITS, Units
from pi0_control.robot import RobotSpec

ALOHA = RobotSpec.from_yaml("aloha")
OPENPI, LEROBOT = UNITS["aloha_pi"], UNITS["lerobot_aloha_pi"]


def test_aloha_s_state_is_openpi_s() -> None:
    def angular(opening: float) -> float:
        way = opening * (0.05800 - 0.01844) + 0.01844
        sine = (0.022**2 + way**2 - 0.036**2) / (2 * 0.022 * way)
        return (math.asin(min(1, max(-1, sine))) - 0.5476) / (1.6296 - 0.5476)

    state = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7] * 2)
    arm = [0.1, -0.2, -0.3, 0.4, 0.5, 0.6, angular(0.7)]
    np.testing.assert_allclose(OPENPI.state(state), arm * 2, rtol=1e-6)
    assert angular(0) == pytest.approx(-1.0798, abs=1e-4)
    assert angular(1) == pytest.approx(0.9456, abs=1e-4)
    assert np.isfinite(OPENPI.state(np.full(14, -0.01844 / (0.05800 - 0.01844)))).all()


def test_aloha_s_action_is_openpi_s() -> None:
    arm = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    expected = [0.1, -0.2, -0.3, 0.4, 0.5, 0.6, (0.7 + 0.5476 + 0.6213) / (1.4910 + 0.6213)]
    np.testing.assert_allclose(OPENPI.to_robot(np.tile(arm, 2)), expected * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("units", "seen", "asked"),
    [
        (OPENPI, (-1.0798, -0.1400, 0.9456), (0.5534, 0.7901, 1.0268)),
        (LEROBOT, (-0.9280, -0.0035, 1.0644), (0.4835, 0.7439, 1.0043)),  # 0.3.3, with adapt_to_pi_aloha
    ],
)
def test_each_library_has_its_own_angles_of_grippers(
    units: Units, seen: tuple[float, ...], asked: tuple[float, ...]
) -> None:
    """At a gripper of 0, 0.5 and 1 in the state, and of 0, 0.5 and 1 in what is predicted."""
    values = np.repeat([[0.0], [0.5], [1.0]], 14, axis=1)
    for got, expected in ((units.state(values), seen), (units.to_robot(values), asked)):
        np.testing.assert_allclose(got[:, [6, 13]], np.transpose([expected, expected]), atol=1e-4)
        np.testing.assert_array_equal(got[:, [1, 2, 8, 9]], -values[:, :4])
        np.testing.assert_array_equal(got[:, [0, 3, 4, 5]], values[:, :4])


@pytest.mark.parametrize("units", UNITS.values())
def test_an_action_comes_back(units: Units) -> None:
    values = np.random.default_rng(0).uniform(0, 1, (3, 20, 14)).astype(np.float32)
    before = values.copy()
    np.testing.assert_allclose(units.to_robot(units.action(values)), values, atol=1e-6)
    np.testing.assert_array_equal(values, before)


def test_deltas_are_taken_between_values_of_the_policy_s_units() -> None:
    """openpi adapts state and actions first, then subtracts; grippers stay absolute."""
    sizes = {**vars(TINY), "action_dim": 14, "vision": TINY.vision}
    config = PolicyConfig.for_robot(ALOHA, Pi0Config(**sizes), units="aloha_pi")
    plain = VectorStats(np.zeros(14), np.ones(14))
    transforms = PolicyTransforms(config, NormStats(plain, plain), Tokenizer(BUNDLED_FILE, 12))
    generator = np.random.default_rng(1)
    states, actions = generator.uniform(0, 1, (2, 14)), generator.uniform(0, 1, (2, 6, 14))
    targets = transforms.targets(actions, states)
    np.testing.assert_allclose(targets[:, 2, 1], -(actions[:, 2, 1] - states[:, 1]), atol=1e-5)
    np.testing.assert_allclose(targets[:, 2, 6], OPENPI.action(actions)[:, 2, 6], atol=1e-5)
    np.testing.assert_allclose(transforms.actions(targets, states), actions, atol=1e-5)
    np.testing.assert_allclose(transforms.state(states), OPENPI.state(states), atol=1e-5)


def test_what_is_not_commanded_keeps_its_state() -> None:
    mask = (True, True, False, True, True, False, False)
    config = PolicyConfig.for_robot(ARM6, TINY, uncommanded=("elbow",), rates=("tool",))
    assert config.delta_mask == mask
    plain = VectorStats(np.zeros(6), np.ones(6))
    stats = NormStats(VectorStats(np.zeros(7), np.ones(7)), plain)
    transforms = PolicyTransforms(config, stats, Tokenizer(BUNDLED_FILE, 12))
    states, actions = np.full((1, 7), 0.5, np.float32), np.arange(42, dtype=np.float32).reshape(1, 6, 7)
    targets = transforms.targets(actions, states)
    np.testing.assert_allclose(targets[0, 0, :6], [-0.5, 0.5, 2.5, 3.5, 5.0, 6.0], rtol=1e-5)
    assert (targets[..., 6:] == 0).all()
    back = transforms.actions(targets, states)
    assert (back[..., 2] == 0.5).all()
    np.testing.assert_allclose(np.delete(back, 2, -1), np.delete(actions, 2, -1), rtol=1e-5)
