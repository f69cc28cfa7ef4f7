"""The Gemma block both experts are made of: RMS norms (plain, adaptive, bounded), shared attention, gated MLP."""

from typing import Any, Literal, NamedTuple

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


class Modulation(NamedTuple):
    """What a norm makes of rms(x), ``rms(x) * scale + shift``, and the gate of the branch behind it; all float32.

    Each is [width] where time plays no part, else [B, 1, width], or [B, T, width] for a time per token.
    """

    scale: Tensor
    shift: Tensor | None = None
    gate: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """The normed x [B, T, width], in x's dtype."""
        if self.scale.dim() == 1:
            y = F.rms_norm(x.float(), self.scale.shape, self.scale, RMS_NORM_EPS)
        else:
            y = rms(x) * self.scale
        return (y if self.shift is None else y + self.shift).to(x.dtype)


class Norm(nn.Module):
    """An RMS norm whose modulation may depend on a conditioning; without one ``cond`` is ignored."""

    def modulate(self, cond: Any) -> Modulation:
        """What it does at cond [B, width] or [B, T, width]."""
        raise NotImplementedError

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [B, T, width], cond [B, width] or [B, T, width] -> (normed x, gate [B, 1 or T, width] or None)."""
        modulation = self.modulate(cond)
        return modulation.apply(x), modulation.gate


class RMSNorm(Norm):
    """``rms(x) * (1 + scale)``: the stored scale is centred on zero; no gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def modulate(self, cond: Any = None) -> Modulation:
        """The same for any ``cond``."""
        return Modulation(1 + self.scale.float())


class AdaptiveRMSNorm(Norm):
    """π0.5: scale, shift and gate are a linear function of the time conditioning; zero at creation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def modulate(self, cond: Tensor) -> Modulation:
        """Scale, shift and gate at cond [B, width] or [B, T, width]."""
        modulation = self.modulation(cond.to(self.modulation.weight.dtype)).float()
        scale, shift, gate = _per_token(modulation).chunk(3, dim=-1)
        return Modulation(1 + scale, shift, gate)


class BoundedRMSNorm(Norm):
    """``rms(x) * sigmoid(gamma(cond)) + beta(cond)``: the scale stays in (0, 1); no gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(width, width)
        self.beta = nn.Linear(width, width, bias=False)

    def modulate(self, cond: Tensor) -> Modulation:
        """Scale and shift at cond [B, width] or [B, T, width]."""
        cond = _per_token(cond.to(self.gamma.weight.dtype))
        return Modulation(torch.sigmoid(self.gamma(cond).float()), self.beta(cond).float())


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


def make_norm(kind: Literal["none", "adarms", "bounded"], width: int) -> Norm:
    """The norm of a suffix block; the prefix always takes ``none``."""
    return {"none": RMSNorm, "adarms": AdaptiveRMSNorm, "bounded": BoundedRMSNorm}[kind](width)


def add_gated(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """Residual sum ``x + branch * gate``; without a gate ``x + branch``."""
    return x + branch if gate is None else x + branch * gate.to(x.dtype)


def gated(gate_up: Tensor) -> Tensor:
    """``gelu(gate) * up`` of both side by side, [B, T, 2 * hidden] -> [B, T, hidden]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


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
            v = self.mix_values(y, v, first_values)
        return q, k, v, self._gate("attention_scale", gate, cond)

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None, cond: Tensor | None) -> Tensor:
        """Second half: output projection, residual, MLP. attended [B, T, heads * head_dim] -> [B, T, width]."""
        x = add_gated(x, self.out(attended), gate)
        y, gate = self.norm2(x, cond)
        return add_gated(x, self.down(self.hidden(y)), self._gate("mlp_scale", gate, cond))

    @property
    def matrices(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """Those that every token is multiplied by: qkv, out, gate_up, down."""
        return self.qkv, self.out, self.gate_up, self.down

    def hidden(self, y: Tensor) -> Tensor:
        """The first half of the MLP, [B, T, width] -> [B, T, mlp_dim]."""
        return gated(self.gate_up(y))

    def _gate(self, scale: str, from_norm: Tensor | None, cond: Tensor | None) -> Tensor | None:
        if self.residual_gate == "layerscale":
            return getattr(self, scale)(cond)
        return from_norm if self.residual_gate == "from_norm" else None

    def modulations(self, cond: Tensor | None) -> tuple[Modulation, Modulation]:
        """What both norms do at cond [B, width], with the gates of both branches, whatever they come from."""
        first, second = self.norm1.modulate(cond), self.norm2.modulate(cond)
        return (
            first._replace(gate=self._gate("attention_scale", first.gate, cond)),
            second._replace(gate=self._gate("mlp_scale", second.gate, cond)),
        )

    def mix_values(self, y: Tensor, v: Tensor, first_values: Tensor) -> Tensor:
        """The value residual: v and the first layer's values, both [B, T, kv_heads, head_dim], for normed y."""
        if self.value_residual == "mean":
            return 0.5 * (v + first_values)
        mix = torch.sigmoid(self.value_mix(y))[..., None]
        return v * mix + first_values * (1 - mix)
