"""The layers of the prefix out of kernels for a CPU's tile registers (``amx.py``), for ``layers.OperatorLayers``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pi0_control.model.amx import Matrix, Tiles, rotate_into
from pi0_control.model.crew import Part, Stop
from pi0_control.model.pi0 import Pi0

if TYPE_CHECKING:
    from pi0_control.model.layers import Attend, Pair, Rope


@dataclass(frozen=True)
class TiledLayers:
    """The layers of a prefix that ``packed.can_tile``.

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
        matrices = []
        for layer in model.prefix_layers:
            qkv, out, down = (Matrix(matrix.weight) for matrix in (layer.qkv, layer.out, layer.down))
            matrices.append((qkv, out, Matrix(layer.gate_up.weight, is_gated=True), down))
        return cls(norms, matrices)

    def run_part(self, x: Tensor, start: int, rope: "Rope", attend: "Attend", buffers: Tensor) -> Part[None]:
        """As ``OperatorLayers.run_part``."""
        for index, (qkv, out, gate_up, down) in enumerate(self.matrices):
            first, second = self.norms[index]
            queries = rotate_into(qkv(Tiles.normed(x, first.scale)), rope, buffers[index], start)
            if index + 1 == len(buffers):
                return
            yield Stop.MEET  # keys and values of all parts are there
            x = out(Tiles.of(attend(queries, *buffers[index])), x)
            y = Tiles.normed(x, second.scale)
            yield Stop.PASS
            y = gate_up.gated(y)
            yield Stop.PASS
            x = down(y, x)
