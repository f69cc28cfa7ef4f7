"""The layers of both experts out of PyTorch's operators, for :class:`fast.FastSampler`.

``tiled.py`` has those of a prefix for the tile registers of a CPU, which are called from here; ``fused.py`` has both
experts' for a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pi0_control.model.crew import Part, Stop, run_parts
from pi0_control.model.float8 import float8_kernels
from pi0_control.model.gemma import RMS_NORM_EPS, GemmaLayer, Modulation
from pi0_control.model.packed import LEAST, Kernels, can_pack, can_tile, kernels_of, pack, part_sizes
from pi0_control.model.pi0 import Pi0

if TYPE_CHECKING:
    from pi0_control.model.tiled import TiledLayers

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Pair = tuple[Modulation, Modulation]  # of both norms of a layer
Rope = tuple[Tensor, Tensor]
_EPS = torch.tensor(RMS_NORM_EPS, dtype=torch.float32, device="cpu")  # made once, not in every norm


@dataclass(frozen=True)
class OperatorLayers:
    """All layers of a model, in the order in which operators do least.

    Attributes:
        model: whose layers they are.
        prefix: the norms of each prefix layer.
        suffix: of each step, those of each suffix layer; in a last row, those of known actions.
        prefix_kernels, suffix_kernels: the products of each layer.
        in_parts: whether the products of the prefix want few tokens at a time.
        tiled: the layers of the prefix out of kernels instead, each part by one thread, and norms and rotation of the
            suffix; None for operators only.
    """

    model: Pi0
    prefix: list[Pair]
    suffix: list[list[Pair]]
    prefix_kernels: list[Kernels]
    suffix_kernels: list[Kernels]
    in_parts: bool
    tiled: "TiledLayers | None"

    @classmethod
    def make(
        cls, model: Pi0, prefix: list[Pair], suffix: list[list[Pair]], packs: bool, float8: bool
    ) -> "OperatorLayers":
        """For a model with its modulations of each layer, and of each step and layer."""
        config, layers = model.config, model.prefix_layers
        in_parts = packs and not float8 and all(map(can_pack, layers))
        each_has_enough = torch.get_num_threads() * LEAST <= config.prefix_len  # otherwise threads share each product
        can_be_tiled = in_parts and each_has_enough and all(map(can_tile, (*layers, *model.suffix_layers)))
        tiled = _tiled(model, prefix) if can_be_tiled else None
        packs_prefix, part = packs and not can_be_tiled, max(part_sizes(1, config.prefix_len))
        of_prefix = [float8_kernels(layer) if float8 else _kernels(layer, packs_prefix, part) for layer in layers]
        of_suffix = [_kernels(layer, packs, config.suffix_len) for layer in model.suffix_layers]
        return cls(model, prefix, suffix, of_prefix, of_suffix, in_parts, tiled)

    def part_sizes(self, batch: int, length: int) -> list[int]:
        """How many of so many tokens of the prefix to take at a time."""
        least_parts = torch.get_num_threads() if self.tiled else 1
        return part_sizes(batch, length, least_parts) if self.in_parts else [length]

    def run_prefix(self, parts: Sequence[Tensor], rope: Rope, attends: Sequence[Attend], buffers: Tensor) -> None:
        """Keys and values of the prefix into the buffers [layers, 2, B, places, kv_heads, head_dim].

        Args:
            parts: its tokens [B, S, width] one part after the other; each goes through a layer's products by itself.
            rope: of all places.
            attends: of each part, what gives queries [B, tokens, heads, head_dim] the values of all keys and values
                [B, S, kv_heads, head_dim].
            buffers: to be filled.
        """
        *starts, length = accumulate((part.shape[1] for part in parts), initial=0)
        known, run_part = buffers[:, :, :, :length], self.tiled.run_part if self.tiled else self.run_part
        run_parts(
            [run_part(*part, known) for part in zip(parts, starts, repeat(rope), attends)],
            even_few=self.tiled is not None,
        )

    def run_part(self, x: Tensor, start: int, rope: Rope, attend: Attend, buffers: Tensor) -> Part[None]:
        """Tokens x [B, T, width] of the prefix at place ``start``; the buffers have places for all of the prefix."""
        for index, layer in enumerate(self.model.prefix_layers):
            kernels, (first, second) = self.prefix_kernels[index], self.prefix[index]
            queries = self._queries(layer, kernels, first, x, start, rope, buffers, index)
            if index + 1 == len(buffers):
                return
            yield Stop.MEET  # keys and values of all parts are there
            keys, values = buffers[index]
            x = _add_gated(x, kernels.out(attend(queries, keys, values)), first.gate)
            y = normed(second, x)
            yield Stop.PASS
            y = kernels.hidden(y)
            yield Stop.PASS
            y = kernels.down(y)  # nothing holds on to the wide tensor
            x = _add_gated(x, y, second.gate)

    def run_suffix(
        self, x: Tensor, step: int, rope: Rope, attend: Attend, buffers: Tensor, start: int, known: Tensor | None
    ) -> Tensor:
        """A step's tokens x [B, T, width] at place ``start`` through all layers; -> [B, T, width].

        ``known``, bool [B, T, 1], marks those of actions that are decided already.
        """
        for index, layer in enumerate(self.model.suffix_layers):
            pair = self.suffix[step][index]
            if known is not None:
                decided = self.suffix[-1][index]
                pair = select(known, decided[0], pair[0]), select(known, decided[1], pair[1])
            kernels = self.suffix_kernels[index]
            queries = self._queries(layer, kernels, pair[0], x, start, rope, buffers, index)
            keys, values = buffers[index, :, :, : start + x.shape[1]]
            x = _add_gated(x, kernels.out(attend(queries, keys, values)), pair[0].gate)
            x = _add_gated(x, kernels.down(kernels.hidden(self._normed(pair[1], x))), pair[1].gate)
        return x

    def _queries(
        self,
        layer: GemmaLayer,
        kernels: Kernels,
        norm: Modulation,
        x: Tensor,
        start: int,
        rope: Rope,
        buffers: Tensor,
        index: int,
    ) -> Tensor:
        """First half of a layer for x [B, T, width] at place ``start``: queries; keys and values into the buffers."""
        heads, kv_heads, stop = layer.num_heads, layer.num_kv_heads, start + x.shape[1]
        y = self._normed(norm, x)
        qkv = kernels.qkv(y)
        if self.tiled and layer.value_residual == "none":
            return self.tiled.rotate_into(qkv, rope, buffers[index], start)
        qk, v = qkv.unflatten(-1, (-1, layer.head_dim)).split([heads + kv_heads, kv_heads], dim=-2)
        if layer.value_residual != "none":
            v = layer.mix_values(y, v, buffers[0, 1, :, start:stop])
        qk = _rotate(qk, rope[0][:, start:stop], rope[1][:, start:stop])
        buffers[index, 0, :, start:stop] = qk[:, :, heads:]
        buffers[index, 1, :, start:stop] = v
        return qk[:, :, :heads]

    def _normed(self, norm: Modulation, x: Tensor) -> Tensor:
        is_for_all = norm.scale.dim() == 1
        return self.tiled.normed(norm, x) if self.tiled and is_for_all else normed(norm, x)


def select(mask: Tensor, where: Modulation, elsewhere: Modulation) -> Modulation:
    """One modulation or the other, per token of the mask [B, T, 1]."""
    pairs = zip(where, elsewhere, strict=True)
    scale, shift, gate = (None if a is None or b is None else torch.where(mask, a, b) for a, b in pairs)
    return Modulation(cast(Tensor, scale), shift, gate)


def normed(norm: Modulation, x: Tensor) -> Tensor:
    """:meth:`Modulation.apply` without a gradient: on a CPU, five operators, which make little, instead of nine."""
    if x.device.type != "cpu":
        return norm.apply(x)
    wide = x.float()
    size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    one_over_rms = torch.addcmul(_EPS, size, size, value=1 / x.shape[-1]).rsqrt_()
    y = wide * one_over_rms if wide is x else wide.mul_(one_over_rms)
    y = y.mul_(norm.scale) if norm.shift is None else torch.addcmul(norm.shift, y, norm.scale)
    return y.to(x.dtype)


def attend_to_one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Everything sees everything, through one key head: the heads of q are further rows of one product."""
    rows, keys, values = (q * q.shape[-1] ** -0.5).flatten(1, 2), k[:, :, 0], v[:, :, 0]
    if len(rows) == 1:  # without a batch no keys are copied
        rows, keys, values = rows[0], keys[0], values[0]
    weights = torch.softmax(rows @ keys.mT, dim=-1)  # in float32 inside; rows are [.., T * heads, head_dim]
    return (weights @ values).view(*q.shape[:2], -1)


def _tiled(model: Pi0, norms: list[Pair]) -> "TiledLayers":
    from pi0_control.model.tiled import TiledLayers  # needs Numba

    return TiledLayers.make(model, norms)


def _kernels(layer: GemmaLayer, packs: bool, tokens: int) -> Kernels:
    return pack(layer, tokens) if packs and can_pack(layer) else kernels_of(layer)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """:func:`attention.apply_rope` on queries and keys at once, with whole rows of cosines and signed sines."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def _add_gated(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + branch if gate is None else torch.addcmul(x, branch, gate)
