"""All checks of one policy, alone or with what its robot shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor import actions
from pi0_control.doctor.cameras import check_cameras
from pi0_control.doctor.findings import Finding
from pi0_control.doctor.match import Spread
from pi0_control.doctor.numbers import (
    Numbers,
    Vectors,
    beyond_limits,
    confusions,
    grippers,
    out_of_range,
    signs,
    standing,
    tiny_spans,
)
from pi0_control.doctor.recording import Recording
from pi0_control.doctor.targets import unlike_states
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import NormStats
from pi0_control.policy.transforms import for_all_joints, policy_states

STATE, ACTIONS = "state", "actions"


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found.

    Attributes:
        findings: errors first.
        state, actions: in the units of the statistics; with values where they could be compared.
    """

    findings: tuple[Finding, ...]
    state: Numbers
    actions: Numbers


def examine(config: PolicyConfig, stats: NormStats, recording: Recording | None = None) -> Examination:
    """What does not fit between a policy, its statistics and what its robot shows.

    Args:
        config, stats: of the policy; its weights are not needed.
        recording: what the robot showed; without it only the policy itself is looked at.
    """
    joints = config.robot.joints
    state = Numbers(STATE, joints, stats.state)
    action = Numbers(ACTIONS, [joints[index] for index in config.commanded], stats.actions)
    findings = [*tiny_spans(state, config.norm), *tiny_spans(action, config.norm)]
    if config.units == "robot":
        findings += beyond_limits(state)
    if recording is not None:
        findings += [*check_cameras(config, recording.images), *actions.rate(recording, config)]
        recording, unfit = _comparable(recording, config)
        findings += unfit
    if recording is not None:
        state = replace(state, values=policy_states(recording.states, config))
        confused, ranges = _check_state(config, state, recording)
        findings += [*confused, *ranges]
        if recording.actions is not None:
            action, more = _check_actions(config, state, action, recording, confused, ranges)
            findings += more
    return Examination(tuple(sorted(findings, key=lambda finding: finding.severity != "error")), state, action)


def _comparable(recording: Recording, config: PolicyConfig) -> tuple[Recording | None, list[Finding]]:
    """The recording in the order of the robot, without moments that lack numbers; None if nothing is left."""
    recording, findings = in_robot_order(recording, config)
    if any(finding.name == "width" for finding in findings):
        return None, findings
    recording, lacking = _finite(recording)
    return (recording if len(recording.states) else None), findings + lacking


def _turned(recording: Recording, config: PolicyConfig) -> list[int]:
    """Joints whose states and actions are of opposite signs."""
    if recording.actions is None:
        return []
    is_turned = actions.target_slopes(recording, config).is_other_sign
    return [joint for joint, turned in zip(actions.target_joints(config), is_turned, strict=True) if turned]


def _check_state(config: PolicyConfig, state: Numbers, recording: Recording) -> tuple[list[Finding], list[Finding]]:
    """Confusions, and where there are none that explain it, what lies how in the statistics."""
    begin, turned = _begin(recording, state, config), _turned(recording, config)
    confused, found = confusions(state, state.expected, _is_named(recording.state_names, state))
    is_explained = _has_error(confused)
    for index, finding in signs(state, found.flipped, begin, turned):
        confused.append(finding)
        turned += [index] if finding.severity == "error" else []
    return confused, [] if is_explained else _ranges(state, begin, turned)


def _check_actions(
    config: PolicyConfig,
    state: Numbers,
    action: Numbers,
    recording: Recording,
    confused: Sequence[Finding],
    ranges: Sequence[Finding],
) -> tuple[Numbers, list[Finding]]:
    """Actions unlike the states, or confusions; where there are none, how the actions lie in the statistics."""
    of_state = [*confused, *(finding for finding in ranges if finding.name != "out of range")]
    wrong = {finding.where for finding in of_state if finding.severity == "error"}
    names = [config.robot.joint_names[index] for index in actions.target_joints(config)]
    explained = names if STATE in wrong else [name for name in names if f"{STATE} {name}" in wrong]
    if unlike := [*unlike_states(actions.target_slopes(recording, config), names, explained)]:
        return action, unlike
    absolute = replace(config, action_space="joint_absolute", delta_mask=(False,) * len(state.joints))
    targets = replace(action, values=actions.predicted(recording, absolute, 1))
    is_named = _is_named(recording.action_names, action) or _is_named(recording.action_names, state)
    found = confusions(targets, _expected_targets(config, state, action), is_named)[0]
    findings = [finding for finding in found if finding.severity == "error" or not confused]
    if not _has_error(findings):
        findings += actions.relative_or_absolute(recording, config, action.stats)
    if _has_error(findings) or _has_error(confused):
        return action, findings
    action = replace(action, values=actions.predicted(recording, config))
    return action, [*findings, *_ranges(action), *actions.horizon(recording, config, action.stats)]


def _has_error(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _is_named(names: Sequence[str], numbers: Numbers) -> bool:
    """Names tell which number is which joint's."""
    return sorted(names) == sorted(joint.name for joint in numbers.joints)


def _expected_targets(config: PolicyConfig, state: Numbers, action: Numbers) -> Spread:
    """Absolute targets are like states where the policy predicts the distance to them; of a rate they are not known."""
    commanded = np.array(config.commanded)
    is_delta = np.array(config.delta_mask)[commanded]
    is_rate = np.array([joint.name in config.rates for joint in action.joints])
    like_state, like_action = state.expected[commanded], action.expected
    std = np.where(is_delta, like_state.std, like_action.std)
    return Spread(np.where(is_delta, like_state.mean, like_action.mean), np.where(is_delta & is_rate, 0.0, std))


def _begin(recording: Recording, state: Numbers, config: PolicyConfig) -> Vectors:
    """Where episodes begin, and the rest position, each [D], in the units of the statistics."""
    assert state.values is not None
    first = np.unique(recording.episode, return_index=True)[1]
    return np.median(state.values[first], axis=0), policy_states(config.robot.home, config).astype(np.float64)


def _ranges(numbers: Numbers, begin: Vectors | None = None, explained: Sequence[int] = ()) -> list[Finding]:
    """Grippers, joints that stand still and joints out of range, but for those that something else explains."""
    gripping = [*grippers(numbers, begin)]
    beside = {*explained, *(index for index, _ in gripping)}
    return [*(finding for _, finding in gripping), *standing(numbers), *out_of_range(numbers, beside)]


def in_robot_order(recording: Recording, config: PolicyConfig) -> tuple[Recording, list[Finding]]:
    """The recording with one number per joint, in the order of the robot; findings where it was not so."""
    findings: list[Finding] = []
    states = _ordered(recording.states, recording.state_names, config, STATE, findings)
    values = recording.actions
    if values is not None and values.shape[1] == len(config.commanded) < len(config.robot.joints):
        values = for_all_joints(values, config)
    elif values is not None:
        values = _ordered(values, recording.action_names, config, ACTIONS, findings)
    return replace(recording, states=states, actions=values), findings


def _ordered(
    values: NDArray[np.float32], names: tuple[str, ...], config: PolicyConfig, where: str, findings: list[Finding]
) -> NDArray[np.float32]:
    expected = config.robot.joint_names
    if values.shape[1] != len(expected):
        findings.append(
            Finding(
                "error",
                "width",
                where,
                f"{values.shape[1]} numbers {', '.join(names)}".strip(),
                f"{len(expected)}: {', '.join(expected)}",
                "record what the policy's robot has",
            )
        )
    elif names != expected and sorted(names) == sorted(expected):
        findings.append(
            Finding(
                "error",
                "joint order",
                where,
                ", ".join(names),
                ", ".join(expected),
                "send the joints in the order of the robot file",
            )
        )
        return values[:, [names.index(name) for name in expected]]
    return values


def _finite(recording: Recording) -> tuple[Recording, list[Finding]]:
    """The moments whose numbers are all finite."""
    numbers = [recording.states] if recording.actions is None else [recording.states, recording.actions]
    is_finite = np.asarray(np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1))
    if is_finite.all():
        return recording, []
    seen = f"{(~is_finite).sum()} of {len(is_finite)} moments"
    finding = Finding("error", "not finite", STATE, seen, "a number for every joint", "find out what sends none")
    left = replace(
        recording,
        states=recording.states[is_finite],
        actions=None if recording.actions is None else recording.actions[is_finite],
        episode=recording.episode[is_finite],
    )
    return left, [finding]
