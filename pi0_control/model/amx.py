"""Kernels of a packed prefix for the tile registers of a CPU (Intel AMX), compiled by Numba.

A tile is 1 kB: 16 rows of 64 bytes. One instruction multiplies a tile of 16 tokens, 32 deep, by one of weights, 32 deep
and 16 columns wide, and adds to 16 x 16 sums in float32. It takes 16 cycles; loading a tile takes 8 from the first
cache, 16 from the second. So a block is 2 x 2 tiles of sums, which wants one load for each product, and all is laid out
in the order in which it is loaded:

- tokens as [tokens / 16, depth / 32, 16, 32]; norms and hidden layers are written that way;
- weights in panels of 32 columns, [panels, depth / 32, 2, 16, 16, 2]: columns side by side, pairs of the depth
  together. A panel stays in the second cache for all tokens of a part while the next one is on its way;
- a depth of more than ``DEEPEST`` tiles one after the other, for tokens to stay in that cache, too.

The sums of a block are rounded, once, between the products of the next block, after what stands behind a product in a
layer: the residual sum, or GELU and gating. One thread computes a product; ``crew.py`` has several at work.

Functions under ``_instructions`` write what LLVM is to compile, on addresses; those under ``njit`` are loops of them.
"""

import mmap
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from pi0_control.model.gemma import RMS_NORM_EPS

BLOCK = 32  # tokens and columns of a block of sums
DEEPEST = 64  # tiles: 224 tokens so deep take 0.9 MB of a second cache of 2
LINES = 5  # of 64 bytes of the next panel to fetch in each step, so that 7 blocks fetch all of it
TILE, PANEL_TILE, SUMS = 1024, 2048, 4096  # bytes of a tile, of two side by side, and of a block's sums
HUGE_PAGE = 2 << 20

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
_FLOATS, _SHORTS, _INTS = (ir.VectorType(kind, 16) for kind in (_FLOAT, _SHORT, _INT))


def _instructions(write: Callable[..., None]) -> Any:
    """What Numba makes of a call with addresses and numbers: the instructions that ``write`` gives the builder."""

    @intrinsic
    def call(_: Any, *arguments: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write(builder, *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(arguments)), code

    return call


def _emit(builder: Any, name: str, *values: Any, result: Any = None) -> Any:
    kind = ir.FunctionType(result or ir.VoidType(), [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _at(builder: Any, address: Any, offset: int = 0, kind: Any = _BYTE) -> Any:
    return builder.inttoptr(builder.add(address, _LONG(offset)), ir.PointerType(kind))


def _item(builder: Any, address: Any, index: Any, size: int) -> Any:
    return builder.add(address, builder.mul(index, _LONG(size)))


def _splat(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _float32(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 numbers."""
    return builder.load(_at(builder, address, offset, _FLOATS), align=4)


def _bfloat16(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 numbers, in float32."""
    bits = builder.zext(builder.load(_at(builder, address, offset, _SHORTS), align=2), _INTS)
    return builder.bitcast(builder.shl(bits, _splat(_INTS, 16)), _FLOATS)


def _rounded(builder: Any, x: Any) -> Any:
    """The bits of x in bfloat16, ties to even."""
    bits = builder.bitcast(x, _INTS)
    is_odd = builder.and_(builder.lshr(bits, _splat(_INTS, 16)), _splat(_INTS, 1))
    bits = builder.add(bits, builder.add(is_odd, _splat(_INTS, 0x7FFF)))
    return builder.trunc(builder.lshr(bits, _splat(_INTS, 16)), _SHORTS)


def _write(builder: Any, x: Any, address: Any, offset: int = 0) -> None:
    """16 numbers in bfloat16."""
    builder.store(_rounded(builder, x), _at(builder, address, offset, _SHORTS), align=2)


def _write_line(builder: Any, halves: Sequence[Any], address: Any) -> None:
    """32 numbers in bfloat16, a whole line of a cache."""
    order = ir.Constant(ir.VectorType(_INT, 32), list(range(32)))
    line = builder.shuffle_vector(*(_rounded(builder, half) for half in halves), order)
    builder.store(line, _at(builder, address, kind=line.type), align=2)


@_instructions
def _copy_line(builder: Any, source: Any, target: Any) -> None:
    builder.store(builder.load(_at(builder, source, kind=_INTS), align=2), _at(builder, target, kind=_INTS), align=2)


def _load_tile(builder: Any, tile: int, address: Any, offset: int = 0) -> None:
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
        _load_tile(builder, tile, sums, TILE * tile)


@_instructions
def _keep(builder: Any, sums: Any) -> None:
    for tile in range(4):
        _emit(builder, "llvm.x86.tilestored64", _BYTE(tile), _at(builder, sums, TILE * tile), _LONG(64))


@_instructions
def _end(builder: Any) -> None:
    _emit(builder, "llvm.x86.tilerelease")


@_instructions
def _step(builder: Any, above: Any, below: Any, weights: Any, coming: Any) -> None:
    """32 tokens by 32 columns, 32 deep; fetches a tile of tokens of the step after the next, and weights to come."""
    _load_tile(builder, 4, above)
    _load_tile(builder, 5, below)
    _load_tile(builder, 6, weights)
    _load_tile(builder, 7, weights, TILE)
    for tile in range(4):
        _emit(builder, "llvm.x86.tdpbf16ps", _BYTE(tile), _BYTE(4 + tile // 2), _BYTE(6 + tile % 2))
    into_first, into_second = 3, 2
    for line in range(LINES):
        _fetch(builder, coming, 64 * line, into_second)
    for line in range(TILE // 64):  # of one of both tiles: more would hold up the weights
        _fetch(builder, above, 2 * TILE + 64 * line, into_first)


def _fetch(builder: Any, address: Any, offset: int, level: int) -> None:
    _emit(builder, "llvm.prefetch.p0", _at(builder, address, offset), _INT(0), _INT(level), _INT(1))


def _sums(builder: Any, row: Any) -> list[Any]:
    """A row of a block: 32 columns."""
    return [_float32(builder, row), _float32(builder, row, TILE)]


@_instructions
def _finish(builder: Any, row: Any, out: Any) -> None:
    """A row of sums -> 32 columns."""
    _write_line(builder, _sums(builder, row), out)


@_instructions
def _finish_added(builder: Any, row: Any, residual: Any, out: Any) -> None:
    """A row of sums, and residual -> 32 columns."""
    before = [_bfloat16(builder, residual), _bfloat16(builder, residual, 32)]
    _write_line(builder, [builder.fadd(*pair) for pair in zip(before, _sums(builder, row), strict=True)], out)


@_instructions
def _finish_gated(builder: Any, row: Any, out: Any) -> None:
    """A row of sums, 16 gates and what they gate -> 16 columns."""
    gate, up = _sums(builder, row)
    _write(builder, builder.fmul(_gelu(builder, gate), up), out)


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


@_instructions
def _norm_row(builder: Any, x: Any, scale: Any, depth: Any, target: Any) -> None:
    """RMS norm of a row so many tiles deep, times a scale in float32, to a row of tiles."""
    squares = cgutils.alloca_once_value(builder, _splat(_FLOATS, 0.0))
    with cgutils.for_range(builder, depth) as loop:
        line = _item(builder, x, loop.index, 64)
        for half in (_bfloat16(builder, line), _bfloat16(builder, line, 32)):
            builder.store(builder.fadd(builder.load(squares), builder.fmul(half, half)), squares)
    total = _emit(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT(0.0), builder.load(squares), result=_FLOAT)
    mean = builder.fdiv(total, builder.sitofp(builder.mul(depth, _LONG(32)), _FLOAT))
    rms = _emit(builder, "llvm.sqrt.f32", builder.fadd(mean, _FLOAT(RMS_NORM_EPS)), result=_FLOAT)
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), builder.fdiv(_FLOAT(1.0), rms), _INT(0))
    one_over_rms = builder.shuffle_vector(first, first, _splat(_INTS, 0))
    with cgutils.for_range(builder, depth) as loop:
        line, factors = _item(builder, x, loop.index, 64), _item(builder, scale, loop.index, 128)
        halves = [
            builder.fmul(
                builder.fmul(_bfloat16(builder, line, 32 * half), one_over_rms), _float32(builder, factors, 64 * half)
            )
            for half in range(2)
        ]
        _write_line(builder, halves, _item(builder, target, loop.index, TILE))


@_instructions
def _rotate_head(builder: Any, x: Any, cos: Any, sin: Any, half: Any, target: Any) -> None:
    """A head of twice ``half`` times 16 columns, by the cosines and signed sines of all of them."""
    with cgutils.for_range(builder, half) as loop:
        far = builder.add(loop.index, half)
        columns = [_bfloat16(builder, _item(builder, x, index, 32)) for index in (loop.index, far)]
        for index, (own, other) in ((loop.index, columns), (far, columns[::-1])):
            cosines, sines = (_float32(builder, _item(builder, table, index, 64)) for table in (cos, sin))
            rotated = builder.fadd(builder.fmul(own, cosines), builder.fmul(other, sines))
            _write(builder, rotated, _item(builder, target, index, 32))


@njit("void(i8, i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _norm(x, scale, rows, depth, tiles):
    """Rows so many tiles deep through :func:`_norm_row`."""
    for row in range(rows):
        _norm_row(x + 64 * depth * row, scale, depth, tiles + TILE * depth * (row // 16) + 64 * (row % 16))


@njit("void(i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _to_tiles(x, rows, depth, tiles):
    """Rows so many tiles deep as they are."""
    for row in range(rows):
        for deep in range(depth):
            _copy_line(x + 64 * (depth * row + deep), tiles + TILE * (depth * (row // 16) + deep) + 64 * (row % 16))


@njit("void(i8, i8, i8, i8, i8, i8, i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _rotate(qkv, rows, heads, kv_heads, half, cos, sin, queries, keys, values):
    """Rotated queries and keys, and values, each [rows, heads, head] of its own, from [rows, all heads, head]."""
    size = 64 * half  # of a head, and half of its angles
    for row in range(rows):
        x = qkv + size * (heads + 2 * kv_heads) * row
        cosines, sines = cos + 2 * size * row, sin + 2 * size * row
        for head in range(heads):
            _rotate_head(x + size * head, cosines, sines, half, queries + size * (heads * row + head))
        for head in range(kv_heads):
            place = size * (kv_heads * row + head)
            _rotate_head(x + size * (heads + head), cosines, sines, half, keys + place)
            for line in range(half):
                _copy_line(x + size * (heads + kv_heads + head) + 64 * line, values + place + 64 * line)


@njit(nogil=True, error_model="numpy")
def _finish_rows(first, stop, sums, to, row_size, half_size, residual, is_gated):
    """Some rows of a block; ``residual`` is how far from them their residuals are, 0 if there are none."""
    for row in range(first, stop):
        source = sums + 2 * TILE * (row // 16) + 64 * (row % 16)
        target = to + half_size * (row // 16) + row_size * (row % 16)
        if is_gated:
            _finish_gated(source, target)
        elif residual:
            _finish_added(source, target + residual, target)
        else:
            _finish(source, target)


@njit("void(i8, i8, i8, i8, i8, i8, i8, i8, i8, i8)", nogil=True, error_model="numpy")
def _multiply(config, tokens, rows, depth, weights, panels, sums, residual, out, is_gated):
    """Rows of tokens by panels of weights, so many tiles deep; the rest but ``is_gated`` are addresses.

    ``out`` and the residual, if it is not 0, are row-major; gated, ``out`` is of tiles, and there is no residual.
    ``sums`` has room for two blocks, for all of them if depth > DEEPEST.
    """
    _begin(config)
    blocks = (rows + BLOCK - 1) // BLOCK
    row_size = 64 if is_gated else 64 * panels
    half_size = TILE * (panels // 2) if is_gated else 16 * row_size
    away = residual - out if residual else 0
    done, to, left = sums, out, 0  # of the block before: sums, where to, and how many rows of them
    for first in range(0, depth, DEEPEST):
        deep = min(DEEPEST, depth - first)
        rows_a_step = (BLOCK + deep - 1) // deep
        for panel in range(panels):
            for block in range(blocks):
                above = tokens + TILE * (2 * block * depth + first)
                below = above + TILE * depth
                weight = weights + PANEL_TILE * (first * panels + panel * deep)
                coming = weight + PANEL_TILE * deep + 64 * LINES * deep * block
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
                    row = rows_a_step * step
                    _finish_rows(row, min(row + rows_a_step, left), done, to, row_size, half_size, away, is_gated)
                _keep(here)
                if first + deep == depth:
                    done, left = here, min(BLOCK, rows - BLOCK * block)
                    to = (
                        out
                        + half_size * 2 * block
                        + (TILE * (panel // 2) + 32 * (panel % 2) if is_gated else 64 * panel)
                    )
    _finish_rows(0, left, done, to, row_size, half_size, away, is_gated)
    _end()


class Tiles(NamedTuple):
    """Tokens [B, T, depth] in bfloat16 as tiles [B * T / 16, depth / 32, 16, 32], an even number of rows of them."""

    memory: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> "Tiles":
        """Of x [B, T, depth]."""
        x = x.contiguous()
        tiles = cls.empty(x.shape)
        _to_tiles(x.data_ptr(), x.shape[:-1].numel(), x.shape[-1] // 32, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def normed(cls, x: Tensor, scale: Tensor) -> "Tiles":
        """Of RMS norm of x [B, T, depth] times a scale, float32 [depth]."""
        x = x.contiguous()
        tiles = cls.empty(x.shape)
        rows, depth = x.shape[:-1].numel(), x.shape[-1] // 32
        _norm(x.data_ptr(), scale.data_ptr(), rows, depth, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def empty(cls, shape: torch.Size) -> "Tiles":
        """Yet to be written."""
        rows = -(-shape[:-1].numel() // BLOCK) * 2
        return cls(torch.empty(rows, shape[-1] // 32, 16, 32, dtype=torch.bfloat16), shape)


class Matrix:
    """A matrix [columns, depth] in bfloat16, copied to panels; if gated, its first half are gates for the second."""

    def __init__(self, weight: Tensor, is_gated: bool = False) -> None:
        self.panels, self.depth, self.is_gated = weight.shape[0] // BLOCK, weight.shape[1] // 32, is_gated
        if is_gated:
            weight = weight.unflatten(0, (2, -1, 16)).transpose(0, 1)
        pairs = weight.reshape(self.panels, 2, 16, -1).view(torch.int32).unflatten(-1, (self.depth, 16))
        self.memory = _in_huge_pages(pairs.numel() * 4).view(torch.int32)
        passes = pairs.permute(3, 0, 1, 4, 2).split(DEEPEST)
        for memory, deep in zip(self.memory.split([deep.numel() for deep in passes]), passes, strict=True):
            memory.view(self.panels, -1, 2, 16, 16).copy_(deep.transpose(0, 1))

    def __call__(self, tokens: Tiles, residual: Tensor | None = None) -> Tensor:
        """Tokens [B, T, depth] -> [B, T, columns], plus a residual of that shape."""
        out = torch.empty(*tokens.shape[:-1], self.panels * BLOCK, dtype=torch.bfloat16)
        self._multiply(tokens, out, None if residual is None else residual.contiguous())
        return out

    def gated(self, tokens: Tiles) -> Tiles:
        """Tokens [B, T, depth] -> gelu(gate) * up, [B, T, columns / 2]."""
        out = Tiles.empty(torch.Size((*tokens.shape[:-1], self.panels * BLOCK // 2)))
        self._multiply(tokens, out.memory)
        return out

    def _multiply(self, tokens: Tiles, out: Tensor, residual: Tensor | None = None) -> None:
        blocks = len(tokens.memory) // 2 * self.panels if self.depth > DEEPEST else 2
        sums = torch.empty(blocks * SUMS, dtype=torch.uint8)
        _multiply(
            _config().data_ptr(),
            tokens.memory.data_ptr(),
            tokens.shape[:-1].numel(),
            self.depth,
            self.memory.data_ptr(),
            self.panels,
            sums.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
            self.is_gated,
        )


def rotate_into(qkv: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, start: int) -> Tensor:
    """Queries [B, T, heads, head_dim] rotated; rotated keys, and values, into the cache.

    Args:
        qkv: [B, T, columns].
        rope: cosines, and sines with the first half negated, of all places, float32 [1 or B, places, 1, head_dim].
        cache: keys and values [2, B, places, kv_heads, head_dim].
        start: place of the first token.
    """
    (batch, length, columns), (kv_heads, head_dim) = qkv.shape, cache.shape[-2:]
    queries = qkv.new_empty(batch, length, columns // head_dim - 2 * kv_heads, head_dim)
    for row in range(batch):
        cos, sin = (table[row % len(table), start] for table in rope)
        _rotate(
            qkv[row].data_ptr(),
            length,
            queries.shape[2],
            kv_heads,
            head_dim // 32,
            cos.data_ptr(),
            sin.data_ptr(),
            queries[row].data_ptr(),
            cache[0, row, start].data_ptr(),
            cache[1, row, start].data_ptr(),
        )
    return queries


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
