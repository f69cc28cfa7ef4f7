"""Who attends to whom, at which position, and the three ways to compute it (eager, sdpa, flex) with one result."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Backend = Literal["eager", "sdpa", "flex"]

MASKED = torch.finfo(torch.float32).min / 2  # finite, so that no row of logits can turn into NaN


def attention_mask(valid: Tensor, ar: Tensor) -> Tensor:
    """Which query (row) may attend to which key (column), bool [B, S, S].

    With ``c = cumsum(ar)``, query i sees key j if ``c[j] <= c[i]`` and both are valid: an entry 1 of ``ar`` opens a
    block that earlier tokens do not see; within a block everybody sees everybody.

    Args:
        valid: bool [B, S], False for padding and masked cameras.
        ar: int or bool [S].
    """
    block = torch.cumsum(ar.int(), dim=0)
    return (block[None, :] <= block[:, None]) & valid[:, None, :] & valid[:, :, None]


def with_self(mask: Tensor) -> Tensor:
    """The mask [B, S, S] with its diagonal set: padding sees itself, so no row is empty and none becomes NaN."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def suffix_mask(prefix_valid: Tensor, ar: Tensor) -> Tensor:
    """Rows of the suffix only, bool [B, T, S + T]: all valid prefix tokens, then the suffix by its ``ar`` [T]."""
    block = torch.cumsum(ar.int(), dim=0)
    own = block[None, :] <= block[:, None]  # [T, T]
    batch, length = prefix_valid.shape[0], ar.shape[0]
    return torch.cat(
        [prefix_valid[:, None, :].expand(batch, length, -1), own[None].expand(batch, length, length)], dim=-1
    )


def positions_of(valid: Tensor) -> Tensor:
    """Position of each token, int64 [B, S]: ``cumsum(valid) - 1``, so padding does not advance the counter."""
    return torch.cumsum(valid.long(), dim=1) - 1


def rope_table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, float32 [B, S, 1, head_dim / 2] each, for positions [B, S]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions[..., None, None].float() * torch.pow(10_000.0, -exponent)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x [B, S, heads, head_dim] (first half against second half) in float32; returns x's dtype."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def softcap_logits(logits: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap)``; unchanged for cap 0."""
    return logits if cap == 0 else torch.tanh(logits / cap) * cap


class Attention:
    """Softmax attention under one mask, which is prepared once and used by every layer.

    Args:
        mask: bool [B, T, S]; no row may be empty (see :func:`with_self`). None attends to everything.
        backend: what computes it. ``sdpa`` cannot cap logits and ``flex`` has no gradient on a CPU; both become
            ``eager`` there, and ``backend`` says so.
        softcap: cap of the logits, 0 for none.
    """

    def __init__(self, mask: Tensor | None, backend: Backend, softcap: float = 0.0) -> None:
        needs_gradient_on_cpu = mask is not None and mask.device.type == "cpu" and torch.is_grad_enabled()
        if (backend == "sdpa" and softcap > 0) or (backend == "flex" and (mask is None or needs_gradient_on_cpu)):
            backend = "eager"
        self.backend: Backend = backend
        self.softcap = softcap
        self._mask = None if mask is None else _PREPARE[backend](mask)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None = None, repeats: int = 1
    ) -> Tensor:
        """Attend; query heads may share key/value heads.

        Args:
            q: [B, T, heads, head_dim].
            k, v: [B, S, kv_heads, head_dim].
            prefix: further keys and values [B / repeats, P, kv_heads, head_dim] in front of k and v; the mask then
                has P + S columns.
            repeats: consecutive rows of q that share one row of the prefix.

        Returns:
            [B, T, heads * head_dim] in the dtype of v.
        """
        if self.backend == "eager":
            return _eager(q, k, v, self._mask, self.softcap, prefix, repeats)
        if prefix is not None:
            k, v = (
                torch.cat([front.repeat_interleave(repeats, dim=0), own], dim=1)
                for front, own in zip(prefix, (k, v), strict=True)
            )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.backend == "sdpa":
            out = F.scaled_dot_product_attention(q, _share(k, q), _share(v, q), attn_mask=self._mask)
        else:
            score_mod = _capped(self.softcap) if self.softcap > 0 else None
            out = _flex(q, k, v, score_mod=score_mod, block_mask=self._mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    softcap: float,
    prefix: tuple[Tensor, Tensor] | None = None,
    repeats: int = 1,
) -> Tensor:
    """Explicit matrix products. Nothing is repeated or joined but the logits.

    Query heads that share a key head, and rows that share a prefix, are stacked as rows of one product:
    B = b * repeats (r), heads = kv_heads (K) * shared (g).
    """
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    rows = (q * head_dim**-0.5).view(-1, repeats, queries, kv_heads, heads // kv_heads, head_dim)
    rows = rows.permute(0, 3, 1, 4, 2, 5).flatten(3, 4)  # [b, K, r, g * T, H]
    own_keys, own_values = (x.view(-1, repeats, *x.shape[1:]).permute(0, 3, 1, 2, 4) for x in (k, v))
    logits = rows @ own_keys.mT  # [b, K, r, g * T, S]
    if prefix is not None:
        before = rows.flatten(2, 3) @ prefix[0].permute(0, 2, 3, 1)  # [b, K, r * g * T, P]
        logits = torch.cat([before.view(*logits.shape[:-1], -1), logits], dim=-1)
    logits = softcap_logits(logits.float(), softcap)
    if mask is not None:
        by_head = logits.view(*logits.shape[:3], -1, queries, logits.shape[-1])
        logits = (by_head + mask.view(-1, 1, repeats, 1, *mask.shape[1:])).flatten(3, 4)
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    if prefix is None:
        out = weights @ own_values
    else:
        # Copies, not views: torch 2.13's compiled backward on a CPU reads saved views of the weights wrongly.
        of_prefix, of_own = (part.contiguous() for part in weights.split([prefix[0].shape[1], k.shape[1]], dim=-1))
        out = (of_prefix.flatten(2, 3) @ prefix[1].transpose(1, 2)).view(*rows.shape) + of_own @ own_values
    out = out.unflatten(3, (-1, queries)).permute(0, 2, 4, 1, 3, 5)  # [b, r, T, K, g, H]
    return out.reshape(batch, queries, heads * head_dim)


def _share(x: Tensor, q: Tensor) -> Tensor:
    """Key or value heads [B, K, S, H] for every query head [B, heads, S, H]; a view if K is 1 or heads."""
    if x.shape[1] == 1:
        return x.expand(-1, q.shape[1], -1, -1)
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _additive(mask: Tensor) -> Tensor:
    """0 where allowed, a huge negative number elsewhere: float32 [B, T, S]."""
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return zeros.masked_fill(~mask, MASKED)


def _block_mask(mask: Tensor) -> BlockMask:
    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[batch, query, key]

    batch, queries, keys = mask.shape
    return create_block_mask(visible, batch, None, queries, keys, device=str(mask.device))


_PREPARE: dict[str, Callable[[Tensor], Any]] = {
    "eager": _additive,
    "sdpa": lambda mask: mask[:, None],
    "flex": _block_mask,
}


def _capped(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap_logits(score, softcap)

    return score_mod


def _flex(*args: Any, **options: Any) -> Tensor:
    """Compiled on a GPU; on a CPU the plain reading of it, whose notice that it is not compiled is kept quiet."""
    if torch.compiler.is_compiling():
        return flex_attention(*args, **options)
    if args[0].is_cuda:
        return _compiled_flex()(*args, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(*args, **options)


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)
