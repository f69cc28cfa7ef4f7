"""Actions against the states they lead to: absolute targets in the units of the states, or something else.

A joint is near its target and on the way to it, so that within an episode ``action[t]`` is about ``slope * state[t] +
lead * (state[t + AHEAD] - state[t])``. The slope is 1 for targets, 57 for degrees where states are radians, -1 for the
other sign, and 0 for distances to the state, steps and velocities.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor.findings import Finding

AHEAD = 3  # steps
MOMENTS = 30  # fewer tell nothing
PASSES = 5  # times that a joint passes its mean; alone, one that does less often may go against its actions by chance
MOVING = 0.1  # of the median spread; joints that move less tell nothing
EXPLAINED = 0.5  # share of the variance of actions; less is told by chance; steps are small and need not be explained
DISTANCE = 0.3  # slope below which actions are no targets
OTHER_SIGN = -0.5  # slope below which they are of the other sign
OTHER_UNIT = 5.0  # slope above which, or one over it below which, they are of another unit where the means agree
MEANS = 4.0  # standard deviations that means may be apart: a gripper that squeezes has a steep slope and no other unit


@dataclass(frozen=True, eq=False)
class Slopes:
    """How the actions of D joints go with their states.

    Attributes:
        slope: float64 [D], of actions against states.
        is_moving: bool [D], the state moves, and not by noise.
        is_often: bool [D], the state passes its mean often.
        is_told: bool [D], it moves and explains the actions, so that the slope can be trusted.
        is_way: bool [D], it moves and the actions are about where it goes rather than where it is.
        is_scaled: bool [D], the means of actions and states are apart by the same factor as their changes.
    """

    slope: NDArray[np.float64]
    is_moving: NDArray[np.bool_]
    is_often: NDArray[np.bool_]
    is_told: NDArray[np.bool_]
    is_way: NDArray[np.bool_]
    is_scaled: NDArray[np.bool_]

    @staticmethod
    def of(states: NDArray[np.float32], actions: NDArray[np.float32], episode: NDArray[np.int64]) -> "Slopes":
        """Of states and actions, both [N, D], and the episode of each moment, int64 [N], rising."""
        now = np.flatnonzero(episode[:-AHEAD] == episode[AHEAD:])
        now = now[np.isfinite(np.hstack([states[now], states[now + AHEAD], actions[now]])).all(1)]
        if len(now) < MOMENTS:
            return Slopes(np.zeros(states.shape[1]), *np.zeros((5, states.shape[1]), np.bool_))
        state, action = states[now].astype(np.float64), actions[now].astype(np.float64)
        place, told = _deviations(state, episode[now]), _deviations(action, episode[now])
        way = _deviations(states[now + AHEAD] - state, episode[now])
        slope, lead, explained = np.transpose([_fit(*columns) for columns in zip(place.T, way.T, told.T, strict=True)])
        spread, told_spread = place.std(0), told.std(0)
        is_next = (np.diff(now) == 1) & (np.diff(episode[now]) == 0)
        passes = (np.diff(place > 0, axis=0) & is_next[:, None]).sum(0)
        is_moving = way.std(0) < spread  # not so where there is only noise
        if is_moving.any():
            is_moving &= spread > MOVING * np.median(spread[is_moving])
        is_step = (told_spread > 0) & (told_spread < DISTANCE * spread)
        return Slopes(
            slope,
            is_moving,
            passes >= PASSES,
            is_moving & (explained > EXPLAINED),
            is_moving & ((explained > EXPLAINED) | is_step) & (np.abs(lead) * way.std(0) > np.abs(slope) * spread),
            np.abs(action.mean(0) - slope * state.mean(0)) <= MEANS * told_spread,
        )

    @property
    def is_distance(self) -> NDArray[np.bool_]:
        """Joints of actions that are distances, steps or velocities, bool [D]; all that tell are so together."""
        is_distance = self.is_way & (np.abs(self.slope) < DISTANCE)
        is_unlike = is_distance | (self.is_told & (self.slope < OTHER_SIGN))
        return is_unlike & (is_distance.sum() > 1) & (2 * is_unlike.sum() > self.is_moving.sum())

    @property
    def is_other_sign(self) -> NDArray[np.bool_]:
        """Joints of actions that fall where the states rise, bool [D]."""
        return self.is_told & self.is_often & (self.slope < OTHER_SIGN) & ~self.is_distance

    @property
    def is_other_unit(self) -> NDArray[np.bool_]:
        """Joints of actions that are a multiple of the states, bool [D]."""
        is_small = (self.slope > 0) & (self.slope < 1 / OTHER_UNIT) & ~self.is_way
        return self.is_told & (is_small | (self.slope > OTHER_UNIT)) & self.is_scaled

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Joints of actions that are where the states go, bool [D]."""
        return self.is_told & (self.slope > DISTANCE) & ~self.is_other_unit


def unlike_states(slopes: Slopes, names: Sequence[str], explained: Collection[str] = ()) -> Iterator[Finding]:
    """Actions that are no absolute targets in the units and with the sign of the states.

    Args:
        slopes: of joints whose actions should be targets.
        names: of these joints.
        explained: those of them whose states are known to be of another sign or unit.
    """
    is_open = np.array([name not in explained for name in names], np.bool_)
    kinds = {
        "actions are distances": (
            slopes.is_distance,
            "record absolute targets: add a distance or step to the state it was taken from (velocities are rates of "
            "the policy)",
        ),
        "actions in other units": (
            slopes.is_other_unit & is_open,
            "divide the actions by the factor between the two units: 57.3 for degrees and radians, 100 for percent",
        ),
        "actions of the other sign": (
            slopes.is_other_sign & is_open,
            "turn those that are wrong, actions or states: by their sign, or 1 minus the value for a gripper",
        ),
    }
    for name, (which, change) in kinds.items():
        if which.any():
            slope = float(np.median(slopes.slope[which]))
            yield Finding(
                "error",
                name,
                f"actions {', '.join(names[index] for index in np.flatnonzero(which).tolist())}",
                f"they change {slope:.2g} times as much as the states",
                "about 1 times: absolute targets in the units of the states",
                change,
            )


def _deviations(values: NDArray[np.float64], episode: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values [N, D] from their mean within each episode."""
    index, count = np.unique(episode, return_inverse=True, return_counts=True)[1:]
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, index, values)
    return values - (sums / count[:, None])[index]


def _fit(place: NDArray[np.float64], way: NDArray[np.float64], told: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, lead, and the share of the variance of actions that they explain; each argument [N]."""
    terms = np.stack([place, way], 1)
    slope, lead = np.linalg.lstsq(terms, told, rcond=None)[0]
    whole = (told**2).sum()
    return slope, lead, 1 - ((told - terms @ [slope, lead]) ** 2).sum() / whole if whole > 0 else 0.0
