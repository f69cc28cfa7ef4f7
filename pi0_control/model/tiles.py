"""Tokens and matrices as the tile registers of a CPU want them (``amx.py``)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pi0_control.model import amx

_CONFIG = torch.zeros(64, dtype=torch.uint8, device="cpu")  # of all eight tiles, whole, for LDTILECFG
_CONFIG[0] = 1  # the palette
_CONFIG[16:32:2] = 64  # bytes of a row
_CONFIG[48:56] = 16  # rows
_ADDED = {torch.bfloat16: amx.ADDED, torch.float32: amx.ADDED_WIDE}  # by the dtype of a residual


class Tiles(NamedTuple):
    """Tokens [B, T, depth] in bfloat16 as tiles [B * T / 16, depth / 32, 16, 32], an even number of rows of them.

    All that makes tiles raises ValueError for tensors that its kernel cannot read.
    """

    memory: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> "Tiles":
        """Of x [B, T, depth]."""
        x = _checked(x, torch.bfloat16)
        tiles = cls.empty(x.shape)
        amx.to_tiles(x.data_ptr(), x.shape[:-1].numel(), x.shape[-1] // amx.DEEP, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def rms_normed(cls, x: Tensor, scale: Tensor) -> "Tiles":
        """Of the RMS norm of x [B, T, depth] in bfloat16 times a scale, float32 [depth]."""
        tiles = cls.empty(x.shape)
        _rms_norm(x, scale, None, tiles.memory, is_tiled=True)
        return tiles

    @classmethod
    def layer_normed(cls, x: Tensor, scale: Tensor, shift: Tensor) -> "Tiles":
        """Of the LayerNorm of x [B, T, depth] with scale and shift [depth], all float32."""
        x, scale, shift = _checked(x, torch.float32), _of_width(scale, x), _of_width(shift, x)
        tiles = cls.empty(x.shape)
        rows, depth = x.shape[:-1].numel(), x.shape[-1] // amx.DEEP
        amx.layer_norm(x.data_ptr(), scale.data_ptr(), shift.data_ptr(), rows, depth, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def empty(cls, shape: torch.Size) -> "Tiles":
        """Yet to be written."""
        rows = -(-shape[:-1].numel() // amx.BLOCK) * 2
        return cls(torch.empty(rows, shape[-1] // amx.DEEP, 16, amx.DEEP, dtype=torch.bfloat16, device="cpu"), shape)


class Matrix:
    """A matrix [columns, depth] in bfloat16 with its bias, copied to panels, filled up with zeros.

    Args:
        weight: [columns, depth].
        bias: [columns] or None.
        is_gated: the first half of the columns are gates for the second, and the product is :meth:`gated`; without a
            bias, and a multiple of 64 columns.

    Raises:
        ValueError: not for these kernels; also by products, for tokens and residuals that do not fit.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, is_gated: bool = False) -> None:
        is_wrong = weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or weight.dim() != 2
        if is_wrong or (is_gated and (bias is not None or len(weight) % 64)):
            raise ValueError(
                f"Got {weight.dtype} {list(weight.shape)} on {weight.device}, gated: {is_gated}, "
                f"bias: {bias is not None}; expected bfloat16 on a CPU, and 64, 128, .. columns and no bias if gated."
            )
        self.columns, self.is_gated = len(weight), is_gated
        bias = _of_width((weight.new_zeros(self.columns) if bias is None else bias).float(), weight.T)
        self.panels, self.depth = -(-weight.shape[0] // amx.BLOCK), -(-weight.shape[1] // amx.DEEP)
        more = [self.panels * amx.BLOCK - weight.shape[0], self.depth * amx.DEEP - weight.shape[1]]
        weight = (F.pad(weight, (0, more[1], 0, more[0])) if any(more) else weight.detach()).contiguous()
        self.bias = F.pad(bias, (0, more[0]))
        self.memory = torch.empty_like(weight)
        steps = (16, len(weight) // 2) if is_gated else (32, 16)
        amx.to_panels(weight.data_ptr(), self.panels, self.depth, *steps, self.memory.data_ptr())

    def __call__(self, tokens: Tiles, residual: Tensor | None = None) -> Tensor:
        """Tokens [B, T, depth] -> [B, T, columns], plus a residual in bfloat16 or float32, which is the result's."""
        dtype = torch.bfloat16 if residual is None else residual.dtype
        out = tokens.memory.new_empty(*tokens.shape[:-1], self.columns, dtype=dtype)
        if self.columns % amx.BLOCK:
            raise ValueError(f"{self.columns} columns make no rows of whole panels, {amx.BLOCK} wide.")
        if residual is None:
            self._multiply(tokens, out, amx.ROWS)
            return out
        if residual.shape != out.shape or residual.device.type != "cpu" or dtype not in _ADDED:
            raise ValueError(
                f"Got a residual {dtype} {list(residual.shape)} on {residual.device}; "
                f"expected bfloat16 or float32 {list(out.shape)} on a CPU."
            )
        self._multiply(tokens, out, _ADDED[dtype], residual.contiguous())
        return out

    def gelu(self, tokens: Tiles) -> Tiles:
        """Tokens [B, T, depth] -> gelu of the product, [B, T, columns]."""
        out = Tiles.empty(torch.Size((*tokens.shape[:-1], self.panels * amx.BLOCK)))
        self._multiply(tokens, out.memory, amx.GELU)
        return out

    def gated(self, tokens: Tiles) -> Tiles:
        """Tokens [B, T, depth] -> gelu(gate) * up, [B, T, columns / 2]."""
        out = Tiles.empty(torch.Size((*tokens.shape[:-1], self.panels * amx.BLOCK // 2)))
        self._multiply(tokens, out.memory, amx.GATED)
        return out

    def _multiply(self, tokens: Tiles, out: Tensor, end: int, residual: Tensor | None = None) -> None:
        deep = tokens.memory.shape[1]
        if deep != self.depth:
            raise ValueError(f"Tokens are {amx.DEEP * deep} deep, the matrix {amx.DEEP * self.depth}.")
        if self.is_gated != (end == amx.GATED):
            raise ValueError(f"The columns are in the order of a product {'' if self.is_gated else 'not '}to be gated.")
        blocks = len(tokens.memory) // 2 * self.panels if self.depth > amx.DEEPEST else 2
        sums = tokens.memory.new_empty(blocks * amx.SUMS, dtype=torch.uint8)
        amx.multiply(
            _CONFIG.data_ptr(),
            tokens.memory.data_ptr(),
            tokens.shape[:-1].numel(),
            self.depth,
            self.memory.data_ptr(),
            self.bias.data_ptr(),
            self.panels,
            sums.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
            end,
        )


def rms_norm(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """RMS norm of x [B, T, depth] in bfloat16 with scale and shift, float32 [depth]; else ValueError."""
    out = x.new_empty(x.shape)
    _rms_norm(x, scale, shift, out, is_tiled=False)
    return out


def _rms_norm(x: Tensor, scale: Tensor, shift: Tensor | None, out: Tensor, is_tiled: bool) -> None:
    x, scale = _checked(x, torch.bfloat16), _of_width(scale, x)
    shift = torch.zeros_like(scale) if shift is None else _of_width(shift, x)
    rows, depth = x.shape[:-1].numel(), x.shape[-1] // amx.DEEP
    amx.rms_norm(x.data_ptr(), scale.data_ptr(), shift.data_ptr(), rows, depth, out.data_ptr(), is_tiled)


def rotate_into(qkv: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, start: int) -> Tensor:
    """Queries [B, T, heads, head_dim] rotated; rotated keys, and values, into the cache.

    Args:
        qkv: [B, T, columns] in bfloat16.
        rope: cosines, and sines with the first half negated, of all places, float32 [1 or B, places, 1, head_dim].
        cache: keys and values [2, B, places, kv_heads, head_dim] in bfloat16.
        start: place of the first token.

    Raises:
        ValueError: shapes, dtypes or layouts that are none of these.
    """
    (batch, length, columns), (kv_heads, head_dim), qkv = qkv.shape, cache.shape[-2:], _checked(qkv, torch.bfloat16)
    heads, uneven = divmod(columns, head_dim)
    if (
        head_dim % amx.DEEP
        or uneven
        or heads <= 2 * kv_heads
        or cache.shape[:2] != (2, batch)
        or not 0 <= start <= cache.shape[2] - length
        or not all(_has_whole_places(table, torch.float32, start + length, head_dim) for table in rope)
        or not _has_whole_places(cache[0], torch.bfloat16, start + length, kv_heads * head_dim)
    ):
        raise ValueError(
            f"Tokens {list(qkv.shape)} at {start} do not fit a cache {cache.dtype} {list(cache.shape)} and angles "
            f"{rope[0].dtype} {list(rope[0].shape)}; expected bfloat16 and float32, places one behind the other."
        )
    queries = qkv.new_empty(batch, length, heads - 2 * kv_heads, head_dim)
    for row in range(batch):
        cos, sin = (table[row % len(table), start] for table in rope)
        amx.rotate(
            qkv[row].data_ptr(),
            length,
            queries.shape[2],
            kv_heads,
            head_dim // amx.DEEP,
            cos.data_ptr(),
            sin.data_ptr(),
            queries[row].data_ptr(),
            cache[0, row, start].data_ptr(),
            cache[1, row, start].data_ptr(),
        )
    return queries


def _checked(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, T, depth] as it lies in memory, if it is what kernels take."""
    if x.dtype != dtype or x.shape[-1] % amx.DEEP or x.device.type != "cpu":
        raise ValueError(
            f"Got {x.dtype} [.., {x.shape[-1]}] on {x.device}; expected {dtype}, a multiple of {amx.DEEP}, on a CPU."
        )
    return x.contiguous()


def _of_width(row: Tensor, x: Tensor) -> Tensor:
    """A row [depth] for x [.., depth] as it lies in memory, if it is what kernels take."""
    if row.dtype != torch.float32 or row.shape != x.shape[-1:] or row.device.type != "cpu":
        raise ValueError(
            f"Got {row.dtype} {list(row.shape)} on {row.device}; expected float32 [{x.shape[-1]}] on a CPU."
        )
    return row.contiguous()


def _has_whole_places(x: Tensor, dtype: torch.dtype, places: int, size: int) -> bool:
    """Whether x [.., places, heads, head_dim] has so many places, each ``size`` numbers behind the one before."""
    is_there = x.dtype == dtype and x.device.type == "cpu" and x.shape[1] >= places
    return is_there and x.shape[2:].numel() == size == x.stride(1) and x[0, 0].is_contiguous()
