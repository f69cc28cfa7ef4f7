"""The layers of both experts out of the kernels of a GPU (``kernels.py``), for :class:`fast.FastSampler`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pi0_control.model import kernels
from pi0_control.model.float8 import Float8Matrix
from pi0_control.model.layers import Attend, Pair
from pi0_control.model.pi0 import Pi0

Matrix = nn.Linear | Float8Matrix


def can_fuse(model: Pi0) -> bool:
    """Whether the kernels cover this model: the public ones, and others of plain matrices with round sizes."""
    config, (columns, depth) = model.config, kernels.TILE
    half, widths = (
        config.head_dim // 2,
        (config.action_width, config.action_mlp_dim, config.num_heads * config.head_dim),
    )
    is_known = config.num_kv_heads == 1 and config.attn_softcap == 0 and config.value_residual == "none"
    is_round = half % columns == 0 and half.bit_count() == 1 and not any(width % depth for width in widths)
    layers = (*model.prefix_layers, *model.suffix_layers)
    matrices = (matrix for layer in layers for matrix in layer.matrices)
    return is_known and is_round and all(type(matrix) is nn.Linear for matrix in matrices)


@dataclass(frozen=True)
class FusedLayers:
    """All layers of a model; what depends on weights and number of steps only is computed once.

    Attributes:
        model: whose weights are used as they are.
        prefix: the norms of each prefix layer.
        suffix: of each step, those of each suffix layer.
        shifts: of each suffix layer, what the shifts of its norms add to the products behind them, float32
            [steps, columns]; None where norms do not shift.
        prefix_matrices: qkv, out, gate_up and down of each prefix layer, its own or in float8.
    """

    model: Pi0
    prefix: list[Pair]
    suffix: list[list[Pair]]
    shifts: list[tuple[Tensor | None, Tensor | None]]
    prefix_matrices: Sequence[tuple[Matrix, ...]]

    @classmethod
    def make(cls, model: Pi0, prefix: list[Pair], suffix: list[list[Pair]], float8: bool = False) -> "FusedLayers":
        """For a model that :func:`can_fuse`, with its modulations of each layer, and of each step and layer."""
        shifts = []
        for index, layer in enumerate(model.suffix_layers):
            pairs = [of_step[index] for of_step in suffix]
            shifts.append((_shift(pairs, 0, layer.qkv.weight), _shift(pairs, 1, layer.gate_up.weight)))
        matrices = [layer.matrices for layer in model.prefix_layers]
        if not float8:
            return cls(model, prefix, suffix, shifts, matrices)
        return cls(model, prefix, suffix, shifts, [tuple(map(_float8, of_layer)) for of_layer in matrices])

    def run_prefix(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, buffers: Tensor) -> None:
        """Keys and values of the prefix x [B, S, width] into the buffers [layers, 2, B, places, 1, head_dim].

        ``attend`` gives queries [B, S, heads, head_dim] the values of keys and values [B, S, 1, head_dim].
        """
        length = x.shape[1]
        for index, (qkv, out, gate_up, down) in enumerate(self.prefix_matrices):
            (first, second), cache = self.prefix[index], buffers[index]
            queries = kernels.rotate_into(qkv(kernels.rms_norm(x, first.scale)), rope, cache)
            if index + 1 == len(buffers):
                return
            attended = attend(queries, cache[0, :, :length], cache[1, :, :length])
            x = _add_product(x, attended, out)
            hidden = kernels.join_gate_up(gate_up(kernels.rms_norm(x, second.scale)))
            x = _add_product(x, hidden, down)

    def run_suffix(
        self, x: Tensor, step: int, rope: tuple[Tensor, Tensor], buffers: Tensor, seen: Tensor, start: int, first: int
    ) -> Tensor:
        """A step's tokens x [B, T, width] at place ``start`` through all layers, six kernels each; -> [B, T, width].

        Args:
            seen: uint8 [B, places], 0 where the prefix has padding.
            first: how many places the first token sees.
        """
        for index, layer in enumerate(self.model.suffix_layers):
            before, after = self.suffix[step][index]
            bias, bias_mlp = (None if shift is None else shift[step] for shift in self.shifts[index])
            queries = kernels.normed_qkv(x, before.scale, bias, layer.qkv.weight, rope, buffers[index], start)
            attended = kernels.attend(queries, buffers[index], seen, first)
            x = kernels.gated_product(x, attended, layer.out.weight, before.gate)
            hidden = kernels.normed_gate_up(x, after.scale, bias_mlp, layer.gate_up.weight)
            x = kernels.gated_product(x, hidden, layer.down.weight, after.gate)
        return x


def _shift(pairs: list[Pair], which: int, weight: Tensor) -> Tensor | None:
    """What the shifts of one norm add to the columns of the product behind it, float32 [steps, columns]."""
    shifts = [pair[which].shift for pair in pairs]
    present = [shift for shift in shifts if shift is not None]
    return torch.stack(present) @ weight.float().mT if present else None


def _float8(matrix: nn.Linear) -> Float8Matrix:
    return Float8Matrix(matrix, kernels.scaled_rows)


def _add_product(x: Tensor, branch: Tensor, matrix: Matrix) -> Tensor:
    """``x + matrix(branch)`` in x's place; if it can be, the sum is the end of the product, and nothing is copied."""
    if isinstance(matrix, Float8Matrix):
        return x.add_(matrix(branch))
    x.flatten(0, 1).addmm_(branch.flatten(0, 1), matrix.weight.mT)
    return x
