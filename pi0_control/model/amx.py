"""The products of the prefix by the tile registers of a CPU (Intel AMX), compiled by Numba.

A tile is 1 kB: 16 rows of 64 bytes. One instruction multiplies a tile of 16 tokens, 32 deep, by one of weights, 32 deep
and 16 columns wide, and adds to 16 x 16 sums in float32. It takes 16 cycles; loading a tile takes 8 from the first
cache, 16 from the second. So a block is 2 x 2 tiles of sums, which wants one load for each product, and all is laid out
in the order in which it is loaded:

- tokens as [tokens / 16, depth / 32, 16, 32], the form in which a hidden layer is written, too;
- weights in panels of 32 columns, [panels, depth / 32, 2, 16, 16, 2]: columns side by side, pairs of the depth
  together. A panel stays in the second cache for all tokens of a part while the next one is on its way;
- a depth of more than ``DEEPEST`` tiles one after the other, for tokens to stay in that cache, too.

The sums of a block are rounded, or go through GELU and gating, row by row between the products of the next block.
One product is computed by one thread; ``crew.py`` has several at work.
"""

import mmap
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.packed import Kernels

BLOCK = 32  # tokens and columns of a block of sums
DEEPEST = 64  # tiles: 224 tokens so deep take 0.9 MB of a second cache of 2
LINES = 5  # of 64 bytes of the next panel to fetch in each step, so that 7 blocks fetch all of it
TILE, PANEL_TILE, SUMS = 1024, 2048, 4096  # bytes of a tile, of two side by side, and of a block's sums
HUGE_PAGE = 2 << 20

_BYTE, _INT, _LONG = (ir.IntType(bits) for bits in (8, 32, 64))
_FLOATS, _INTS, _SHORTS = (ir.VectorType(kind, 16) for kind in (ir.FloatType(), _INT, ir.IntType(16)))
_ADDRESS = ir.PointerType(_BYTE)


def _instructions(write: Callable[..., None]) -> Any:
    """What Numba makes of a call with addresses: the instructions that ``write`` gives the builder."""

    @intrinsic
    def call(_: Any, *addresses: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write(builder, *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(addresses)), code

    return call


def _emit(builder: Any, name: str, *values: Any, result: Any = None) -> Any:
    kind = ir.FunctionType(result or ir.VoidType(), [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _at(builder: Any, address: Any, offset: int = 0, kind: Any = _BYTE) -> Any:
    return builder.inttoptr(builder.add(address, _LONG(offset)), ir.PointerType(kind))


def _load(builder: Any, tile: int, address: Any, offset: int = 0) -> None:
    _emit(builder, "llvm.x86.tileloadd64", _BYTE(tile), _at(builder, address, offset), _LONG(64))


@_instructions
def _begin(builder: Any, config: Any) -> None:
    _emit(builder, "llvm.x86.ldtilecfg", _at(builder, config))


@_instructions
def _clear(builder: Any) -> None:
    for tile in range(4):
        _emit(builder, "llvm.x86.tilezero", _BYTE(tile))


@_instructions
def _resume(builder: Any, sums: Any) -> None:
    for tile in range(4):
        _load(builder, tile, sums, TILE * tile)


@_instructions
def _keep(builder: Any, sums: Any) -> None:
    for tile in range(4):
        _emit(builder, "llvm.x86.tilestored64", _BYTE(tile), _at(builder, sums, TILE * tile), _LONG(64))


@_instructions
def _end(builder: Any) -> None:
    _emit(builder, "llvm.x86.tilerelease")


@_instructions
def _step(builder: Any, above: Any, below: Any, weights: Any, coming: Any) -> None:
    """32 tokens by 32 columns, 32 deep; fetches the tokens of the step after the next, and of the weights to come."""
    _load(builder, 4, above)
    _load(builder, 5, below)
    _load(builder, 6, weights)
    _load(builder, 7, weights, TILE)
    for tile in range(4):
        _emit(builder, "llvm.x86.tdpbf16ps", _BYTE(tile), _BYTE(4 + tile // 2), _BYTE(6 + tile % 2))
    into_first, into_second = 3, 2
    for line in range(LINES):
        _fetch(builder, coming, 64 * line, into_second)
    for line in range(TILE // 64):
        _fetch(builder, above, 2 * TILE + 64 * line, into_first)
        _fetch(builder, below, 2 * TILE + 64 * line, into_first)


def _fetch(builder: Any, address: Any, offset: int, level: int) -> None:
    _emit(builder, "llvm.prefetch.p0", _at(builder, address, offset), _INT(0), _INT(level), _INT(1))


@_instructions
def _finish(builder: Any, sums: Any, out: Any) -> None:
    """A row of a block's sums to 32 columns in bfloat16."""
    halves = [_rounded(builder, half) for half in _row(builder, sums)]
    joined = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(_INT, 32), list(range(32))))
    builder.store(joined, _at(builder, out, kind=joined.type), align=64)


@_instructions
def _finish_gated(builder: Any, sums: Any, out: Any) -> None:
    """A row of a block's sums, 16 gates and what they are for, to 16 columns in bfloat16."""
    gate, up = _row(builder, sums)
    builder.store(_rounded(builder, builder.fmul(_gelu(builder, gate), up)), _at(builder, out, kind=_SHORTS), align=32)


@_instructions
def _copy(builder: Any, source: Any, target: Any) -> None:
    """64 bytes, which may cross a line where they come from."""
    kind = ir.VectorType(_INT, 16)
    builder.store(builder.load(_at(builder, source, kind=kind), align=4), _at(builder, target, kind=kind), align=64)


def _row(builder: Any, sums: Any) -> list[Any]:
    return [builder.load(_at(builder, sums, offset, _FLOATS), align=64) for offset in (0, TILE)]


def _splat(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _rounded(builder: Any, x: Any) -> Any:
    """The bits of x in bfloat16, ties to even."""
    bits = builder.bitcast(x, _INTS)
    is_odd = builder.and_(builder.lshr(bits, _splat(_INTS, 16)), _splat(_INTS, 1))
    bits = builder.add(bits, builder.add(is_odd, _splat(_INTS, 0x7FFF)))
    return builder.trunc(builder.lshr(bits, _splat(_INTS, 16)), _SHORTS)


def _gelu(builder: Any, x: Any) -> Any:
    """GELU by its tanh approximation: x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    times, plus = builder.fmul, builder.fadd
    cubic = plus(times(times(x, x), _splat(_FLOATS, -2.3022082 * 0.044715)), _splat(_FLOATS, -2.3022082))
    power = times(x, cubic)  # of two; 2^128 is infinite
    for sign, limit in (("<", 128.0), (">", -126.0)):
        power = builder.select(builder.fcmp_ordered(sign, power, _splat(_FLOATS, limit)), power, _splat(_FLOATS, limit))
    whole = _emit(builder, "llvm.floor.v16f32", power, result=_FLOATS)
    rest = builder.fsub(power, whole)
    result = _splat(_FLOATS, 0.00178967)
    for factor in (0.0091968, 0.05565866, 0.24020687, 0.69314758, 1.0):  # 2^rest, to 2e-7
        result = plus(times(result, rest), _splat(_FLOATS, factor))
    exponent = builder.shl(builder.add(builder.fptosi(whole, _INTS), _splat(_INTS, 127)), _splat(_INTS, 23))
    exponential = times(result, builder.bitcast(exponent, _FLOATS))
    return builder.fdiv(x, plus(exponential, _splat(_FLOATS, 1.0)))


@njit("void(i8, i8, i8, i8, i8, i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _multiply(config, tokens, rows, depth, weights, panels, sums, out, is_gated):  # type: ignore[no-untyped-def]
    """Rows of tokens by panels of weights, so many tiles deep; all addresses but rows, depth, panels and is_gated.

    ``out`` is row-major, or of tiles if gated. ``sums`` has room for those of two blocks, of all if depth > DEEPEST.
    """
    _begin(config)
    blocks = (rows + BLOCK - 1) // BLOCK
    row_size = 64 if is_gated else 64 * panels
    half_size = TILE * (panels // 2) if is_gated else 16 * row_size
    done, target, left = sums, out, 0  # of the block before: sums, where to, and rows of them
    for first in range(0, depth, DEEPEST):
        deep = min(DEEPEST, depth - first)
        rows_a_step = (BLOCK + deep - 1) // deep
        for panel in range(panels):
            for block in range(blocks):
                above = tokens + TILE * (2 * block * depth + first)
                below = above + TILE * depth
                weight = weights + PANEL_TILE * (first * panels + panel * deep)
                coming = weight + PANEL_TILE * deep + 64 * LINES * block * deep
                index = panel * blocks + block
                here = sums + SUMS * (index if depth > DEEPEST else index % 2)
                if first == 0:
                    _clear()
                else:
                    _resume(here)
                for step in range(deep):
                    _step(above, below, weight, coming)
                    above += TILE
                    below += TILE
                    weight += PANEL_TILE
                    coming += 64 * LINES
                    for row in range(rows_a_step * step, min(rows_a_step * (step + 1), left)):
                        to = target + half_size * (row // 16) + row_size * (row % 16)
                        if is_gated:
                            _finish_gated(done + 2 * TILE * (row // 16) + 64 * (row % 16), to)
                        else:
                            _finish(done + 2 * TILE * (row // 16) + 64 * (row % 16), to)
                _keep(here)
                if first + deep == depth:
                    done = here
                    if is_gated:
                        target, left = out + half_size * 2 * block + TILE * (panel // 2) + 32 * (panel % 2), BLOCK
                    else:
                        target, left = out + row_size * BLOCK * block + 64 * panel, min(BLOCK, rows - BLOCK * block)
    for row in range(left):
        to = target + half_size * (row // 16) + row_size * (row % 16)
        if is_gated:
            _finish_gated(done + 2 * TILE * (row // 16) + 64 * (row % 16), to)
        else:
            _finish(done + 2 * TILE * (row // 16) + 64 * (row % 16), to)
    _end()


@njit("void(i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _to_tiles(x, rows, depth, tiles):  # type: ignore[no-untyped-def]
    """Rows of so many tiles in depth into tiles."""
    for row in range(rows):
        for deep in range(depth):
            _copy(x + 64 * (row * depth + deep), tiles + TILE * (row // 16 * depth + deep) + 64 * (row % 16))


class Tiles(NamedTuple):
    """Tokens [B, T, ..] as tiles [B * T / 16, depth / 32, 16, 32], an even number of rows of them."""

    memory: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> "Tiles":
        """Of x [B, T, depth] in bfloat16."""
        x, shape = x.contiguous(), x.shape[:-1]
        tiles = cls.empty(shape, x.shape[-1])
        _to_tiles(x.data_ptr(), shape.numel(), x.shape[-1] // 32, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def empty(cls, shape: torch.Size, depth: int) -> "Tiles":
        """Yet to be written."""
        return cls(torch.empty(-(-shape.numel() // BLOCK) * 2, depth // 32, 16, 32, dtype=torch.bfloat16), shape)


class Matrix:
    """A matrix [columns, depth] in bfloat16, in panels; if gated, its first half are gates for the second."""

    def __init__(self, weight: Tensor, is_gated: bool = False) -> None:
        self.columns, self.is_gated = len(weight) // (2 if is_gated else 1), is_gated
        columns, self.depth = weight.shape[0] // BLOCK, weight.shape[1] // 32
        if is_gated:
            weight = weight.unflatten(0, (2, -1, 16)).transpose(0, 1)
        pairs = weight.reshape(columns, 2, 16, -1).view(torch.int32).unflatten(-1, (self.depth, 16))
        self.panels = columns
        self.memory = _in_huge_pages(pairs.numel() * 4).view(torch.int32)
        at = 0
        for deep in pairs.split(DEEPEST, dim=3):
            self.memory[at : at + deep.numel()].view(columns, -1, 2, 16, 16).copy_(deep.permute(0, 3, 1, 4, 2))
            at += deep.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, depth] -> [B, T, columns]."""
        return self.of(Tiles.of(x))

    def gated(self, x: Tensor) -> Tiles:
        """x [B, T, depth] -> gelu(gate) * up as tiles."""
        tokens = Tiles.of(x)
        out = Tiles.empty(tokens.shape, self.columns)
        self._multiply(tokens, out.memory)
        return out

    def of(self, tokens: Tiles) -> Tensor:
        """Tokens -> [B, T, columns]."""
        out = torch.empty(*tokens.shape, self.columns, dtype=torch.bfloat16)
        self._multiply(tokens, out)
        return out

    def _multiply(self, tokens: Tiles, out: Tensor) -> None:
        blocks = len(tokens.memory) // 2 * self.panels if self.depth > DEEPEST else 2
        sums = torch.empty(blocks * SUMS, dtype=torch.uint8)
        _multiply(
            _config().data_ptr(),
            tokens.memory.data_ptr(),
            tokens.shape.numel(),
            self.depth,
            self.memory.data_ptr(),
            self.panels,
            sums.data_ptr(),
            out.data_ptr(),
            self.is_gated,
        )


@torch.no_grad()
def pack(layer: GemmaLayer) -> Kernels:
    """Kernels on a copy of the layer's matrices in panels."""
    qkv, out, down = (Matrix(matrix.weight.detach()) for matrix in (layer.qkv, layer.out, layer.down))
    return Kernels(qkv, out, Matrix(layer.gate_up.weight.detach(), is_gated=True).gated, down.of)


@cache
def _config() -> Tensor:
    """All eight tiles whole, for LDTILECFG."""
    config = torch.zeros(64, dtype=torch.uint8)
    config[0] = 1  # the palette
    config[16:32:2] = 64  # bytes of a row
    config[48:56] = 16  # rows
    return config


def _in_huge_pages(size: int) -> Tensor:
    """Memory that reading in order does not look up page by page."""
    pages = mmap.mmap(-1, size + HUGE_PAGE)
    pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    return memory[start : start + size]
