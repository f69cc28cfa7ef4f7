"""Products by tile registers are those of PyTorch, whatever their shape and whoever computes them."""

from dataclasses import replace
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_golden import relative_rms
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor, nn

from pi0_control.model import layers
from pi0_control.model.attention import apply_rope, rope_table
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.gemma import RMS_NORM_EPS, GemmaLayer
from pi0_control.model.packed import can_tile, has_amx
from pi0_control.model.siglip import LAYER_NORM_EPS, SiglipBlock

if not has_amx():
    pytest.skip("this CPU has no tile registers (AMX), or Numba is not installed", allow_module_level=True)

from pi0_control.model import amx

SIZES: dict[str, Any] = {"prefix_width": 64, "prefix_mlp_dim": 96, "head_dim": 32, "num_heads": 2, "max_token_len": 120}
SIZES |= {"vision": replace(TINY.vision, width=32, mlp_dim=40), "action_width": 32, "action_mlp_dim": 64}
FITS, FITS_PI05 = replace(TINY, **SIZES), replace(TINY_PI05, **SIZES)
SHAPES = [  # tokens, depth, columns
    (1, 32, 64),
    (16, 64, 64),
    (31, 64, 128),
    (33, 1024, 96),  # as deep as rows of a block
    (50, 2048, 64),  # as deep as one pass
    (70, 2080, 64),  # two passes, the last one short
    (224, 4096, 160),
]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def ulps(ours: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of bfloat16, of the values' root mean square or more."""
    size = exact.abs().clamp(min=float(exact.square().mean().sqrt()))
    return float(((ours.float() - exact).abs() / size).max() * 2**8)


def rows_of(tiles: amx.Tiles) -> Tensor:
    """[B, T, ..] as they would be in rows."""
    rows = tiles.memory.transpose(1, 2).flatten(0, 1).flatten(1)
    return rows[: tiles.shape[:-1].numel(), : tiles.shape[-1]].view(tiles.shape)


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_product_is_rounded_once(batch: int, tokens: int, depth: int, columns: int) -> None:
    x, weight, bias = random(batch, tokens, depth), random(columns, depth), random(columns)
    tiles = amx.Tiles.of(x)
    assert torch.equal(rows_of(tiles), x)
    exact = x.float() @ weight.float().mT
    matrix, biased = amx.Matrix(weight), amx.Matrix(weight, bias)
    assert ulps(matrix(tiles), exact) < 1.01
    assert ulps(biased(tiles), exact + bias.float()) < 1.01
    residual = 10 * random(batch, columns, tokens).mT  # columns first in memory
    assert ulps(matrix(tiles, residual), exact + residual.float()) < 1.01
    wide = biased(tiles, residual.float())
    assert wide.dtype == torch.float32
    assert wide.shape == (batch, tokens, columns)
    torch.testing.assert_close(wide, exact + bias.float() + residual.float(), atol=1e-4 * depth**0.5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
def test_gelu_and_gates_come_behind_a_product(tokens: int, depth: int, columns: int) -> None:
    x, weight, bias = random(1, tokens, depth), random(2 * columns, depth) / depth**0.5, random(2 * columns)
    tiles, exact = amx.Tiles.of(x), x.float() @ weight.float().mT
    activated = amx.Matrix(weight, bias).gelu(tiles)
    assert ulps(rows_of(activated), F.gelu(exact + bias.float(), approximate="tanh")) < 1.01
    gate, up = exact.chunk(2, dim=-1)
    gated = amx.Matrix(weight, is_gated=True).gated(tiles)
    assert gated.shape == (1, tokens, columns)
    assert ulps(rows_of(gated), F.gelu(gate, approximate="tanh") * up) < 1.01


def test_what_does_not_fill_a_panel_is_filled_up_with_zeros() -> None:
    x, first, bias, second = random(1, 40, 64), random(40, 64) / 8, random(40), random(32, 40)
    hidden = amx.Matrix(first, bias).gelu(amx.Tiles.of(x))
    assert hidden.shape == (1, 40, 64)
    exact = F.gelu(F.linear(x.float(), first.float(), bias.float()), approximate="tanh").bfloat16()
    assert ulps(rows_of(hidden)[..., :40], exact.float()) < 1.01
    assert (rows_of(hidden)[..., 40:] == 0).all()
    assert ulps(amx.Matrix(second)(hidden), rows_of(hidden)[..., :40].float() @ second.float().mT) < 1.01


def test_a_matrix_refuses_tokens_of_another_depth() -> None:
    with pytest.raises(ValueError, match="Tokens are 64 deep, the matrix 96"):
        amx.Matrix(random(64, 96))(amx.Tiles.of(random(1, 3, 64)))


def test_what_is_exact_in_bfloat16_stays_as_it_is() -> None:
    x = torch.cat([random(1, 32, 64), torch.tensor([0.0, -0.0, 1e30, -1e-30]).bfloat16().expand(1, 32, 4)], dim=-1)
    x = F.pad(x, (0, 28))
    assert torch.equal(amx.Matrix(torch.eye(96).bfloat16())(amx.Tiles.of(x)), x)


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([[1.0, 2.0**-8], [1.0 + 2.0**-7, 2.0**-8]]).bfloat16()  # in the middle of two neighbours
    product = amx.Matrix(torch.ones(64, 32).bfloat16())(amx.Tiles.of(F.pad(x, (0, 30))[None]))
    assert product[0, :, 0].tolist() == [1.0, 1.0 + 2.0**-6]


@pytest.mark.parametrize("gate", [-3e38, -1e4, -20.0, -1e-30, 0.0, 1e-30, 20.0, 1e4, float("nan")])
def test_gelu_has_no_limits(gate: float) -> None:
    x = torch.zeros(1, 1, 32).bfloat16()
    x[..., 0], x[..., 1] = gate, 1
    weight = torch.zeros(128, 32).bfloat16()
    weight[:64, 0], weight[64:, 1] = 1, 1
    result = amx.Matrix(weight, is_gated=True).gated(amx.Tiles.of(x)).memory[0, :, 0].flatten()
    exact = F.gelu(x[0, 0, 0].float(), approximate="tanh").bfloat16().expand(64)
    torch.testing.assert_close(result, exact, rtol=1e-2, atol=1e-30, equal_nan=True)


def test_nothing_is_written_behind_the_rows() -> None:
    matrix, tokens = amx.Matrix(random(64, 64)), amx.Tiles.of(random(1, 33, 64))
    out = torch.full((40, 64), 7.0).bfloat16()
    matrix._multiply(tokens, out, amx.ROWS)
    assert torch.equal(out[:33], matrix(tokens)[0])
    assert (out[33:] == 7).all()


def test_oneDNN_uses_the_same_registers_in_turns() -> None:
    x, weight = random(1, 40, 256), random(128, 256)
    matrix, tokens, theirs = amx.Matrix(weight), amx.Tiles.of(x), F.linear(x, weight)
    for _ in range(3):
        ours = matrix(tokens)
        assert torch.equal(F.linear(x, weight), theirs)
        assert torch.equal(matrix(tokens), ours)


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 37, 96), (1, 224, 2048)])
def test_norms_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    x, scale, shift = 3 * random(*shape), torch.randn(shape[-1]), torch.randn(shape[-1])
    normed = rows_of(amx.Tiles.rms_normed(x, scale))
    assert ulps(normed, F.rms_norm(x.float(), shape[-1:], scale, RMS_NORM_EPS)) < 1.01
    exact = F.rms_norm(x.float(), shape[-1:], scale, RMS_NORM_EPS)
    assert ulps(amx.rms_norm(x.mT.contiguous().mT, scale, shift), exact + shift) < 1.01
    assert ulps(amx.rms_norm(x, scale, None), exact) < 1.01
    wide = 3 * torch.randn(*shape) + 5
    normed = rows_of(amx.Tiles.layer_normed(wide, scale, shift))
    assert ulps(normed, F.layer_norm(wide, shape[-1:], scale, shift, LAYER_NORM_EPS)) < 1.01
    assert (rows_of(amx.Tiles.rms_normed(torch.zeros_like(x), scale)) == 0).all()
    flat = rows_of(amx.Tiles.layer_normed(torch.full(shape, 7.0), scale, shift))
    assert torch.equal(flat, shift.bfloat16().expand(shape))


@pytest.mark.parametrize("rows", [1, 2], ids="angles of {} rows".format)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 32), (4, 2, 96)])
def test_rotation_is_that_of_operators(heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    qkv, start = random(2, 5, (heads + 2 * kv_heads) * head_dim), 3
    cos, sin = rope_table(torch.randint(0, 900, (rows, 10)), head_dim)
    rope = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    cache = torch.full((2, 2, 10, kv_heads, head_dim), 7.0).bfloat16()
    queries = amx.rotate_into(qkv, rope, cache, start)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=2)
    angles = cos[:, start : start + 5], sin[:, start : start + 5]
    exact = [apply_rope(x.float(), angles) for x in (q, k)]
    assert ulps(queries, exact[0]) < 1.01
    assert ulps(cache[0, :, start : start + 5], exact[1]) < 1.01
    assert torch.equal(cache[1, :, start : start + 5], v)
    assert (cache[:, :, :start] == 7).all()
    assert (cache[:, :, start + 5 :] == 7).all()


@pytest.mark.parametrize("config", [FITS, replace(FITS_PI05, value_residual="mean")])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("one_thread")
def test_a_sampler_has_threads_do_its_parts(threads: int, config: Pi0Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LEAST", 1)  # parts of so few tokens are fine here
    model, inputs = make_model(config).cast(torch.bfloat16), make_inputs(config)
    noise, sampler = make_flow(config)[1], FastSampler(model, 3, packs=True)
    alone, by = sampler(inputs, noise), set()
    tiled = sampler.tables.layers.tiled
    assert tiled is not None
    assert sampler.tables.vision is not None
    assert sampler.tables.vision.by_one_thread

    def qkv(y: amx.Tiles) -> Tensor:
        by.add(current_thread() is main_thread())
        return first(y)

    first, *others = tiled.matrices[0]
    tiled.matrices[0] = (qkv, *others)
    torch.set_num_threads(threads)
    together = sampler(inputs, noise)
    assert by == {threads == 1}  # otherwise none by the calling thread
    assert torch.equal(sampler(inputs, noise), together)
    torch.testing.assert_close(together, alone, atol=0.03, rtol=0.03)
    exact = FastSampler(make_model(config), 3)(inputs, noise).numpy()
    assert relative_rms(together, exact) < 0.15  # that of operators in bfloat16 is 0.07 on the average


def test_what_does_not_fill_tiles_is_left_to_oneDNN() -> None:
    fits = GemmaLayer(FITS, suffix=False).bfloat16()
    assert can_tile(fits)
    assert not can_tile(GemmaLayer(replace(FITS, prefix_mlp_dim=80), suffix=False).bfloat16())
    assert not can_tile(GemmaLayer(replace(FITS, head_dim=48), suffix=False).bfloat16())
    assert not can_tile(GemmaLayer(FITS, suffix=False))  # float32
    fits.qkv = nn.Identity()  # as an adapter would stand there
    assert not can_tile(fits)
    assert can_tile(SiglipBlock(FITS.vision).bfloat16())
    assert not can_tile(SiglipBlock(TINY.vision).bfloat16())


@pytest.mark.usefixtures("one_thread")
def test_more_threads_than_parts_share_every_product() -> None:
    model = make_model(FITS).cast(torch.bfloat16)  # with a prefix of 128 tokens, of which a thread wants 96
    for threads in (1, 2, 3):  # and two cameras
        torch.set_num_threads(threads)
        tables = FastSampler(model, 2, packs=True).tables
        assert tables.vision is not None
        assert (tables.layers.tiled is not None, tables.vision.by_one_thread) == (threads == 1, threads <= 2)
