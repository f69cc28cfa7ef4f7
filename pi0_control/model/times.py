"""The time of the flow: how it is drawn for training and how it is embedded."""

import math

import torch
from torch import Tensor, nn

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


def time_sincos(time: Tensor, width: int) -> Tensor:
    """Sine then cosine of the time at geometric periods from 4e-3 to 4, float32 [..., width] for time [...].

    Computed in float64 where the device has it: the arguments reach 1571.
    """
    precise = torch.float32 if time.device.type == "mps" else torch.float64
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=precise, device=time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = time.to(precise)[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def sample_time(batch: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu") -> Tensor:
    """Training times, float32 [batch] in (0, 1]: Beta(1.5, 1) * 0.999 + 0.001, mostly near the noise."""
    uniform = torch.rand(batch, generator=generator, device=device)
    return uniform ** (1 / 1.5) * 0.999 + 0.001  # the inverse of Beta(1.5, 1)'s distribution function x^1.5


class SinCosTime(nn.Module):
    """The public time embedding; no parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, time: Tensor) -> Tensor:
        """Time [...] -> float32 [..., width]."""
        return time_sincos(time, self.width)


class RandomFourierTime(nn.Module):
    """``cos(2π (w t + b))`` with frozen random w and b, which are saved with the weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(width) * 2 - 1)
        self.register_buffer("bias", torch.rand(width) * 2 - 1)

    def forward(self, time: Tensor) -> Tensor:
        """Time [...] -> float32 [..., width]."""
        weight, bias = self.get_buffer("weight").float(), self.get_buffer("bias").float()
        return torch.cos(2 * math.pi * (time.float()[..., None] * weight + bias))
