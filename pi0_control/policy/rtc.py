"""Real-time chunking: what is left of the chunk under way, as the sampler takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.rtc import Guidance, Jacobian, Schedule, prefix_weights
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.transforms import PolicyTransforms
from pi0_control.types import ChunkPrefix

Mode = Literal["guided", "trained"]


@dataclass(frozen=True)
class RtcConfig:
    """How a policy continues the chunk under way.

    Attributes:
        mode: ``guided`` pulls the new chunk towards what is left of the old one, with any policy; ``trained`` gives the
            frozen actions to a policy that was trained to continue them (its ``rtc_max_delay``), and the rest is free.
        schedule: of a guided chunk, how the weight falls from the frozen actions to the prefix's end.
        jacobian: of a guided chunk, ``full`` differentiates the network, ``identity`` does without.
        max_guidance: of a guided chunk, cap of its weight, 0 for no guidance; the policy's number of denoising steps
            caps it too, since above it a step overshoots.
    """

    mode: Mode = "guided"
    schedule: Schedule = "exp"
    jacobian: Jacobian = "identity"
    max_guidance: float = 5.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a setting that does not exist."""
        for name, choices in (("mode", Mode), ("schedule", Schedule), ("jacobian", Jacobian)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"rtc {name} is {getattr(self, name)!r}; expected one of {list(get_args(choices))}.")
        if not 0 <= self.max_guidance < float("inf"):
            raise ConfigError(f"rtc max_guidance is {self.max_guidance}; expected zero or more.")

    def check(self, config: PolicyConfig) -> None:
        """Raise ConfigError if the policy cannot be continued so."""
        if self.mode == "trained" and not config.rtc_max_delay:
            raise ConfigError("The policy was not trained to continue given actions (rtc_max_delay 0); 'guided' works.")


def steer(
    rtc: RtcConfig, transforms: PolicyTransforms, prefixes: Sequence[ChunkPrefix | None], states: ArrayLike
) -> tuple[list[Tensor] | None, Guidance | None]:
    """The sampler's ``known_actions`` or its ``guidance`` for one batch; both None if no row has a prefix.

    Leftovers are absolute and go through the same steps as training targets, so a policy that predicts deltas sees
    them relative to the state of the new observation.

    Args:
        rtc: how to continue.
        transforms: the policy's.
        prefixes: one per row, None where there is nothing to continue.
        states: [B, D] in the robot's units, of the new observations.

    Raises:
        ConfigError: a prefix that does not fit the robot or the horizon, or is longer than the policy was trained for.
    """
    config = transforms.config
    if all(prefix is None for prefix in prefixes):
        return None, None
    nothing = ChunkPrefix(np.zeros((0, len(config.robot.joints)), np.float32), 0, 0)
    rows = [nothing if prefix is None else prefix for prefix in prefixes]
    leftovers = []
    for prefix, state in zip(rows, np.asarray(states), strict=True):
        _check(prefix, config)
        leftovers.append(torch.from_numpy(transforms.targets(prefix.actions[None], state[None])[0]))
    if rtc.mode == "guided":
        return None, _guidance(rtc, config, rows, leftovers)
    longest = max(prefix.delay for prefix in rows)
    if longest > config.rtc_max_delay:
        raise ConfigError(f"The prefix has delay {longest}; the policy was trained for 0 to {config.rtc_max_delay}.")
    return [leftover[: prefix.delay] for prefix, leftover in zip(rows, leftovers, strict=True)], None


def _guidance(rtc: RtcConfig, config: PolicyConfig, rows: list[ChunkPrefix], leftovers: list[Tensor]) -> Guidance:
    """Weight 0 beyond the leftover, beyond the robot's joints, and in rows that have no leftover."""
    horizon, joints = config.model.action_horizon, len(config.commanded)
    targets, weights = torch.zeros(2, len(rows), horizon, config.model.action_dim)
    for row, (prefix, leftover) in enumerate(zip(rows, leftovers, strict=True)):
        length = min(len(leftover), horizon)
        targets[row, :length] = leftover[:length]
        end = min(prefix.end, length)
        weights[row, :, :joints] = prefix_weights(horizon, prefix.delay, end, rtc.schedule)[:, None]
    return Guidance(targets, weights, min(rtc.max_guidance, config.num_steps), rtc.jacobian)


def _check(prefix: ChunkPrefix, config: PolicyConfig) -> None:
    shape, joints, horizon = np.shape(prefix.actions), len(config.robot.joints), config.model.action_horizon
    if len(shape) != 2 or shape[1] != joints or not np.isfinite(prefix.actions).all():
        raise ConfigError(f"The prefix has actions of shape {list(shape)}; expected finite ones [K, {joints}].")
    if not (0 <= prefix.delay <= shape[0] and prefix.delay <= prefix.end <= horizon):
        raise ConfigError(
            f"The prefix has {shape[0]} actions, delay {prefix.delay} and end {prefix.end}; expected a delay within "
            f"its actions and an end from there to the horizon {horizon}."
        )
