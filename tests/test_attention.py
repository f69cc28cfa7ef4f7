import math

import pytest
import torch
from torch import Tensor

from pi0_control.model.attention import (
    Attention,
    apply_rope,
    attention_mask,
    positions_of,
    rope_table,
    softcap_logits,
    suffix_mask,
    with_self,
)

BACKENDS = ["eager", "sdpa", "flex"]
PREFIX_VALID = torch.tensor([[True, True, False, True, False], [True, True, True, True, True]])
PI0_AR = torch.tensor([0, 0, 0, 0, 0, 1, 1, 0, 0])  # five prefix tokens, the state, three actions


def joint_mask() -> Tensor:
    valid = torch.cat([PREFIX_VALID, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    return attention_mask(valid, PI0_AR)


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float) -> Tensor:
    """Attention written as loops over rows and heads."""
    out = torch.zeros_like(q)
    shared = q.shape[2] // k.shape[2]
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            logits = q[row, :, head] @ k[row, :, head // shared].T / math.sqrt(q.shape[-1])
            logits = softcap * torch.tanh(logits / softcap) if softcap else logits
            logits[~mask[row]] = -torch.inf
            out[row, :, head] = torch.softmax(logits, dim=-1) @ v[row, :, head // shared]
    return out.flatten(2)


def random_qkv(kv_heads: int, queries: int = 9, keys: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, queries, 4, 8), (2, keys, kv_heads, 8), (2, keys, kv_heads, 8)]
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def test_prefix_never_sees_the_suffix() -> None:
    assert not joint_mask()[:, :5, 5:].any()


def test_state_sees_the_prefix_and_itself_but_no_action() -> None:
    state = joint_mask()[:, 5]
    assert torch.equal(state[:, :5], PREFIX_VALID)
    assert torch.equal(state[:, 5:], torch.tensor([[True, False, False, False]] * 2))


def test_every_action_sees_everything_that_is_valid() -> None:
    actions = joint_mask()[:, 6:]
    assert actions[:, :, 5:].all()
    assert torch.equal(actions[:, :, :5], PREFIX_VALID[:, None].expand(2, 3, 5))


def test_padding_neither_sees_nor_is_seen() -> None:
    mask = joint_mask()[0]
    for padded in (2, 4):
        assert not mask[padded].any()
        assert not mask[:, padded].any()


def test_no_row_is_empty_with_self() -> None:
    mask = joint_mask()
    added = with_self(mask) & ~mask
    assert with_self(mask).any(dim=-1).all()
    assert added.sum() == 2  # only the two padding tokens see what they did not see before: themselves


def test_suffix_mask_is_the_lower_part_of_the_joint_mask() -> None:
    assert torch.equal(suffix_mask(PREFIX_VALID, PI0_AR[5:]), joint_mask()[:, 5:])


def test_padding_does_not_advance_positions() -> None:
    assert positions_of(PREFIX_VALID).tolist() == [[0, 1, 1, 2, 2], [0, 1, 2, 3, 4]]


def test_rope_is_a_rotation_of_complex_pairs() -> None:
    x = torch.randn(1, 6, 2, 8, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6)[None]
    angles = positions[0, :, None].double() * 10_000.0 ** (-torch.arange(4).double() / 4)
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(apply_rope(x, rope_table(positions, 8)).double(), expected, atol=1e-6, rtol=0)


def test_rope_makes_logits_depend_on_distance_only() -> None:
    q, k, _ = random_qkv(4)
    positions = torch.arange(9).expand(2, 9)
    near, far = rope_table(positions, 8), rope_table(positions + 37, 8)
    logits = [torch.einsum("bqnh,bknh->bnqk", apply_rope(q, rope), apply_rope(k, rope)) for rope in (near, far)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_rope_keeps_the_dtype() -> None:
    assert apply_rope(torch.ones(1, 2, 1, 4, dtype=torch.bfloat16), rope_table(torch.tensor([[0, 1]]), 4)).dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_every_back_end_is_the_reference(backend: str, kv_heads: int, softcap: float) -> None:
    q, k, v = random_qkv(kv_heads)
    mask = with_self(joint_mask())
    out = Attention(mask, backend, softcap)(q, k, v)
    torch.testing.assert_close(out, reference(q, k, v, mask, softcap), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_no_mask_attends_to_everything(backend: str) -> None:
    q, k, v = random_qkv(1)
    out = Attention(None, backend)(q, k, v)
    torch.testing.assert_close(out, reference(q, k, v, torch.ones(2, 9, 9, dtype=torch.bool), 0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_shared_prefix_is_the_same_as_a_repeated_one(backend: str, kv_heads: int) -> None:
    _, prefix_k, prefix_v = random_qkv(kv_heads, keys=5, seed=1)
    q, k, v = (torch.cat([x, x.flip(0) * 0.5, x]) for x in random_qkv(kv_heads, 4, 4))  # six rows on two prefixes
    mask = suffix_mask(PREFIX_VALID.repeat_interleave(3, dim=0), PI0_AR[5:])
    shared = Attention(mask, backend)(q, k, v, prefix=(prefix_k, prefix_v), repeats=3)
    whole_k, whole_v = (
        torch.cat([front.repeat_interleave(3, dim=0), own], dim=1) for front, own in ((prefix_k, k), (prefix_v, v))
    )
    torch.testing.assert_close(shared, reference(q, whole_k, whole_v, mask, 0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_row_of_nothing_but_padding_is_finite(backend: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) * 30 for x in random_qkv(1))
    valid = torch.zeros(2, 9, dtype=torch.bool)
    out = Attention(with_self(attention_mask(valid, torch.zeros(9))), backend)(q, k, v)
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_masked_keys_have_exactly_no_weight(backend: str) -> None:
    q, k, v = random_qkv(2)
    mask = with_self(joint_mask())
    out = Attention(mask, backend)(q, k, v)
    k[0, 2], v[0, 2] = 50.0, -1000.0
    changed = Attention(mask, backend)(q, k, v)
    kept = [0, 1, 3, 4, 5, 6, 7, 8]
    assert torch.equal(out[0, kept], changed[0, kept])


def test_sdpa_with_a_soft_cap_is_computed_by_eager() -> None:
    assert Attention(joint_mask(), "sdpa", 50.0).backend == "eager"
    assert Attention(joint_mask(), "sdpa").backend == "sdpa"


def test_flex_on_a_cpu_leaves_gradients_to_eager() -> None:
    q, k, v = random_qkv(1)
    attention = Attention(joint_mask(), "flex")
    assert attention.backend == "eager"
    attention(q.requires_grad_(), k, v).sum().backward()
    with torch.no_grad():
        assert Attention(joint_mask(), "flex").backend == "flex"


def test_softcap_bounds_logits_and_zero_is_off() -> None:
    logits = torch.linspace(-500, 500, 101)
    assert softcap_logits(logits, 50.0).abs().max() <= 50
    assert softcap_logits(logits, 0.0) is logits
    torch.testing.assert_close(softcap_logits(torch.tensor([0.1]), 50.0), torch.tensor([0.1]), atol=1e-5, rtol=0)
