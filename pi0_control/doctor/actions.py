"""Actions against the statistics of a policy: relative or absolute, over how many steps, and how fast."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pi0_control.doctor.findings import Finding
from pi0_control.doctor.match import GAIN, GOOD, Spread, misfit
from pi0_control.doctor.recording import Recording
from pi0_control.doctor.targets import Slopes
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import VectorStats
from pi0_control.policy.transforms import policy_actions

MOMENTS = 2000  # of a recording that chunks of actions are looked at from
HORIZONS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.5, 2, 3, 5, 10)  # times the policy's own
REACH = 0.5  # logarithm of how much further or less far actions reach than expected, of another horizon
SAME_REACH = 0.15  # of the right one
RATE_TOLERANCE = 0.05


def predicted(recording: Recording, config: PolicyConfig, horizon: int | None = None) -> NDArray[np.float32]:
    """The actions that follow some moments, as the policy would predict them, float32 [M, commanded joints].

    Args:
        recording: with actions, one for every joint of the robot.
        config: of the policy.
        horizon: how many follow each moment; the policy's if None.
    """
    moments = np.unique(np.linspace(0, len(recording.states) - 1, MOMENTS).astype(np.int64))
    chunks, is_there = recording.action_chunks(moments, horizon or config.model.action_horizon)
    return policy_actions(chunks, recording.states[moments], config)[is_there]


def target_joints(config: PolicyConfig) -> list[int]:
    """Joints whose actions are recorded as absolute targets, whatever the policy predicts."""
    names = config.robot.joint_names
    return [index for index in config.commanded if names[index] not in config.rates]


def target_slopes(recording: Recording, config: PolicyConfig) -> Slopes:
    """How the actions of :func:`target_joints` go with the states; the recording has actions for every joint."""
    assert recording.actions is not None
    joints = target_joints(config)
    return Slopes.of(recording.states[:, joints], recording.actions[:, joints], recording.episode)


def relative_or_absolute(recording: Recording, config: PolicyConfig, stats: VectorStats) -> Iterator[Finding]:
    """The statistics are of targets where the policy predicts distances to the state, or the other way round.

    The policy is to blame only where the recording has targets, as far as it should have them.
    """
    if target_joints(config) and not target_slopes(recording, config).is_target.any():
        return
    other = _other_space(config)
    changed = _commanded(np.array(config.delta_mask) | np.array(other.delta_mask), config)
    if not changed.any():
        return
    expected = _expected(stats, config)[changed]
    before, after = (misfit(Spread.of(predicted(recording, each))[changed], expected) for each in (config, other))
    if before.mean() - after.mean() > GAIN and after.mean() < GOOD:
        yield Finding(
            "error",
            "relative or absolute",
            "actions",
            f"the statistics fit {_space(other)}",
            _space(config),
            f"set action_space to {other.action_space} and delta_mask accordingly, or take the statistics of "
            f"{_space(config)}",
        )


def horizon(recording: Recording, config: PolicyConfig, stats: VectorStats) -> Iterator[Finding]:
    """Actions reach as far from the state as with another horizon, or as at another rate."""
    is_delta, own = _commanded(np.array(config.delta_mask), config), config.model.action_horizon
    expected = _expected(stats, config).std[is_delta]

    def reach(steps: int) -> float:
        seen = Spread.of(predicted(recording, config, steps)).std[is_delta]
        return float(np.log(np.maximum(seen, 1e-9) / np.maximum(expected, 1e-9)).mean())

    if not is_delta.any() or abs(reach(own)) <= REACH:
        return
    reaches = {steps: reach(steps) for factor in HORIZONS if (steps := round(factor * own)) > 0}
    best = min(reaches, key=lambda steps: abs(reaches[steps]))
    if abs(reaches[best]) < SAME_REACH:
        yield Finding(
            "warning",
            "horizon",
            "actions",
            f"they reach {np.exp(reach(own)):.2g} times as far as expected",
            f"the statistics fit chunks of {best} steps; the policy's are of {own}",
            "check action_horizon and control_rate_hz of the policy: its data had another horizon, rate or speed",
        )


def rate(recording: Recording, config: PolicyConfig) -> Iterator[Finding]:
    """The recording is of another control rate."""
    expected = config.robot.control_rate_hz
    if recording.rate_hz is not None and abs(recording.rate_hz / expected - 1) > RATE_TOLERANCE:
        factor = expected / recording.rate_hz
        yield Finding(
            "error",
            "rate",
            "actions",
            f"{recording.rate_hz:.3g} Hz",
            f"{expected:.3g} Hz",
            f"play and record at the policy's rate: here its chunks would run {1 / factor:.2g} times as fast",
        )


def _expected(stats: VectorStats, config: PolicyConfig) -> Spread:
    size = len(config.commanded)
    return Spread(stats.mean[:size], stats.std[:size])


def _commanded(mask: NDArray[np.bool_], config: PolicyConfig) -> NDArray[np.bool_]:
    return mask[list(config.commanded)]


def _other_space(config: PolicyConfig) -> PolicyConfig:
    """The policy if it predicted the other kind of actions, for all joints that have positions."""
    if config.action_space == "joint_delta":
        return replace(config, action_space="joint_absolute", delta_mask=(False,) * len(config.delta_mask))
    fixed = {*config.rates, *config.uncommanded}
    mask = tuple(joint.kind != "gripper" and joint.name not in fixed for joint in config.robot.joints)
    return replace(config, action_space="joint_delta", delta_mask=mask) if any(mask) else config


def _space(config: PolicyConfig) -> str:
    return "distances to the state" if config.action_space == "joint_delta" else "absolute targets"
