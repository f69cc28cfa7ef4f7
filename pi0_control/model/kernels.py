"""Triton kernels of the fast path on a GPU: a denoising layer in six launches, and what joins a prefix's products.

A denoising step is some fifty rows against 300 M weights. Reading those takes 0.15 ms on an H200 (4.3 TB/s); launched
operator by operator a step is 440 kernels of which each costs more than what it computes. So whatever touches only the
rows goes into the product before or behind it:

- the norm before a product needs the whole row, which the product reads anyway: ``y = r * (x * scale) + shift`` with
  ``r = 1 / rms(x)`` gives ``y W = r * ((x * scale) W) + shift W``. The squares are summed beside the product, and
  ``shift W`` is a vector per layer and step that is computed once;
- rotary angles pair the columns j and j + head_dim / 2, so one program computes both and stores the rotated pair where
  it belongs: queries in a buffer, keys and values behind the prefix in the cache;
- gating and the residual sum are what is done with a finished tile of a product, as is ``gelu(gate) * up``.

Attention has few rows (tokens times heads, all on one key head) and about a thousand keys: the keys are split among
programs so that all of the GPU works, and a second kernel joins the parts.

Everything is written for row-major tensors, sums in float32, and computes in the dtype of the weights. On a CPU the
kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), which is how the tests compare them with the plain model.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pi0_control.model.float8 import FLOAT8, LARGEST, LEAST_SCALE, ScaledRows
from pi0_control.model.gemma import RMS_NORM_EPS

NEVER = -1e30  # a logit that no other is below
SPLITS = 8  # parts of the keys in attention
ROWS = 64  # rows of a product's tile: those of one warp group of a Hopper GPU, and enough for a chunk of 50 actions

INTERPRETED = triton.knobs.runtime.interpret
TILE = (4, 8) if INTERPRETED else (64, 256)  # columns and depth of which the largest tiles are; what they must divide


def _products(most_columns: int) -> list[triton.Config]:
    """Tiles of a product to choose from: columns and depth of the weights' tile, and how many are on their way.

    What counts is bytes on their way, about 3 MB over the whole GPU to keep an H200's memory busy.
    """
    if INTERPRETED:
        return [triton.Config({"COLUMNS": TILE[0], "DEPTH": TILE[1]})]
    tiles = [(16, 128, 5), (16, 256, 4), (32, 128, 4), (32, 256, 3), (64, 128, 3), (64, 64, 4)]
    return [
        triton.Config({"COLUMNS": columns, "DEPTH": depth}, num_warps=warps, num_stages=stages)
        for columns, depth, stages in tiles
        for warps in (4, 8)
        if columns <= most_columns
    ]


def _attentions() -> list[triton.Config]:
    """Keys per tile to choose from, with warps and stages."""
    if INTERPRETED:
        return [triton.Config({"KEYS": TILE[1]})]
    tiles = [(32, 4, 2), (32, 4, 3), (64, 4, 2), (64, 8, 2), (64, 8, 3)]
    return [triton.Config({"KEYS": keys}, num_warps=warps, num_stages=stages) for keys, warps, stages in tiles]


# One parameter per line would hide the kernels.
# fmt: off

@triton.jit
def _normed_pair(x, scale, bias, row, inside, weight, column, apart, WIDTH: tl.constexpr, EPS, DEPTH: tl.constexpr):
    """The normed rows times the columns at ``column`` and those that lie ``apart`` from them, float32."""
    first = weight + column[None, :] * WIDTH
    second = first + apart * WIDTH
    a = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    b = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    squares = tl.zeros((row.shape[0],), tl.float32)
    for begin in range(0, WIDTH, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        tile = tl.load(x + row[:, None] * WIDTH + k[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += tl.sum(tile * tile, axis=1)
        scaled = (tile * tl.load(scale + k)[None, :]).to(weight.dtype.element_ty)
        a = tl.dot(scaled, tl.load(first + k[:, None]), a, input_precision="ieee")
        b = tl.dot(scaled, tl.load(second + k[:, None]), b, input_precision="ieee")
    r = tl.rsqrt(squares / WIDTH + EPS)[:, None]
    a, b = a * r, b * r
    if bias is not None:
        a += tl.load(bias + column)[None, :]
        b += tl.load(bias + apart + column)[None, :]
    return a, b


@triton.autotune(_products(32), key=["WIDTH", "HEADS"], cache_results=True)
@triton.jit
def _qkv(
    x, scale, bias, weight, cos, sin, queries, keys, values, rows, tokens, start, angles_per_row, cached_per_row,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    half: tl.constexpr = HEAD_DIM // 2
    per_head: tl.constexpr = half // COLUMNS
    head = tl.program_id(0) // per_head  # the queries', then that of the keys, then that of the values
    column = (tl.program_id(0) % per_head) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < rows
    a, b = _normed_pair(x, scale, bias, row, inside, weight, head * HEAD_DIM + column, half, WIDTH, EPS, DEPTH)
    place = start + row % tokens
    if head <= HEADS:
        angle = ((row // tokens) * angles_per_row + place * HEAD_DIM + half)[:, None] + column[None, :]
        c = tl.load(cos + angle, mask=inside, other=0.0)
        s = tl.load(sin + angle, mask=inside, other=0.0)
        a, b = a * c - b * s, b * c + a * s
    cached = ((row // tokens) * cached_per_row + place * HEAD_DIM)[:, None] + column[None, :]
    if head < HEADS:
        out = queries + (row * HEADS * HEAD_DIM + head * HEAD_DIM)[:, None] + column[None, :]
        tl.store(out, a.to(queries.dtype.element_ty), mask=inside)
        tl.store(out + half, b.to(queries.dtype.element_ty), mask=inside)
    elif head == HEADS:
        tl.store(keys + cached, a.to(keys.dtype.element_ty), mask=inside)
        tl.store(keys + cached + half, b.to(keys.dtype.element_ty), mask=inside)
    else:
        tl.store(values + cached, a.to(values.dtype.element_ty), mask=inside)
        tl.store(values + cached + half, b.to(values.dtype.element_ty), mask=inside)


def _per_row(table: Tensor) -> int:
    """Entries from one row of a table of angles [1 or B, places, 1, head_dim] to the next; 0 if all share one."""
    return table.stride(0) if len(table) > 1 else 0


def normed_qkv(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    rope: tuple[Tensor, Tensor],
    cache: Tensor,
    start: int,
) -> Tensor:
    """Norm, projection and rotation: queries are returned, keys and values go into the cache at ``start``.

    Args:
        x: the stream [B, T, width].
        scale: of the norm, float32 [width].
        bias: what the norm's shift adds to each column, float32 [(heads + 2) * head_dim]; None for no shift.
        weight: [(heads + 2) * head_dim, width].
        rope: cosines, and sines with the first half negated, float32 [1 or B, places, 1, head_dim].
        cache: keys and values, [2, B, places, 1, head_dim].

    Returns:
        Queries [B, T, heads, head_dim].
    """
    (batch, tokens, width), head_dim = x.shape, cache.shape[-1]
    heads = weight.shape[0] // head_dim - 2
    queries = x.new_empty(batch, tokens, heads, head_dim)
    cos, sin = rope

    def grid(chosen: Any) -> tuple[int, int]:
        return ((heads + 2) * (head_dim // 2 // chosen["COLUMNS"]), triton.cdiv(batch * tokens, ROWS))

    _qkv[grid](
        x, scale, bias, weight, cos, sin, queries, cache[0], cache[1], batch * tokens, tokens, start, _per_row(cos),
        cache.stride(1), WIDTH=width, HEADS=heads, HEAD_DIM=head_dim, EPS=RMS_NORM_EPS, ROWS=ROWS
    )
    return queries


@triton.autotune(_attentions(), key=["HEADS", "HEAD_DIM"], cache_results=True)
@triton.jit
def _attend_part(
    queries, keys, values, seen, parts, tops, totals, tokens, length, first_sees, cached_per_row,
    SCALE: tl.constexpr, NEVER: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr
):
    batch, split = tl.program_id(2), tl.program_id(1)
    rows = tokens * HEADS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # a token's heads follow each other
    dim = tl.arange(0, HEAD_DIM)
    q = tl.load(queries + (batch * rows + row)[:, None] * HEAD_DIM + dim[None, :], mask=row[:, None] < rows, other=0.0)
    limit = tl.where(row < HEADS, first_sees, length)
    own_keys = keys + batch * cached_per_row
    own_values = values + batch * cached_per_row
    top = tl.full((ROWS,), NEVER, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    per_split = tl.cdiv(tl.cdiv(length, KEYS), SPLITS) * KEYS
    for begin in range(split * per_split, tl.minimum((split + 1) * per_split, length), KEYS):
        n = begin + tl.arange(0, KEYS)
        inside = n < length
        valid = tl.load(seen + batch * length + n, mask=inside, other=0) != 0
        k = tl.load(own_keys + n[None, :] * HEAD_DIM + dim[:, None], mask=inside[None, :], other=0.0)
        allowed = valid[None, :] & (n[None, :] < limit[:, None])
        logits = tl.where(allowed, tl.dot(q, k, input_precision="ieee") * SCALE, NEVER)
        higher = tl.maximum(top, tl.max(logits, axis=1))
        weights = tl.where(allowed, tl.exp(logits - higher[:, None]), 0.0)
        fade = tl.exp(top - higher)
        v = tl.load(own_values + n[:, None] * HEAD_DIM + dim[None, :], mask=inside[:, None], other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out * fade[:, None], input_precision="ieee")
        total = total * fade + tl.sum(weights, axis=1)
        top = higher
    part = (batch * rows + row) * SPLITS + split
    tl.store(parts + part[:, None] * HEAD_DIM + dim[None, :], out, mask=row[:, None] < rows)
    tl.store(tops + part, top, mask=row < rows)
    tl.store(totals + part, total, mask=row < rows)


@triton.jit
def _join_parts(parts, tops, totals, out, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr):
    row, split, dim = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, HEAD_DIM)
    top = tl.load(tops + row * SPLITS + split)
    share = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(share * tl.load(totals + row * SPLITS + split), axis=0)
    part = tl.load(parts + (row * SPLITS + split)[:, None] * HEAD_DIM + dim[None, :])
    joined = tl.sum(part * share[:, None], axis=0) / total
    tl.store(out + row * HEAD_DIM + dim, joined.to(out.dtype.element_ty))


def attend(queries: Tensor, cache: Tensor, seen: Tensor, first_sees: int) -> Tensor:
    """Attention of few tokens to many keys of one head; float32 between the two products.

    Args:
        queries: [B, T, heads, head_dim].
        cache: keys and values, [2, B, S, 1, head_dim], contiguous from the key on.
        seen: uint8 [B, S], 0 for keys that no token sees; every row has some.
        first_sees: how many of the keys the first token sees: all, or those up to itself.

    Returns:
        [B, T, heads * head_dim].
    """
    batch, tokens, heads, head_dim = queries.shape
    rows, length = tokens * heads, seen.shape[1]
    parts = torch.empty(batch * rows, SPLITS, head_dim, dtype=torch.float32, device=queries.device)
    tops, totals = parts.new_empty(batch * rows, SPLITS), parts.new_empty(batch * rows, SPLITS)
    tile = 32
    _attend_part[(triton.cdiv(rows, tile), SPLITS, batch)](
        queries, cache[0], cache[1], seen, parts, tops, totals, tokens, length, first_sees, cache.stride(1),
        SCALE=head_dim**-0.5, NEVER=NEVER, HEADS=heads, HEAD_DIM=head_dim, SPLITS=SPLITS, ROWS=tile
    )
    out = torch.empty_like(queries).view(batch, tokens, heads * head_dim)
    _join_parts[(batch * rows,)](parts, tops, totals, out, HEAD_DIM=head_dim, SPLITS=SPLITS, num_warps=4)
    return out


@triton.autotune(_products(64), key=["WIDTH", "DEEP"], cache_results=True)
@triton.jit
def _gated_product(
    x, branch, weight, gate, out, rows, WIDTH: tl.constexpr, DEEP: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < rows
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, DEEP, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        tile = tl.load(branch + row[:, None] * DEEP + k[None, :], mask=inside, other=0.0)
        sums = tl.dot(tile, tl.load(weight + column[None, :] * DEEP + k[:, None]), sums, input_precision="ieee")
    if gate is not None:
        sums *= tl.load(gate + column).to(tl.float32)[None, :]
    place = row[:, None] * WIDTH + column[None, :]
    sums += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)


def gated_product(x: Tensor, branch: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
    """``x + gate * (branch @ weight.T)``: x [B, T, width], branch [B, T, deep], weight [width, deep], gate [width]."""
    rows, width, deep = x.shape[0] * x.shape[1], *weight.shape
    out = torch.empty_like(x)

    def grid(chosen: Any) -> tuple[int, int]:
        return (width // chosen["COLUMNS"], triton.cdiv(rows, ROWS))

    _gated_product[grid](x, branch, weight, gate, out, rows, WIDTH=width, DEEP=deep, ROWS=ROWS)
    return out


@triton.jit
def _gelu(x):
    """By the tanh formula, which is a sigmoid."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.autotune(_products(32), key=["WIDTH", "HIDDEN"], cache_results=True)
@triton.jit
def _gate_up(
    x, scale, bias, weight, out, rows, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < rows
    gate, up = _normed_pair(x, scale, bias, row, inside, weight, column, HIDDEN, WIDTH, EPS, DEPTH)
    place = row[:, None] * HIDDEN + column[None, :]
    tl.store(out + place, (_gelu(gate) * up).to(out.dtype.element_ty), mask=inside)


def normed_gate_up(x: Tensor, scale: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    """Norm, both products of the gated MLP and their joining: x [B, T, width] -> [B, T, hidden].

    Args:
        scale: of the norm, float32 [width].
        bias: what the norm's shift adds to each column, float32 [2 * hidden]; None for no shift.
        weight: gate, then up, [2 * hidden, width].
    """
    (batch, tokens, width), hidden = x.shape, weight.shape[0] // 2
    out = x.new_empty(batch, tokens, hidden)

    def grid(chosen: Any) -> tuple[int, int]:
        return (hidden // chosen["COLUMNS"], triton.cdiv(batch * tokens, ROWS))

    _gate_up[grid](x, scale, bias, weight, out, batch * tokens, WIDTH=width, HIDDEN=hidden, EPS=RMS_NORM_EPS, ROWS=ROWS)
    return out


# Around the products of a prefix: hundreds of rows, so the products are cuBLAS's and these are bound by memory.


@triton.jit
def _rms_norm(x, scale, out, WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    tile = tl.load(x + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(tile * tile, axis=0) / WIDTH + EPS)
    normed = tile * r * tl.load(scale + column, mask=column < WIDTH, other=0.0)
    tl.store(out + row * WIDTH + column, normed.to(out.dtype.element_ty), mask=column < WIDTH)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """``rms(x) * scale``, x [B, T, width], scale float32 [width]; one kernel that reads and writes x's dtype."""
    out, width = torch.empty_like(x), x.shape[-1]
    block = triton.next_power_of_2(width)
    _rms_norm[(x.shape[0] * x.shape[1],)](x, scale, out, WIDTH=width, EPS=RMS_NORM_EPS, BLOCK=block)
    return out


@triton.jit
def _scaled_rows(x, narrow, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tile = tl.load(x + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    s = tl.maximum(tl.max(tl.abs(tile), axis=0) / MOST, LEAST)
    tl.store(scale + row, s)
    tl.store(narrow + row * WIDTH + column, (tile / s).to(narrow.dtype.element_ty), mask=column < WIDTH)


def scaled_rows(x: Tensor) -> ScaledRows:
    """:func:`float8.scaled_rows` of x [rows, width] in one launch that reads x once."""
    x, (rows, width) = x.contiguous(), x.shape
    out = ScaledRows(torch.empty_like(x, dtype=FLOAT8), x.new_empty(rows, 1, dtype=torch.float32))
    block, limits = triton.next_power_of_2(width), {"MOST": LARGEST, "LEAST": LEAST_SCALE}
    _scaled_rows[(rows,)](x, *out, WIDTH=width, BLOCK=block, **limits, num_warps=8)
    return out


@triton.jit
def _rotate(
    qkv, cos, sin, queries, keys, values, tokens, angles_per_row, cached_per_row, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr
):
    half: tl.constexpr = HEAD_DIM // 2
    row, head, column = tl.program_id(0), tl.program_id(1), tl.arange(0, half)
    source = qkv + (row * (HEADS + 2) + head) * HEAD_DIM + column
    a, b = tl.load(source).to(tl.float32), tl.load(source + half).to(tl.float32)
    place = row % tokens
    if head <= HEADS:
        angle = (row // tokens) * angles_per_row + place * HEAD_DIM + half + column
        c, s = tl.load(cos + angle), tl.load(sin + angle)
        a, b = a * c - b * s, b * c + a * s
    cached = (row // tokens) * cached_per_row + place * HEAD_DIM + column
    if head < HEADS:
        out = queries + (row * HEADS + head) * HEAD_DIM + column
        tl.store(out, a.to(queries.dtype.element_ty))
        tl.store(out + half, b.to(queries.dtype.element_ty))
    elif head == HEADS:
        tl.store(keys + cached, a.to(keys.dtype.element_ty))
        tl.store(keys + cached + half, b.to(keys.dtype.element_ty))
    else:
        tl.store(values + cached, a.to(values.dtype.element_ty))
        tl.store(values + cached + half, b.to(values.dtype.element_ty))


def rotate_into(qkv: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor) -> Tensor:
    """Rotate queries and keys; queries [B, T, heads, head_dim] are returned, the rest goes into the cache at 0.

    Args:
        qkv: [B, T, (heads + 2) * head_dim].
        rope, cache: as of :func:`normed_qkv`.
    """
    (batch, tokens, columns), head_dim = qkv.shape, cache.shape[-1]
    heads, (cos, sin) = columns // head_dim - 2, rope
    queries = qkv.new_empty(batch, tokens, heads, head_dim)
    _rotate[(batch * tokens, heads + 2)](
        qkv, cos, sin, queries, cache[0], cache[1], tokens, _per_row(cos), cache.stride(1),
        HEADS=heads, HEAD_DIM=head_dim, num_warps=1
    )
    return queries


@triton.jit
def _join_gate_up(both, out, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # of a large batch there may be 2^31 entries
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < HIDDEN
    gate = tl.load(both + row * 2 * HIDDEN + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * HIDDEN + HIDDEN + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * HIDDEN + column, (_gelu(gate) * up).to(out.dtype.element_ty), mask=inside)


def join_gate_up(both: Tensor) -> Tensor:
    """``gelu(gate) * up`` of gate and up side by side, [B, T, 2 * hidden] -> [B, T, hidden]."""
    (batch, tokens, columns), block = both.shape, 2048
    out = both.new_empty(batch, tokens, columns // 2)
    _join_gate_up[(batch * tokens, triton.cdiv(columns // 2, block))](both, out, HIDDEN=columns // 2, BLOCK=block)
    return out
