import math
from dataclasses import replace

import pytest
import torch
from tiny_model import TINY, TINY_PI05
from torch import Tensor

from pi0_control.model.config import Pi0Config
from pi0_control.model.gemma import (
    AdaptiveRMSNorm,
    BoundedRMSNorm,
    GemmaLayer,
    LayerScale,
    RMSNorm,
    add_gated,
    make_norm,
    rms,
)

GENERATOR = torch.Generator().manual_seed(0)
X, COND = torch.randn(2, 5, 24, generator=GENERATOR), torch.randn(2, 24, generator=GENERATOR)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def layer(changes: Pi0Config, first: bool = False) -> GemmaLayer:
    built = GemmaLayer(changes, suffix=True, first=first)
    randomised(built)
    return built


def test_rms_norm_is_its_formula() -> None:
    norm = randomised(RMSNorm(24))
    exact = X.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + norm.scale.double())
    out, gate = norm(X)
    assert gate is None
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["none", "adarms", "bounded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_compute_in_float32(kind: str, dtype: torch.dtype) -> None:
    norm = randomised(make_norm(kind, 24))
    large = (X * 5000).to(dtype)  # its square does not exist in float16
    out, _ = norm(large, COND)
    exact, _ = norm(large.float(), COND)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype))


def test_zero_input_stays_finite() -> None:
    assert rms(torch.zeros(1, 1, 24)).eq(0).all()


def test_adaptive_norm_starts_as_a_plain_norm_with_a_closed_gate() -> None:
    out, gate = AdaptiveRMSNorm(24)(X, COND)
    assert torch.equal(out, RMSNorm(24)(X)[0])
    assert gate is not None
    assert not gate.any()


def test_adaptive_norm_reads_scale_shift_gate_in_this_order() -> None:
    norm = AdaptiveRMSNorm(24)
    with torch.no_grad():
        norm.modulation.bias.copy_(torch.tensor([2.0, 3.0, 5.0]).repeat_interleave(24))
    out, gate = norm(X, COND)
    torch.testing.assert_close(out, rms(X) * 3 + 3)
    assert gate is not None
    assert gate.eq(5).all()


@pytest.mark.parametrize("kind", ["adarms", "bounded"])
def test_conditioning_may_differ_per_token(kind: str) -> None:
    norm = randomised(make_norm(kind, 24))
    per_batch, _ = norm(X, COND)
    per_token, _ = norm(X, COND[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(per_batch, per_token, atol=1e-6, rtol=0)


def test_bounded_norm_scales_by_less_than_one_and_has_no_gate() -> None:
    norm = BoundedRMSNorm(24)
    with torch.no_grad():
        norm.beta.weight.zero_()
    out, gate = norm(X, COND * 100)
    assert gate is None
    assert (out.abs() <= rms(X).abs()).all()
    assert norm.beta.bias is None


def test_layer_scale_starts_at_sigmoid_of_minus_two() -> None:
    gate = LayerScale(24)(COND)
    assert gate.shape == (2, 1, 24)
    torch.testing.assert_close(gate, torch.full_like(gate, 1 / (1 + math.exp(2))))


def test_gated_sum() -> None:
    branch, gate = torch.ones_like(X), torch.full((2, 1, 24), 0.25)
    assert torch.equal(add_gated(X, branch, None), X + 1)
    assert torch.equal(add_gated(X, branch, gate), X + 0.25)


def test_a_fresh_adaptive_layer_is_the_identity() -> None:
    fresh = GemmaLayer(TINY_PI05, suffix=True)
    q, _, _, gate = fresh.queries_keys_values(X, COND, None)
    assert torch.equal(fresh.finish(X, torch.ones(2, 5, q.shape[2] * q.shape[3]), gate, COND), X)


def test_shapes_of_queries_keys_values() -> None:
    q, k, v, _ = layer(TINY).queries_keys_values(X, None, None)
    assert q.shape == (2, 5, TINY.num_heads, TINY.head_dim)
    assert k.shape == v.shape == (2, 5, TINY.num_kv_heads, TINY.head_dim)


def test_mlp_is_geglu() -> None:
    plain = layer(TINY)
    attended = torch.zeros(2, 5, TINY.num_heads * TINY.head_dim)
    gate, up = (plain.norm2(X)[0] @ plain.gate_up.weight.T).chunk(2, dim=-1)
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(plain.finish(X, attended, None, None), X + (gelu * up) @ plain.down.weight.T)


def values_with(mode: str, first_values: Tensor | None, first: bool = False) -> tuple[Tensor, Tensor]:
    plain, mixing = layer(TINY), layer(replace(TINY, value_residual=mode), first)
    mixing.load_state_dict(plain.state_dict(), strict=False)
    return plain.queries_keys_values(X, None, None)[2], mixing.queries_keys_values(X, None, first_values)[2]


def test_mean_value_residual_is_half_and_half() -> None:
    own, mixed = values_with("mean", torch.ones(2, 5, 1, 8))
    torch.testing.assert_close(mixed, 0.5 * own + 0.5)


def test_learned_value_residual_lies_between() -> None:
    own, mixed = values_with("learned", torch.ones(2, 5, 1, 8))
    weight = (mixed - 1) / (own - 1)
    assert ((weight > 0) & (weight < 1)).all()
    torch.testing.assert_close(weight, weight[..., :1].expand_as(weight), atol=1e-3, rtol=0)  # one per head


@pytest.mark.parametrize("mode", ["mean", "learned"])
def test_the_first_layer_mixes_nothing(mode: str) -> None:
    own, mixed = values_with(mode, torch.ones(2, 5, 1, 8), first=True)
    assert torch.equal(own, mixed)
