"""Kernels of images and prefix for the tile registers of a CPU (Intel AMX), compiled by Numba.

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

All is done on addresses: here are the loops, in ``llvm.py`` what they repeat, in ``tiles.py`` the tensors.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit, types

from pi0_control.model import llvm
from pi0_control.model.llvm import LINES, TILE

BLOCK = 32  # tokens and columns of a block of sums
DEEP = 32  # numbers of the depth in a tile
DEEPEST = 72  # tiles: 224 tokens so deep take 1 MB of a second cache of 2
PANEL_TILE, SUMS = 2 * TILE, 4 * TILE  # bytes of a panel's two tiles, and of a block's sums
ROWS, ADDED, ADDED_WIDE, GELU, GATED = range(5)  # what a product ends in: rows or tiles, and what is done before
_inlined = partial(njit, nogil=True, error_model="numpy")


def _compiled(arguments: int) -> Callable[..., Any]:
    """A decorator that compiles for so many integers: addresses and numbers."""
    return _inlined(types.void(*[types.int64] * arguments))


@_inlined
def _place(row, half_size, row_size):
    """How far a row is from the first, if each 16 rows are half_size from the last 16."""
    return half_size * (row // 16) + row_size * (row % 16)


@_inlined
def _passes(depth):
    """In how many passes so many tiles in depth are multiplied."""
    return (depth + DEEPEST - 1) // DEEPEST


@_inlined
def _pass(index, depth):
    """Where in depth a pass begins, and how many tiles it is deep."""
    first = depth * index // _passes(depth)
    return first, depth * (index + 1) // _passes(depth) - first


@_compiled(7)
def rms_norm(x, scale, shift, rows, depth, out, is_tiled):
    """Rows so many tiles deep, in bfloat16, to tiles or to rows."""
    row_size, line_size = (64, TILE) if is_tiled else (64 * depth, 64)
    half_size = TILE * depth  # of 16 rows, either way
    for row in range(rows):
        target = out + _place(row, half_size, row_size)
        llvm.rms_norm_row(x + 64 * depth * row, scale, shift, depth, target, line_size)


@_compiled(6)
def layer_norm(x, scale, shift, rows, depth, tiles):
    """Rows so many tiles deep, in float32, to tiles."""
    for row in range(rows):
        target = tiles + _place(row, TILE * depth, 64)
        llvm.layer_norm_row(x + 128 * depth * row, scale, shift, depth, target)


@_compiled(4)
def to_tiles(x, rows, depth, tiles):
    """Rows so many tiles deep as they are."""
    for row in range(rows):
        target = tiles + _place(row, TILE * depth, 64)
        for deep in range(depth):
            llvm.copy_line(x + 64 * (depth * row + deep), target + TILE * deep)


@_compiled(6)
def to_panels(weight, panels, depth, panel_step, side_step, target):
    """A matrix so many tiles deep into panels, 2 x 16 of its columns each.

    ``panel_step`` and ``side_step`` are how many columns lie between the firsts of two panels, and of a panel's two
    sides: 32 and 16, or 16 and half of all for gates beside what they gate.
    """
    for index in range(_passes(depth)):
        first, deep = _pass(index, depth)
        for panel in range(panels):
            for side in range(2):
                for column in range(16):
                    source = weight + 64 * (depth * (panel_step * panel + side_step * side + column) + first)
                    tile = target + PANEL_TILE * (first * panels + panel * deep) + TILE * side + 4 * column
                    for step in range(deep):
                        for pair in range(16):
                            llvm.copy_pair(source + 64 * step + 4 * pair, tile + PANEL_TILE * step + 64 * pair)


@_compiled(10)
def rotate(qkv, rows, heads, kv_heads, half, cos, sin, queries, keys, values):
    """Rotated queries and keys, and values, each [rows, heads, head] of its own, from [rows, all heads, head]."""
    size = 64 * half  # of a head, and half of its angles
    for row in range(rows):
        x = qkv + size * (heads + 2 * kv_heads) * row
        cosines, sines = cos + 2 * size * row, sin + 2 * size * row
        for head in range(heads):
            llvm.rotate_head(x + size * head, cosines, sines, half, queries + size * (heads * row + head))
        for head in range(kv_heads):
            place = size * (kv_heads * row + head)
            llvm.rotate_head(x + size * (heads + head), cosines, sines, half, keys + place)
            for line in range(half):
                llvm.copy_line(x + size * (heads + kv_heads + head) + 64 * line, values + place + 64 * line)


@_inlined
def _finish_rows(first, stop, sums, bias, to, row_size, half_size, away, end):
    """Some rows of a block to their places; residuals lie ``away`` from results."""
    for row in range(first, stop):
        source = sums + _place(row, PANEL_TILE, 64)
        target = to + _place(row, half_size, row_size)
        if end == GATED:
            llvm.finish_gated(source, bias, target)
        elif end == GELU:
            llvm.finish_gelu(source, bias, target)
        elif end == ADDED_WIDE:
            llvm.finish_added_wide(source, bias, target + away, target)
        elif end == ADDED:
            llvm.finish_added(source, bias, target + away, target)
        else:
            llvm.finish(source, bias, target)


@_compiled(11)
def multiply(config, tokens, rows, depth, weights, bias, panels, sums, residual, out, end):
    """Rows of tokens in tiles by panels of weights, so many tiles deep.

    config: of the tiles, for LDTILECFG.
    bias: float32 [32 * panels].
    sums: room for those of two blocks, of all blocks if depth > DEEPEST.
    residual: laid out as the result; read only if it is added.
    out, end: ROWS: rows in bfloat16, [rows, 32 * panels]; ADDED: the same, plus the residual; ADDED_WIDE: the same in
        float32; GELU: tiles, 32 * panels deep; GATED: tiles, 16 * panels deep, an even number of panels.
    """
    llvm.begin(config)
    blocks = (rows + BLOCK - 1) // BLOCK
    panel_size = TILE if end == GELU else 128 if end == ADDED_WIDE else 64
    row_size = 64 if end in (GELU, GATED) else panel_size * panels
    half_size = TILE * panels if end == GELU else TILE * (panels // 2) if end == GATED else 16 * row_size
    done, its_bias, to, left = sums, bias, out, 0  # of the block before: sums, where to, and how many rows of them
    passes = _passes(depth)
    for index in range(passes):
        first, deep = _pass(index, depth)
        rows_a_step = (BLOCK + deep - 1) // deep
        for panel in range(panels):
            for block in range(blocks):
                above = tokens + TILE * (2 * block * depth + first)
                below = above + TILE * depth
                weight = weights + PANEL_TILE * (first * panels + panel * deep)
                coming = weight + PANEL_TILE * deep + 64 * LINES * deep * block
                number = panel * blocks + block
                here = sums + SUMS * (number if passes > 1 else number % 2)
                if index == 0:
                    llvm.clear()
                else:
                    llvm.resume(here)
                for step in range(deep):
                    llvm.step(above, below, weight, coming)
                    above += TILE
                    below += TILE
                    weight += PANEL_TILE
                    coming += 64 * LINES
                    row = rows_a_step * step
                    until = min(row + rows_a_step, left)
                    _finish_rows(row, until, done, its_bias, to, row_size, half_size, residual - out, end)
                llvm.keep(here)
                if index + 1 == passes:
                    done, its_bias, left = here, bias + 128 * panel, min(BLOCK, rows - BLOCK * block)
                    across = TILE * (panel // 2) + 32 * (panel % 2) if end == GATED else panel_size * panel
                    to = out + half_size * 2 * block + across
    _finish_rows(0, left, done, its_bias, to, row_size, half_size, residual - out, end)
    llvm.end()
