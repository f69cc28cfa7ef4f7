"""Keys and values of the encoded prefix: a differentiable cache for training, a static buffer for sampling."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pi0_control.model.attention import Attention


@dataclass
class PrefixCache:
    """What the suffix needs to know of an encoded prefix.

    Attributes:
        layers: keys and values of each layer, [rows, S, kv_heads, head_dim] each; keys are rotated to their positions.
        valid: bool [B, S], False for padding and masked cameras.
        hidden: the prefix after the last layer and its norm [B, S, prefix_width]; None if it was not asked for.
        repeats: suffix rows per encoded row; ``layers`` hold B / repeats rows, so repeating copies nothing.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    valid: Tensor
    hidden: Tensor | None = None
    repeats: int = 1

    @property
    def keys(self) -> Tensor:
        """All keys, [layers, B, S, kv_heads, head_dim]."""
        return torch.stack([keys for keys, _ in self.layers]).repeat_interleave(self.repeats, dim=1)

    @property
    def values(self) -> Tensor:
        """All values, [layers, B, S, kv_heads, head_dim]."""
        return torch.stack([values for _, values in self.layers]).repeat_interleave(self.repeats, dim=1)

    def attend(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Suffix queries over the prefix and the suffix's own k and v; [B, T, heads * head_dim], differentiable."""
        return attention(q, k, v, prefix=self.layers[layer], repeats=self.repeats)

    def repeat_interleave(self, repeats: int) -> "PrefixCache":
        """Each row ``repeats`` times in a row: several noise draws against one encoded prefix; differentiable."""
        return replace(
            self,
            valid=self.valid.repeat_interleave(repeats, dim=0),
            hidden=None if self.hidden is None else self.hidden.repeat_interleave(repeats, dim=0),
            repeats=self.repeats * repeats,
        )

    def with_room(self, suffix_len: int) -> "StaticCache":
        """A copy with ``suffix_len`` places behind the prefix, for sampling without gradients."""
        return StaticCache(
            tuple(
                (_with_room(k, self.repeats, suffix_len), _with_room(v, self.repeats, suffix_len))
                for k, v in self.layers
            ),
            self.valid,
            self.hidden,
        )


@dataclass
class StaticCache(PrefixCache):
    """A PrefixCache whose buffers have room behind the prefix; every denoising step overwrites that room."""

    def attend(self, layer: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As :meth:`PrefixCache.attend`, with k and v written in place: no new buffers per step, no gradient."""
        start = self.valid.shape[1]
        keys, values = self.layers[layer]
        keys[:, start:] = k
        values[:, start:] = v
        return attention(q, keys, values)


def _with_room(x: Tensor, repeats: int, suffix_len: int) -> Tensor:
    rows, length, *rest = x.shape
    buffer = x.new_zeros(rows * repeats, length + suffix_len, *rest)
    buffer[:, :length] = x.repeat_interleave(repeats, dim=0)
    return buffer
