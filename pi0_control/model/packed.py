"""Matrices of a layer on a CPU in the order of its kernels (oneDNN): laid out once instead of in every call.

In bfloat16 an activation and the gating behind a product are then done while a tile of it is still in the cache and in
float32. These are the operators that torch.compile takes for a frozen model on a CPU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.siglip import SiglipBlock

Product = Callable[[Tensor], Tensor]
PART, TILE = 256, 16  # tokens of a product at most, and what they are a multiple of where they can be
_linear = torch.ops.mkldnn._linear_pointwise


class Kernels(NamedTuple):
    """The three products of a layer, each [B, T, in] -> [B, T, out] in the layer's dtype."""

    qkv: Product
    out: Product
    mlp: Product


def kernels_of(layer: GemmaLayer | SiglipBlock) -> Kernels:
    """The layer's own."""
    return Kernels(layer.qkv, layer.out, layer.mlp)


def can_pack(layer: GemmaLayer | SiglipBlock) -> bool:
    """Whether it can be packed: plain matrices in bfloat16 on a CPU that multiplies them."""
    return all(
        type(matrix) is nn.Linear and matrix.weight.dtype == torch.bfloat16 and matrix.weight.device.type == "cpu"
        for matrix in layer.matrices
    ) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def part_size(batch: int, length: int) -> int:
    """How many of ``length`` tokens in each of ``batch`` rows to multiply at a time: whole tiles, all parts alike.

    What a part makes on its way through a layer stays in the caches, and is small enough for the allocator to keep.
    """
    parts = math.ceil(batch * length / PART)
    return TILE * math.ceil(length / parts / TILE)


@torch.no_grad()
def pack(layer: GemmaLayer, tokens: int) -> Kernels:
    """Kernels on a copy of the layer's matrices, laid out for about so many tokens."""
    qkv, out, down = (_product(matrix, tokens) for matrix in (layer.qkv, layer.out, layer.down))
    gate, up = (_packed(half.contiguous(), tokens) for half in layer.gate_up.weight.chunk(2))

    def mlp(y: Tensor) -> Tensor:
        gated = _linear(y, gate, None, "gelu", [], "tanh")
        return down(_linear.binary(y, gated, up, None, "mul"))

    return Kernels(qkv, out, mlp)


@torch.no_grad()
def pack_block(block: SiglipBlock, tokens: int) -> Kernels:
    """The same of a block of the image encoder, for about so many tokens of an image."""
    qkv, out, fc2 = (_product(matrix, tokens) for matrix in (block.qkv, block.out, block.fc2))
    fc1 = _product(block.fc1, tokens, "gelu", "tanh")
    return Kernels(qkv, out, lambda y: fc2(fc1(y)))


def _packed(weight: Tensor, tokens: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), tokens)


def _product(matrix: nn.Linear, tokens: int, activation: str = "none", algorithm: str = "") -> Product:
    weight, bias = _packed(matrix.weight, tokens), matrix.bias
    return lambda x: _linear(x, weight, bias, activation, [], algorithm)
