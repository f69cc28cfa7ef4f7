"""Image encoder and prefix out of kernels for a CPU's tile registers (``amx.py``), for :class:`fast.FastSampler`."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pi0_control.model.attention import Attention
from pi0_control.model.crew import Part, Stop, in_one_go, run_parts
from pi0_control.model.gemma import GemmaLayer, Modulation
from pi0_control.model.pi0 import Pi0
from pi0_control.model.siglip import SiglipBlock
from pi0_control.model.tiles import Matrix, Tiles, rms_norm, rotate_into

if TYPE_CHECKING:
    from pi0_control.model.layers import Attend, Pair, Rope


@dataclass(frozen=True)
class TiledLayers:
    """The layers of a prefix that ``packed.can_tile``, and what joins the products of a suffix.

    Attributes:
        norms: of each layer.
        matrices: qkv, out, gate_up and down of each layer, copied.
    """

    norms: "list[Pair]"
    matrices: list[tuple[Matrix, Matrix, Matrix, Matrix]]

    @classmethod
    @torch.no_grad()
    def make(cls, model: Pi0, norms: "list[Pair]") -> "TiledLayers":
        """For a model with the norms of each prefix layer."""
        return cls(
            norms, run_parts([in_one_go(partial(_matrices, layer)) for layer in model.prefix_layers], even_few=True)
        )

    rotate_into = staticmethod(rotate_into)  # here for layers.py, which cannot import what needs Numba

    @staticmethod
    def normed(norm: Modulation, x: Tensor) -> Tensor:
        """``layers.normed`` in bfloat16, for a modulation of all tokens."""
        return rms_norm(x, norm.scale, norm.shift)

    def run_part(self, x: Tensor, start: int, rope: "Rope", attend: "Attend", buffers: Tensor) -> Part[None]:
        """As ``OperatorLayers.run_part``."""
        for index, (qkv, out, gate_up, down) in enumerate(self.matrices):
            first, second = self.norms[index]
            queries = self.rotate_into(qkv(Tiles.rms_normed(x, first.scale)), rope, buffers[index], start)
            if index + 1 == len(buffers):
                return
            yield Stop.MEET  # keys and values of all parts are there
            x = out(Tiles.of(attend(queries, *buffers[index])), x)
            y = Tiles.rms_normed(x, second.scale)
            yield Stop.PASS
            y = gate_up.gated(y)
            yield Stop.PASS
            x = down(y, x)


def _matrices(layer: GemmaLayer) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    qkv, out, down = (Matrix(matrix.weight) for matrix in (layer.qkv, layer.out, layer.down))
    return qkv, out, Matrix(layer.gate_up.weight, is_gated=True), down


class TiledBlock:
    """A block of the image encoder that ``packed.can_tile``, on a copy of its matrices."""

    @torch.no_grad()
    def __init__(self, block: SiglipBlock) -> None:
        self._num_heads = block.num_heads
        self._norms = [(norm.weight.float(), norm.bias.float()) for norm in (block.norm1, block.norm2)]
        self._matrices = [Matrix(matrix.weight, matrix.bias) for matrix in block.matrices]

    def __call__(self, x: Tensor, attention: Attention) -> Tensor:
        """x [B, tokens, width] -> the same shape, both float32."""
        qkv, out, fc1, fc2 = self._matrices
        q, k, v = qkv(Tiles.layer_normed(x, *self._norms[0])).unflatten(-1, (3, self._num_heads, -1)).unbind(-3)
        x = out(Tiles.of(attention(q, k, v)), x)
        return fc2(fc1.gelu(Tiles.layer_normed(x, *self._norms[1])), x)
