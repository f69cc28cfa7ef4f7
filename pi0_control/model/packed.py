"""Matrices of a layer on a CPU in the order of its kernels (oneDNN): laid out once instead of in every call.

In bfloat16 the gated MLP is then two products, the activation and the gating being done while a tile of the first is
still in the cache and in float32. These are the operators that torch.compile takes for a frozen model on a CPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pi0_control.model.gemma import GemmaLayer

Product = Callable[[Tensor], Tensor]
_linear = torch.ops.mkldnn._linear_pointwise


class Kernels(NamedTuple):
    """The three products of a layer, each [B, T, in] -> [B, T, out] in the layer's dtype."""

    qkv: Product
    out: Product
    mlp: Product


def kernels_of(layer: GemmaLayer) -> Kernels:
    """The layer's own."""
    return Kernels(layer.qkv, layer.out, layer.mlp)


def can_pack(layer: GemmaLayer) -> bool:
    """Whether :func:`pack` works: plain matrices in bfloat16 on a CPU that multiplies them."""
    matrices = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return all(
        type(matrix) is nn.Linear and matrix.weight.dtype == torch.bfloat16 and matrix.weight.device.type == "cpu"
        for matrix in matrices
    ) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def pack(layer: GemmaLayer, tokens: int) -> Kernels:
    """Kernels on a copy of the layer's matrices, laid out for about so many tokens."""
    gate, up = (_packed(half.contiguous(), tokens) for half in layer.gate_up.weight.chunk(2))
    qkv, out, down = (_packed(matrix.weight, tokens) for matrix in (layer.qkv, layer.out, layer.down))

    def mlp(y: Tensor) -> Tensor:
        gated = _linear(y, gate, None, "gelu", [], "tanh")
        return _product(down)(_linear.binary(y, gated, up, None, "mul"))

    return Kernels(_product(qkv), _product(out), mlp)


def _packed(weight: Tensor, tokens: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), tokens)


def _product(packed: Tensor) -> Product:
    return lambda x: _linear(x, packed, None, "none", [], "")
