"""Matrices of a layer on a CPU in the order of its kernels: laid out once instead of in every call.

Here for oneDNN's kernels, those that torch.compile takes for a frozen model: in bfloat16 an activation and the gating
behind a product are done while a tile of it is still in the cache and in float32. And whether ``tiled.py`` can do it
with kernels of our own, and how many tokens it is best to multiply at a time.
"""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pi0_control.model.attention import Attention
from pi0_control.model.crew import parts_wanted
from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.siglip import SiglipBlock

Product = Callable[[Tensor], Tensor]
Block = Callable[[Tensor, Attention], Tensor]  # of an image encoder, x [B, tokens, width] -> the same shape, float32
LEAST, PART = 96, 256  # tokens of a product if a prefix goes in parts
BLOCK = 32  # what they are a multiple of where they can be: rows of two tiles of a CPU that has such registers
LOG = logging.getLogger(__name__)
_linear = torch.ops.mkldnn._linear_pointwise


class Kernels(NamedTuple):
    """The products of a layer, each [B, T, in] -> [B, T, out] in the layer's dtype; the MLP is ``down(hidden(y))``."""

    qkv: Product
    out: Product
    hidden: Product
    down: Product


class PackedBlocks(NamedTuple):
    """The blocks of an image encoder, and whether each computes with one thread wherever it is called."""

    blocks: Sequence[Block]
    by_one_thread: bool


def kernels_of(layer: GemmaLayer) -> Kernels:
    """The layer's own."""
    return Kernels(layer.qkv, layer.out, layer.hidden, layer.down)


def can_pack(layer: GemmaLayer | SiglipBlock) -> bool:
    """Whether it can be packed: plain matrices in bfloat16 on a CPU that multiplies them."""
    return all(
        type(matrix) is nn.Linear and matrix.weight.dtype == torch.bfloat16 and matrix.weight.device.type == "cpu"
        for matrix in layer.matrices
    ) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def part_sizes(batch: int, length: int, least_parts: int = 1) -> list[int]:
    """How many of ``length`` tokens in each of ``batch`` rows to multiply at a time: whole blocks, all parts alike.

    What a part makes on its way through a layer stays in the caches, and is small enough for the allocator to keep.
    Where it does not make parts too small, there are enough of them for all threads.
    """
    blocks = math.ceil(length / BLOCK)
    parts = min(blocks, max(math.ceil(batch * length / PART), parts_wanted(batch * length, LEAST), least_parts))
    sizes = [BLOCK * (blocks // parts + (part < blocks % parts)) for part in range(parts)]
    return [*sizes[:-1], length - sum(sizes[:-1])]


@cache
def has_amx() -> bool:
    """Whether ``amx.py`` can compute here: on a CPU with tile registers, if Numba is installed.

    The first call lets Numba compile for some seconds.
    """
    if sys.platform != "linux" or not torch.cpu._is_amx_tile_supported():
        return False
    if not torch.cpu._init_amx():  # asks the system to let this process use them
        LOG.warning("This CPU has tile registers (AMX), but the system does not let this process use them.")
        return False
    try:
        import_module("pi0_control.model.amx")
    except ImportError as error:
        LOG.warning("This CPU (with AMX) computes faster with Numba, pip install 'pi0-control[amx]': %s", error)
        return False
    except Exception as error:  # of a Numba to come that is another inside; what oneDNN computes is as right
        LOG.warning("This CPU (with AMX) computes without our kernels, which this Numba cannot compile: %r", error)
        return False
    return True


def can_tile(layer: GemmaLayer | SiglipBlock) -> bool:
    """Whether ``tiled.py`` takes the layer: matrices as for ``pack`` that fill tiles."""
    if not can_pack(layer):
        return False
    sizes = [layer.qkv.in_features]
    if isinstance(layer, GemmaLayer):
        sizes += [layer.head_dim, layer.down.in_features]
    return all(size % 32 == 0 for size in sizes) and has_amx()


@torch.no_grad()
def pack(layer: GemmaLayer, tokens: int) -> Kernels:
    """Kernels on a copy of the layer's matrices, laid out for about so many tokens."""
    qkv, out, down = (_product(matrix, tokens) for matrix in (layer.qkv, layer.out, layer.down))
    gate, up = (_packed(half.contiguous(), tokens) for half in layer.gate_up.weight.chunk(2))

    def hidden(y: Tensor) -> Tensor:
        return _linear.binary(y, _linear(y, gate, None, "gelu", [], "tanh"), up, None, "mul")

    return Kernels(qkv, out, hidden, down)


@torch.no_grad()
def pack_block(block: SiglipBlock, tokens: int) -> Block:
    """A block of the image encoder on a copy of its matrices, laid out for about so many tokens of an image."""
    qkv, out, fc2 = (_product(matrix, tokens) for matrix in (block.qkv, block.out, block.fc2))
    kernels = Kernels(qkv, out, _product(block.fc1, tokens, "gelu", "tanh"), fc2)
    return lambda x, attention: block(x, attention, kernels)


def _packed(weight: Tensor, tokens: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), tokens)


def _product(matrix: nn.Linear, tokens: int, activation: str = "none", algorithm: str = "") -> Product:
    weight, bias = _packed(matrix.weight, tokens), matrix.bias
    return lambda x: _linear(x, weight, bias, activation, [], algorithm)
