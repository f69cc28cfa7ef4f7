"""The Gemma block both experts are made of: RMS norms (plain, adaptive, bounded), shared attention, gated MLP."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pi0_control.model.config import Pi0Config

RMS_NORM_EPS = 1e-6


def rms(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) over the last dimension, float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=RMS_NORM_EPS)


def _per_token(x: Tensor) -> Tensor:
    """Conditioning [B, D] -> [B, 1, D]; [B, T, D] stays."""
    return x[:, None] if x.dim() == 2 else x


class RMSNorm(nn.Module):
    """``rms(x) * (1 + scale)``: the stored scale is centred on zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [B, T, width] -> (normed x, no gate); ``cond`` is ignored."""
        return (rms(x) * (1 + self.scale.float())).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """π0.5: scale, shift and gate are a linear function of the time conditioning; zero at creation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, T, width], cond [B, width] or [B, T, width] -> (normed x, gate [B, 1 or T, width])."""
        modulation = self.modulation(cond.to(self.modulation.weight.dtype)).float()
        scale, shift, gate = _per_token(modulation).chunk(3, dim=-1)
        return (rms(x) * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


class BoundedRMSNorm(nn.Module):
    """``rms(x) * sigmoid(gamma(cond)) + beta(cond)``: the scale stays in (0, 1); no gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(width, width)
        self.beta = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, T, width], cond [B, width] or [B, T, width] -> (normed x, no gate)."""
        cond = _per_token(cond.to(self.gamma.weight.dtype))
        return (rms(x) * torch.sigmoid(self.gamma(cond).float()) + self.beta(cond).float()).to(x.dtype), None


class LayerScale(nn.Module):
    """A gate ``sigmoid(linear(cond))`` for a residual branch; starts at sigmoid(-2) = 0.12 for every time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -2.0)

    def forward(self, cond: Tensor) -> Tensor:
        """cond [B, width] or [B, T, width] -> gate [B, 1 or T, width]."""
        return torch.sigmoid(self.linear(_per_token(cond.to(self.linear.weight.dtype))))


def make_norm(kind: Literal["none", "adarms", "bounded"], width: int) -> nn.Module:
    """The norm of a suffix block; the prefix always takes ``none``."""
    return {"none": RMSNorm, "adarms": AdaptiveRMSNorm, "bounded": BoundedRMSNorm}[kind](width)


def add_gated(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """Residual sum ``x + branch * gate``; without a gate ``x + branch``."""
    return x + branch if gate is None else x + branch * gate.to(x.dtype)


class GemmaLayer(nn.Module):
    """One layer of one expert, in two halves so that the attention between them can join both experts.

    ``queries_keys_values`` -> attention over whatever keys there are -> ``finish``.
    """

    def __init__(self, config: Pi0Config, *, suffix: bool, first: bool = False) -> None:
        super().__init__()
        width, mlp_dim = (
            (config.action_width, config.action_mlp_dim) if suffix else (config.prefix_width, config.prefix_mlp_dim)
        )
        kind = config.ada_norm if suffix else "none"
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.norm1, self.norm2 = make_norm(kind, width), make_norm(kind, width)
        self.qkv = nn.Linear(width, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(self.num_heads * self.head_dim, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)
        self.residual_gate = config.residual_gate if suffix else "none"
        if self.residual_gate == "layerscale":
            self.attention_scale, self.mlp_scale = LayerScale(width), LayerScale(width)
        self.value_residual = "none" if first or not suffix else config.value_residual
        if self.value_residual == "learned":
            self.value_mix = nn.Linear(width, self.num_kv_heads)

    def queries_keys_values(
        self, x: Tensor, cond: Tensor | None, first_values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """First half: norm and projections.

        Args:
            x: [B, T, width].
            cond: time conditioning [B, width] or None.
            first_values: values of the first layer [B, T, kv_heads, head_dim], used if the value residual is on.

        Returns:
            q [B, T, heads, head_dim], k and v [B, T, kv_heads, head_dim], gate of the attention branch or None.
        """
        y, gate = self.norm1(x, cond)
        heads, kv_heads = self.num_heads, self.num_kv_heads
        q, k, v = self.qkv(y).unflatten(-1, (-1, self.head_dim)).split([heads, kv_heads, kv_heads], dim=-2)
        if self.value_residual != "none" and first_values is not None:
            v = self._mix_values(y, v, first_values)
        return q, k, v, self._gate("attention_scale", gate, cond)

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None, cond: Tensor | None) -> Tensor:
        """Second half: output projection, residual, MLP. attended [B, T, heads * head_dim] -> [B, T, width]."""
        x = add_gated(x, self.out(attended), gate)
        y, gate = self.norm2(x, cond)
        y_gate, y_up = self.gate_up(y).chunk(2, dim=-1)
        branch = self.down(F.gelu(y_gate, approximate="tanh") * y_up)
        return add_gated(x, branch, self._gate("mlp_scale", gate, cond))

    def _gate(self, scale: str, from_norm: Tensor | None, cond: Tensor | None) -> Tensor | None:
        if self.residual_gate == "layerscale":
            return getattr(self, scale)(cond)
        return from_norm if self.residual_gate == "from_norm" else None

    def _mix_values(self, y: Tensor, v: Tensor, first_values: Tensor) -> Tensor:
        if self.value_residual == "mean":
            return 0.5 * (v + first_values)
        mix = torch.sigmoid(self.value_mix(y))[..., None]
        return v * mix + first_values * (1 - mix)
