"""Keys and values of the encoded prefix: a differentiable cache for training, a static buffer for sampling."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PrefixCache:
    """What the suffix needs to know of an encoded prefix.

    Attributes:
        keys, values: [layers, B, S, kv_heads, head_dim]; keys are rotated to their positions.
        valid: bool [B, S], False for padding and masked cameras.
        hidden: the prefix after the last layer and its norm [B, S, prefix_width]; None if it was not asked for.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    hidden: Tensor | None = None

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and suffix, [B, S + T, kv_heads, head_dim]; k and v are the suffix's."""
        return torch.cat([self.keys[layer], k], dim=1), torch.cat([self.values[layer], v], dim=1)

    def repeat_interleave(self, repeats: int) -> "PrefixCache":
        """Each row ``repeats`` times in a row: several noise draws against one encoded prefix; differentiable."""
        return PrefixCache(
            self.keys.repeat_interleave(repeats, dim=1),
            self.values.repeat_interleave(repeats, dim=1),
            self.valid.repeat_interleave(repeats, dim=0),
            None if self.hidden is None else self.hidden.repeat_interleave(repeats, dim=0),
        )

    def with_room(self, suffix_len: int) -> "StaticCache":
        """A copy with ``suffix_len`` places behind the prefix, for sampling without gradients."""
        layers, batch, length, *rest = self.keys.shape
        keys = self.keys.new_zeros(layers, batch, length + suffix_len, *rest)
        values = torch.zeros_like(keys)
        keys[:, :, :length] = self.keys
        values[:, :, :length] = self.values
        return StaticCache(keys, values, self.valid, self.hidden)


@dataclass
class StaticCache(PrefixCache):
    """A PrefixCache whose buffers have room behind the prefix; every denoising step overwrites that room."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`PrefixCache.extend`, written in place: no allocation per step, no gradient."""
        start = self.valid.shape[1]
        self.keys[layer, :, start:] = k
        self.values[layer, :, start:] = v
        return self.keys[layer], self.values[layer]
