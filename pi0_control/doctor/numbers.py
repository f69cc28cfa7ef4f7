"""States and actions against the statistics of a policy, joint by joint."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor.findings import Finding
from pi0_control.doctor.match import STILL, UNITS, Match, Spread, match, misfit
from pi0_control.errors import CheckpointError
from pi0_control.policy.norm_stats import NormKind, VectorStats
from pi0_control.robot import Joint

TINY_SPAN = 1e-3  # between q01 and q99; normalising magnifies noise to full scale. Training here gives no joint less
ABOVE = 1.1  # times what training gives a joint that stands still, up to which it is known as such
NORMAL_Q99 = 2.326  # standard deviations
MARGIN = 0.02  # of that span, within which a value is not counted as outside
FAR_OUTSIDE = 1.0  # spans between q01 and q99 that a value lies beyond them
FAR_SHARE, OUTSIDE_SHARE = 0.05, 0.25  # of moments: far outside is wrong, outside may be; 2 % are expected
BESIDE = 0.3  # spans that an inverted gripper is beside where it should be
FAR_HOME = 2.0  # standard deviations that a rest position is from zero, where its sign shows
BAD = 3.0  # misfit of a gripper that has another range

Vectors = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Numbers:
    """What was seen of D joints, and what is expected.

    Attributes:
        where: ``state`` or ``actions``.
        joints: D of them.
        stats: of at least D entries.
        values: float32 [N, D], finite, in the units of the statistics; None where nothing was recorded.

    Raises:
        CheckpointError: there are statistics of fewer joints.
    """

    where: str
    joints: Sequence[Joint]
    stats: VectorStats
    values: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if len(self.stats.mean) < len(self.joints):
            names = [joint.name for joint in self.joints]
            raise CheckpointError(
                f"The statistics of {self.where} have {len(self.stats.mean)} entries; expected one for each of {names}."
            )

    @property
    def expected(self) -> Spread:
        """As a normal distribution."""
        size = len(self.joints)
        return Spread(self.stats.mean[:size], self.stats.std[:size])

    @property
    def bounds(self) -> Vectors:
        """Quantiles 1 % and 99 % that are expected, each [D]; of a normal distribution where there are none."""
        size, stats = len(self.joints), self.stats
        if stats.q01 is None or stats.q99 is None:
            low, high = stats.mean - NORMAL_Q99 * stats.std, stats.mean + NORMAL_Q99 * stats.std
        else:
            low, high = stats.q01, stats.q99
        return low[:size], high[:size]

    def beyond(self) -> NDArray[np.float64]:
        """How many spans between the quantiles every value lies beyond them, [N, D]; below 0 inside."""
        assert self.values is not None
        low, high = self.bounds
        return np.maximum(low - self.values, self.values - high) / np.maximum(high - low, TINY_SPAN)

    def outside(self) -> NDArray[np.float64]:
        """Share of the values beyond the quantiles, [D]."""
        return (self.beyond() > MARGIN).mean(0)

    def seen_bounds(self) -> Vectors:
        """Quantiles 1 % and 99 % that were seen, each [D]."""
        assert self.values is not None
        low, high = np.quantile(self.values, (0.01, 0.99), axis=0)
        return low, high


def span(low: float, high: float) -> str:
    """A range in words."""
    return f"{low:.3g} to {high:.3g}"


def tiny_spans(numbers: Numbers, norm: NormKind) -> Iterator[Finding]:
    """Joints whose statistics have next to no spread."""
    lower, upper = numbers.stats.bounds(norm)
    what, least = ("2 std", 2 * TINY_SPAN) if norm == "z_score" else ("span", TINY_SPAN)
    for joint, spread in zip(numbers.joints, upper - lower, strict=False):
        if spread < ABOVE * least:
            yield Finding(
                "warning",
                "tiny span",
                f"{numbers.where} {joint.name}",
                f"{what} {spread:.2g}",
                f"more than {least:g}",
                "noise of this joint fills the whole range: widen its statistics to the noise of the robot, or take "
                "them from data in which it moves",
            )


def beyond_limits(numbers: Numbers) -> Iterator[Finding]:
    """Joints whose statistics are of positions that the robot does not have."""
    low, high = numbers.bounds
    for joint, start, end in zip(numbers.joints, low, high, strict=True):
        room = (joint.upper - joint.lower) / 2
        if start < joint.lower - room or end > joint.upper + room:
            yield Finding(
                "error",
                "statistics beyond limits",
                f"{numbers.where} {joint.name}",
                span(start, end),
                f"{span(joint.lower, joint.upper)} (limits of the robot file)",
                "the statistics are of another robot, joint order or unit: choose others, or another robot file",
            )


def confusions(numbers: Numbers, expected: Spread, is_named: bool) -> tuple[list[Finding], Match]:
    """Wrong units and orders, where another one fits ``expected`` clearly better.

    An order that names tell is not overruled by the numbers: an arm that works where another one did in training has
    its numbers.
    """
    assert numbers.values is not None
    is_angle, is_gripper = (
        np.array([joint.kind == kind for joint in numbers.joints]) for kind in ("revolute", "gripper")
    )
    seen = Spread.of(numbers.values)
    found = match(seen, expected, is_angle, is_gripper)
    findings = [_wrong_unit(numbers, found.unit, seen[is_angle], expected[is_angle])] if found.unit else []
    return [*findings, *(_wrong_order(numbers, found, group, is_named) for group in found.groups)], found


def signs(
    numbers: Numbers, flipped: Sequence[int], begin: Vectors, turned: Collection[int]
) -> Iterator[tuple[int, Finding]]:
    """States that fit clearly better with the opposite sign; with their index.

    That alone may be another part of the workspace. The sign is wrong where it is not that of the actions, or where
    episodes begin on the other side of zero than the rest position of the robot file is, far from both.

    Args:
        numbers: states, with values.
        flipped: what fits better so.
        begin: where episodes begin, and the rest position, each [D].
        turned: joints whose states and actions are of opposite signs.
    """
    assert numbers.values is not None
    seen, expected, (first, home) = Spread.of(numbers.values), numbers.expected, begin
    is_opposite = (np.abs(first + home) < np.abs(home) / 2) & (np.abs(home) > FAR_HOME * expected.std)
    for index in flipped:
        means = f"about {seen.mean[index]:.3g}", f"about {expected.mean[index]:.3g}"
        if index in turned:
            change = "turn the sign of this joint in the states, which is not that of the actions"
        elif is_opposite[index]:
            change = "turn the sign of this joint, in states and actions"
        else:
            change = "where it works on the other side than in training, train with such data; otherwise turn its sign"
        severity: Literal["error", "warning"] = "error" if index in turned or is_opposite[index] else "warning"
        yield index, Finding(severity, "sign", f"{numbers.where} {numbers.joints[index].name}", *means, change)


def _wrong_unit(numbers: Numbers, unit: str, seen: Spread, expected: Spread) -> Finding:
    sizes = [f"about {np.median(np.abs(spread.mean)):.3g}" for spread in (seen, expected)]
    change = f"multiply the angles by {UNITS[unit]:.6g}"
    return Finding("error", "degrees and radians", numbers.where, f"{unit}, {sizes[0]}", sizes[1], change)


def _wrong_order(numbers: Numbers, found: Match, group: Sequence[int], is_named: bool) -> Finding:
    names = [joint.name for joint in numbers.joints]
    holder = {int(found.column[index]): index for index in group}  # what the number in a place looks like
    places = sorted(holder)
    like = [("-" if found.sign[holder[place]] < 0 else "") + names[holder[place]] for place in places]
    return Finding(
        "warning" if is_named else "error",
        "joint order",
        numbers.where,
        f"in the places of {', '.join(names[place] for place in places)}: what looks like {', '.join(like)}",
        "the order of the robot file",
        "the names are in that order: are they those of the numbers?" if is_named else "send the joints in that order",
    )


def grippers(numbers: Numbers, begin: Vectors | None = None) -> Iterator[tuple[int, Finding]]:
    """Grippers that are the other way round, or have another range; with their index.

    How long a gripper is open depends on the task, so that alone says nothing: an inverted one also begins episodes
    where the rest position of the robot file is not.

    Args:
        numbers: with values.
        begin: where episodes begin, and the rest position, each [D]; None where that is not known.
    """
    assert numbers.values is not None
    seen, expected = Spread.of(numbers.values), numbers.expected
    (low, high), (seen_low, seen_high) = numbers.bounds, numbers.seen_bounds()

    def is_turned(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
        beside, turned = (np.abs(value - wanted) for value in (found, low + high - found))
        return (beside > BESIDE * (high - low)) & (turned < beside / 2)

    is_inverted = np.zeros(len(numbers.joints), np.bool_)
    if begin is not None:
        is_inverted = is_turned(seen.mean, expected.mean) & is_turned(*begin)
        is_inverted &= seen_high - seen_low > BESIDE * (high - low)  # otherwise it has another range
    for index, joint in enumerate(numbers.joints):
        if joint.kind != "gripper" or seen.std[index] <= STILL * expected.std[index]:
            continue
        ranges = span(seen_low[index], seen_high[index]), span(low[index], high[index])
        where = f"{numbers.where} {joint.name}"
        if is_inverted[index]:
            means = (f"{ranges[0]}, mostly {seen.mean[index]:.2g}", f"{ranges[1]}, mostly {expected.mean[index]:.2g}")
            change = f"open and closed seem exchanged: if so, send {low[index] + high[index]:.3g} minus the value"
            yield index, Finding("error", "gripper inverted", where, *means, change)
        elif misfit(seen, expected)[index] > BAD:
            factor = (high[index] - low[index]) / max(seen_high[index] - seen_low[index], 1e-9)
            change = f"bring it into that range, perhaps times {factor:.3g}"
            yield index, Finding("error", "gripper range", where, *ranges, change)


def standing(numbers: Numbers) -> Iterator[Finding]:
    """Joints that do not move at all, and should."""
    assert numbers.values is not None
    low, high = numbers.bounds
    value = numbers.values[0]
    is_still = np.ptp(numbers.values, axis=0) <= STILL * numbers.expected.std
    for index in np.flatnonzero(is_still & (high - low > ABOVE * TINY_SPAN)).tolist():
        yield Finding(
            "warning",
            "constant",
            f"{numbers.where} {numbers.joints[index].name}",
            f"{value[index]:.3g} throughout",
            span(low[index], high[index]),
            "is it connected, and does the recording show a task that moves it?",
        )


def out_of_range(numbers: Numbers, explained: Collection[int]) -> Iterator[Finding]:
    """Joints often beyond what the policy has seen, but for those that something else explains."""
    beyond, outside = numbers.beyond(), numbers.outside()
    (low, high), (seen_low, seen_high) = numbers.bounds, numbers.seen_bounds()
    far = (beyond > FAR_OUTSIDE).mean(0)
    for index, joint in enumerate(numbers.joints):
        if index in explained or (far[index] <= FAR_SHARE and outside[index] <= OUTSIDE_SHARE):
            continue
        is_far = far[index] > FAR_SHARE
        yield Finding(
            "error" if is_far else "warning",
            "out of range",
            f"{numbers.where} {joint.name}",
            f"{span(seen_low[index], seen_high[index])}: {outside[index]:.0%} outside, up to "
            f"{beyond[:, index].max():.1f} spans",
            span(low[index], high[index]),
            "check zero, unit and limits of this joint; where they are right, start nearer to the training data or "
            "train with such data",
        )
