"""Real-time chunking: a new chunk is pulled towards what is left of the last one while it is denoised.

Source: "Real-Time Execution of Action Chunking Flow Policies" (arXiv 2506.07339). Its time τ runs from noise to data,
so τ = 1 - time here, and the guidance is subtracted from a velocity that points from data to noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pi0_control.errors import ConfigError

Schedule = Literal["exp", "linear", "ones", "zeros"]
Jacobian = Literal["identity", "full"]


def prefix_weights(horizon: int, delay: int, end: int, schedule: Schedule) -> Tensor:
    """How firmly each action of a new chunk is held to the leftover, float32 [horizon] in [0, 1].

    1 for the first ``delay`` actions, which are played before the new chunk can arrive; 0 from ``end`` on; between
    them falling (``linear``, ``exp``), 1 (``ones``) or 0 (``zeros``). A delay beyond the end counts as the end.

    Raises:
        ConfigError: no such schedule, or delay and end do not lie in the horizon.
    """
    if schedule not in get_args(Schedule):
        raise ConfigError(f"The schedule is {schedule!r}; expected one of {list(get_args(Schedule))}.")
    if not (0 <= delay <= horizon and 0 <= end <= horizon):
        raise ConfigError(f"The delay is {delay} and the end {end}; expected both in 0 to the horizon {horizon}.")
    start = min(delay, end)
    index = torch.arange(horizon, dtype=torch.float32)
    falling = ((end - index) / (end - start + 1)).clamp(0, 1)
    between = {
        "exp": falling * torch.expm1(falling) / math.expm1(1),
        "linear": falling,
        "ones": torch.ones(horizon),
        "zeros": torch.zeros(horizon),
    }[schedule]
    return torch.where(index < start, 1.0, torch.where(index < end, between, 0.0))


def guidance_weight(time: float, max_guidance: float) -> float:
    """Weight λ of the guidance at a time of the flow, 1 noise .. 0 data; at most ``max_guidance`` (the paper's β).

    With τ = 1 - time it is ``(1 - τ) / τ * (τ² + (1 - τ)²) / (1 - τ)²``.
    """
    spread = time * (1 - time)
    return max_guidance if spread <= 0 else min(max_guidance, (time**2 + (1 - time) ** 2) / spread)


@dataclass(frozen=True)
class Guidance:
    """Where to pull the chunks of a batch, and how.

    Attributes:
        targets: what they should be, in model space, [B, horizon, action_dim]; any finite number where the weight is 0.
        weights: how much each entry counts, same shape; 0 is free. See :func:`prefix_weights`.
        max_guidance: cap β of the guidance weight; above the number of denoising steps a step overshoots.
        jacobian: ``full`` sends the error back through the network, as the paper does; ``identity`` takes the clean
            estimate to move as the noisy actions do, which needs no gradient.

    Raises:
        ConfigError: shapes differ, a negative cap, or no such jacobian.
    """

    targets: Tensor
    weights: Tensor
    max_guidance: float = 5.0
    jacobian: Jacobian = "identity"

    def __post_init__(self) -> None:
        if self.targets.shape != self.weights.shape:
            raise ConfigError(
                f"The guidance has targets {list(self.targets.shape)} and weights {list(self.weights.shape)}; "
                "expected one shape."
            )
        if not self.max_guidance >= 0:
            raise ConfigError(f"max_guidance is {self.max_guidance}; expected zero or more.")
        if self.jacobian not in get_args(Jacobian):
            raise ConfigError(f"The jacobian is {self.jacobian!r}; expected one of {list(get_args(Jacobian))}.")

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing, for want of weight."""
        return self.max_guidance == 0 or not bool(self.weights.any())

    def to(self, device: torch.device | str) -> "Guidance":
        """The same on another device, in float32."""
        return replace(
            self, targets=self.targets.to(device, torch.float32), weights=self.weights.to(device, torch.float32)
        )

    def guide(self, velocity: Callable[[Tensor], Tensor], x_t: Tensor, time: float) -> Tensor:
        """The guided velocity ``v - λ g`` [B, horizon, action_dim] at (x_t, time), without a graph.

        ``g`` is the weighted error of the clean estimate ``x_t - time * v``, times the jacobian of that estimate.

        Args:
            velocity: the model's v of x_t at this time, estimating ``noise - actions``; differentiable for ``full``.
            x_t: [B, horizon, action_dim].
            time: 1 noise .. 0 data.
        """
        is_full = self.jacobian == "full"
        with torch.set_grad_enabled(is_full):
            x = x_t.detach().requires_grad_(is_full)
            v = velocity(x)
            estimate = x - time * v
        pull = (self.targets - estimate.detach()) * self.weights
        if is_full:
            (pull,) = torch.autograd.grad(estimate, x, pull)
        return v.detach() - guidance_weight(time, self.max_guidance) * pull
