"""Order, signs and units are found wherever they show, and nothing is changed that fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi0_control.doctor.match import DEGREES, Spread, match, misfit

EXPECTED = Spread(np.array([-0.1, 0.7, 1.7, -0.9, 2.6, 0.5]), np.array([0.1, 0.02, 0.3, 0.06, 0.15, 0.25]))
ANGLES, GRIPPERS = np.arange(6) < 5, np.arange(6) == 5
NEAR = st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6).map(np.array)  # standard deviations beside


def seen(near: np.ndarray, order: list[int], signs: np.ndarray, factor: float = 1.0) -> Spread:
    """What is expected, a little off; number ``order[i]`` of the recording is the i-th expected one."""
    mean, std = np.zeros(6), np.zeros(6)
    factors = np.where(ANGLES, factor, 1.0)
    mean[order] = (EXPECTED.mean + near * EXPECTED.std) * signs * factors
    std[order] = EXPECTED.std * np.exp(near / 2) * factors
    return Spread(mean, std)


@given(NEAR, st.permutations(range(6)), st.lists(st.sampled_from([1.0, -1.0]), min_size=6, max_size=6))
def test_every_order_and_sign_is_found(near, order, signs) -> None:
    signs = np.where(GRIPPERS | (EXPECTED.mean == -0.1), 1.0, signs)  # about zero, a sign does not show
    found = match(seen(near, order, signs), EXPECTED, ANGLES, GRIPPERS)
    assert found.unit is None
    assert (found.column.tolist(), found.sign.tolist()) == (list(order), signs.tolist())
    assert sorted(sum(found.groups, ())) == [index for index in range(6) if order[index] != index]


@given(NEAR)
def test_what_fits_is_left_alone_and_units_are_found(near) -> None:
    order, signs = list(range(6)), np.ones(6)
    for factor, unit in ((1.0, None), (DEGREES, "degrees"), (1 / DEGREES, "radians")):
        found = match(seen(near, order, signs, factor), EXPECTED, ANGLES, GRIPPERS)
        assert (found.unit, found.column.tolist(), found.flipped, found.groups) == (unit, order, (), ())


def test_what_stands_still_is_never_taken_for_another() -> None:
    still = Spread(EXPECTED.mean[::-1], np.zeros(6))
    found = match(still, EXPECTED, ANGLES, GRIPPERS)
    assert (found.unit, found.groups, found.flipped) == (None, (), ())


def test_misfit_is_the_divergence_of_normal_distributions() -> None:
    expected = Spread(np.zeros(4), np.ones(4))
    values = misfit(Spread(np.array([0, 1, 0, 0]), np.array([1, 1, 0.1, DEGREES])), expected)
    assert values == pytest.approx([0, 0.5, np.log(10) - 0.495, 1637], rel=1e-3)
