"""Actions that are no absolute targets like the states are told from those that are, and nothing else is."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi0_control.doctor.targets import MOMENTS, Slopes, unlike_states

NAMES = ("waist", "shoulder", "elbow", "forearm", "wrist", "gripper")
EPISODES, LENGTH = 6, 60
DEGREES = 180 / np.pi
Numbers = tuple[np.ndarray, np.ndarray]


def record(seed: int = 0, lag: float = 0.3, noise: float = 0.0, width: float = 0.4) -> tuple[Numbers, np.ndarray]:
    """States and targets [N, 6] of a servo that comes nearer by ``lag`` in each step, and episodes [N].

    The forearm is held. The gripper closes at once, on an object of some width.
    """
    rng = np.random.default_rng(seed)
    states, actions = [], []
    for _ in range(EPISODES):
        times = np.arange(LENGTH)[:, None]
        targets = np.array([0.2, 0.9, 1.7, 0.0, -0.7]) + 0.4 * np.sin(
            times * rng.uniform(0.05, 0.15, 5) + rng.uniform(0, 7, 5)
        )
        targets[:, 3] = 0
        targets = np.hstack([targets, times < LENGTH * rng.uniform(0.4, 0.8)])
        state = targets[0].copy()
        for target in targets:
            states.append(state.copy())
            actions.append(target)
            state += lag * (target - state)
            state[5] = max(state[5], width)
    seen = np.array(states)
    return (seen + rng.normal(0, noise + 1e-4, seen.shape), np.array(actions)), np.arange(EPISODES).repeat(LENGTH)


def found(numbers: Numbers, episode: np.ndarray) -> dict[str, list[str]]:
    """Names of joints by the name of what is found."""
    slopes = Slopes.of(*(values.astype(np.float32) for values in numbers), episode)
    return {each.name: each.where.removeprefix("actions ").split(", ") for each in unlike_states(slopes, NAMES)}


def scaled(actions: np.ndarray, joints: slice | int, factor: float, offset: float = 0) -> np.ndarray:
    actions = actions.copy()
    actions[:, joints] = offset + factor * actions[:, joints]
    return actions


ARM = ["waist", "shoulder", "elbow", "wrist"]
FAULTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Numbers], dict[str, list[str]]]] = {
    "none": (lambda s, a: (s, a), {}),
    "distances": (lambda s, a: (s, a - s), {"actions are distances": ARM}),
    "steps": (lambda s, a: (s, np.diff(s, axis=0, append=s[-1:])), {"actions are distances": [*ARM, "gripper"]}),
    "degrees": (lambda s, a: (s, scaled(a, slice(5), DEGREES)), {"actions in other units": ARM}),
    "degrees of states": (lambda s, a: (scaled(s, slice(5), DEGREES), a), {"actions in other units": ARM}),
    "degrees of both": (lambda s, a: (scaled(s, slice(5), DEGREES), scaled(a, slice(5), DEGREES)), {}),
    "percent": (lambda s, a: (s, scaled(a, 5, 100)), {"actions in other units": ["gripper"]}),
    "gripper inverted": (lambda s, a: (s, scaled(a, 5, -1, 1)), {"actions of the other sign": ["gripper"]}),
    "sign": (lambda s, a: (s, scaled(a, 0, -1)), {"actions of the other sign": ["waist"]}),
    "sign of states": (lambda s, a: (scaled(s, 2, -1), a), {"actions of the other sign": ["elbow"]}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_actions_are_is_told_from_states(fault: str) -> None:
    change, expected = FAULTS[fault]
    numbers, episode = record()
    assert found(change(*numbers), episode) == expected


@given(st.integers(0, 99), st.floats(0.08, 1), st.floats(0, 0.05), st.floats(0, 1))
def test_slow_noisy_and_squeezing_robots_are_sound(seed: int, lag: float, noise: float, width: float) -> None:
    assert found(*record(seed, lag, noise, width)) == {}


def test_what_tells_nothing_is_not_named() -> None:
    (states, actions), episode = record()
    still, rng = states[:1].repeat(len(states), 0), np.random.default_rng(0)
    for numbers in (
        (still, actions),
        (states, still),
        (still, still),
        (rng.normal(size=states.shape), actions),
        (np.full_like(states, np.nan), actions),
    ):
        assert found(numbers, episode) == {}
    assert found((states, actions - states), np.arange(len(states))) == {}
    assert found((states[: MOMENTS + 2], (actions - states)[: MOMENTS + 2]), episode[: MOMENTS + 2]) == {}
    assert found((states[:0], actions[:0]), episode[:0]) == {}


def test_a_sign_is_told_by_joints_that_move_often() -> None:
    """One way and back may go against late actions by chance."""
    (states, actions), episode = record()
    turned, once = scaled(actions, 0, -1), episode == 0
    assert found((states, turned), episode) == {"actions of the other sign": ["waist"]}
    assert found((states[once], turned[once]), episode[once]) == {}


def test_moments_that_are_not_finite_are_left_out() -> None:
    (states, actions), episode = record()
    states[::17, 2] = np.nan
    assert found((states, actions), episode) == {}
    assert found((states, actions - states), episode) == {"actions are distances": ARM}
