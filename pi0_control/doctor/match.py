"""Which numbers are which: units, order and signs under which a recording fits the statistics of a policy best.

How badly numbers fit is the Kullback-Leibler divergence of two normal distributions, what was seen from what is
expected: 0 where mean and spread agree, 0.5 for one standard deviation beside, 1.7 for a tenth of the spread, and
1,600 for degrees instead of radians.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

DEGREES = 180 / np.pi
UNITS = {"degrees": 1 / DEGREES, "radians": DEGREES}  # what was recorded, and the factor that makes it the other one
STILL = 1e-2  # of the expected spread; numbers that move less tell no more than where they are
GAIN = 2.0  # of fit, per number, that makes an explanation one
GOOD = 1.0  # how well an explanation has to fit
PRICE = 0.5  # of a number that changes its place or its sign


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean and standard deviation of D numbers, each float64 [D]."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[np.float32]) -> "Spread":
        """Of values [N, D]."""
        return Spread(values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64))

    def __getitem__(self, index: "NDArray[np.bool_] | NDArray[np.int64]") -> "Spread":
        """Some of the numbers."""
        return Spread(self.mean[index], self.std[index])


def misfit(seen: Spread, expected: Spread) -> NDArray[np.float64]:
    """Divergence of what was seen from what is expected, for shapes that broadcast."""
    std = np.maximum(seen.std, STILL * expected.std)
    return np.log(expected.std / std) + (std**2 + (seen.mean - expected.mean) ** 2) / (2 * expected.std**2) - 0.5


@dataclass(frozen=True, eq=False)
class Match:
    """How recorded numbers have to be changed to fit.

    Attributes:
        unit: what angles were recorded in where that is wrong, a key of :data:`UNITS`.
        column: int64 [D], the recorded number that fits each expected one.
        sign: float64 [D], 1 or -1.
        groups: numbers that were exchanged among each other.
    """

    unit: str | None
    column: NDArray[np.int64]
    sign: NDArray[np.float64]
    groups: tuple[tuple[int, ...], ...]

    @property
    def flipped(self) -> tuple[int, ...]:
        """Numbers that are in their place with the opposite sign."""
        return tuple(np.flatnonzero((self.sign < 0) & (self.column == np.arange(len(self.sign)))).tolist())


def match(seen: Spread, expected: Spread, is_angle: NDArray[np.bool_], is_gripper: NDArray[np.bool_]) -> Match:
    """The simplest change under which what was seen fits clearly better; none where it fits as it is.

    Args:
        seen, expected: of the same D numbers, all of which have some spread expected.
        is_angle: bool [D], numbers that may be in degrees.
        is_gripper: bool [D], numbers whose sign is never doubted.
    """
    moving = np.flatnonzero((seen.std > STILL * expected.std) & (expected.std > 0))
    unit = _unit(seen[moving], expected[moving], is_angle[moving], is_gripper[moving])
    costs = _costs(seen[moving], expected[moving], np.where(is_angle[moving], UNITS.get(unit or "", 1.0), 1.0))
    order, sign, groups = _order(costs, is_gripper[moving])
    column, signs = np.arange(len(seen.mean)), np.ones(len(seen.mean))
    column[moving], signs[moving] = moving[order], sign
    return Match(unit, column, signs, tuple(tuple(moving[list(group)].tolist()) for group in groups))


def _costs(seen: Spread, expected: Spread, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Misfit [2, D, D] of every recorded number (last axis) as every expected one, with its sign and the opposite."""
    mean, std = seen.mean * factor[:, None], seen.std * factor[:, None]
    wanted = Spread(expected.mean[:, None], expected.std[:, None])
    return np.stack([misfit(Spread(sign * mean, std), wanted) for sign in (1, -1)])


def _best(costs: NDArray[np.float64], is_gripper: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Recorded number for every expected one, and whether it is turned, such that all fit best."""
    turned = np.where(is_gripper[:, None], np.inf, costs[1] + PRICE)
    priced = np.minimum(costs[0], turned) + PRICE * ~np.eye(len(is_gripper), dtype=bool)
    order = linear_sum_assignment(priced)[1]
    rows = np.arange(len(order))
    return order, (turned[rows, order] < costs[0][rows, order]).astype(np.int64)


def _unit(seen: Spread, expected: Spread, is_angle: NDArray[np.bool_], is_gripper: NDArray[np.bool_]) -> str | None:
    """The unit of the angles where another one explains them, whatever their order."""

    def total(factor: float) -> float:
        costs = _costs(seen, expected, np.where(is_angle, factor, 1.0))
        order, turned = _best(costs, is_gripper)
        chosen = costs[turned, np.arange(len(order)), order]
        return float(chosen[is_angle].mean())

    if not is_angle.any():
        return None
    as_is, others = total(1.0), {unit: total(factor) for unit, factor in UNITS.items()}
    unit = min(others, key=lambda name: others[name])
    return unit if as_is - others[unit] > GAIN and others[unit] < GOOD else None


def _order(
    costs: NDArray[np.float64], is_gripper: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], list[list[int]]]:
    """Column and sign of every number, changed only where that fits clearly better, and the exchanged groups."""
    order, turned = _best(costs, is_gripper)
    column, sign, groups = np.arange(len(order)), np.ones(len(order)), []
    for group in _cycles(order):
        before = costs[0][group, group].mean()
        after = costs[turned[group], group, order[group]].mean()
        if before - after > GAIN and after < GOOD:
            column[group], sign[group] = order[group], 1 - 2 * turned[group]
            groups += [group] if len(group) > 1 else []
        else:
            alone = (costs[0] - costs[1])[group, group] > GAIN
            alone &= (costs[1][group, group] < GOOD) & ~is_gripper[group]
            sign[group] = np.where(alone, -1, 1)
    return column, sign, groups


def _cycles(order: NDArray[np.int64]) -> list[list[int]]:
    """A permutation as cycles, with those of a single number."""
    cycles, left = [], set(range(len(order)))
    while left:
        cycle = [min(left)]
        while (following := int(order[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        cycles.append(cycle)
    return cycles
