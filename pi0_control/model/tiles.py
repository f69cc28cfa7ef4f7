"""Tokens and matrices as the tile registers of a CPU want them (``amx.py``)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pi0_control.model import amx

_CONFIG = torch.zeros(64, dtype=torch.uint8)  # of all eight tiles, whole, for LDTILECFG
_CONFIG[0] = 1  # the palette
_CONFIG[16:32:2] = 64  # bytes of a row
_CONFIG[48:56] = 16  # rows


class Tiles(NamedTuple):
    """Tokens [B, T, depth] in bfloat16 as tiles [B * T / 16, depth / 32, 16, 32], an even number of rows of them."""

    memory: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> "Tiles":
        """Of x [B, T, depth]."""
        x = _checked(x, torch.bfloat16)
        tiles = cls.empty(x.shape)
        amx.to_tiles(x.data_ptr(), x.shape[:-1].numel(), x.shape[-1] // 32, tiles.memory.data_ptr())
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
        x = _checked(x, torch.float32)
        tiles = cls.empty(x.shape)
        rows, depth = x.shape[:-1].numel(), x.shape[-1] // 32
        amx.layer_norm(x.data_ptr(), scale.data_ptr(), shift.data_ptr(), rows, depth, tiles.memory.data_ptr())
        return tiles

    @classmethod
    def empty(cls, shape: torch.Size) -> "Tiles":
        """Yet to be written."""
        rows = -(-shape[:-1].numel() // amx.BLOCK) * 2
        return cls(torch.empty(rows, shape[-1] // 32, 16, 32, dtype=torch.bfloat16), shape)


class Matrix:
    """A matrix [columns, depth] in bfloat16 with its bias, copied to panels, filled up with zeros.

    Args:
        weight: [columns, depth].
        bias: [columns] or None.
        is_gated: the first half of the columns are gates for the second; without a bias, and a multiple of 64 columns.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, is_gated: bool = False) -> None:
        if weight.dtype != torch.bfloat16 or (is_gated and (bias is not None or len(weight) % 64)):
            raise ValueError(f"No matrix for these kernels: {weight.dtype} {list(weight.shape)}, gated: {is_gated}.")
        self.columns = len(weight)
        self.panels, self.depth = (-(-size // amx.BLOCK) for size in weight.shape)
        more = [self.panels * amx.BLOCK - weight.shape[0], self.depth * 32 - weight.shape[1]]
        weight = (F.pad(weight, (0, more[1], 0, more[0])) if any(more) else weight.detach()).contiguous()
        self.bias = torch.zeros(self.panels * amx.BLOCK) if bias is None else F.pad(bias.float(), (0, more[0]))
        self.memory = torch.empty_like(weight)
        steps = (16, len(weight) // 2) if is_gated else (32, 16)
        amx.to_panels(weight.data_ptr(), self.panels, self.depth, *steps, self.memory.data_ptr())

    def __call__(self, tokens: Tiles, residual: Tensor | None = None) -> Tensor:
        """Tokens [B, T, depth] -> [B, T, columns], plus a residual in bfloat16 or float32, which is the result's."""
        dtype = torch.bfloat16 if residual is None else residual.dtype
        out = torch.empty(*tokens.shape[:-1], self.columns, dtype=dtype)
        if self.columns % amx.BLOCK or (residual is not None and residual.shape != out.shape):
            raise ValueError(f"{self.columns} columns make no rows of whole panels, or the residual has another shape.")
        if residual is None:
            self._multiply(tokens, out, amx.ROWS)
        else:
            self._multiply(tokens, out, amx.ADDED if dtype == torch.bfloat16 else amx.ADDED_WIDE, residual.contiguous())
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
        if tokens.memory.shape[1] != self.depth:
            raise ValueError(f"Tokens are {32 * tokens.memory.shape[1]} deep, the matrix {32 * self.depth}.")
        blocks = len(tokens.memory) // 2 * self.panels if self.depth > amx.DEEPEST else 2
        sums = torch.empty(blocks * amx.SUMS, dtype=torch.uint8)
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
    """RMS norm of x [B, T, depth] in bfloat16 with scale and shift, float32 [depth]."""
    out = torch.empty(x.shape, dtype=torch.bfloat16)
    _rms_norm(x, scale, shift, out, is_tiled=False)
    return out


def _rms_norm(x: Tensor, scale: Tensor, shift: Tensor | None, out: Tensor, is_tiled: bool) -> None:
    x, shift = _checked(x, torch.bfloat16), torch.zeros_like(scale) if shift is None else shift
    rows, depth = x.shape[:-1].numel(), x.shape[-1] // 32
    amx.rms_norm(x.data_ptr(), scale.data_ptr(), shift.data_ptr(), rows, depth, out.data_ptr(), is_tiled)


def rotate_into(qkv: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, start: int) -> Tensor:
    """Queries [B, T, heads, head_dim] rotated; rotated keys, and values, into the cache.

    Args:
        qkv: [B, T, columns].
        rope: cosines, and sines with the first half negated, of all places, float32 [1 or B, places, 1, head_dim].
        cache: keys and values [2, B, places, kv_heads, head_dim].
        start: place of the first token.
    """
    (batch, length, columns), (kv_heads, head_dim), qkv = qkv.shape, cache.shape[-2:], qkv.contiguous()
    queries = qkv.new_empty(batch, length, columns // head_dim - 2 * kv_heads, head_dim)
    for row in range(batch):
        cos, sin = (table[row % len(table), start] for table in rope)
        amx.rotate(
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


def _checked(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, T, depth] as it lies in memory, if it is what kernels take."""
    if x.dtype != dtype or x.shape[-1] % 32 or x.device.type != "cpu":
        raise ValueError(
            f"Got {x.dtype} [.., {x.shape[-1]}] on {x.device}; expected {dtype}, a multiple of 32, on a CPU."
        )
    return x.contiguous()
