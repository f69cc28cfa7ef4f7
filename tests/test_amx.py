"""Products by tile registers are those of PyTorch, whatever their shape and whoever computes them."""

from dataclasses import replace
from threading import current_thread, main_thread

import pytest
import torch
import torch.nn.functional as F
from test_golden import relative_rms
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor, nn

from pi0_control.model import layers
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.packed import can_use_amx, has_amx

if not has_amx():
    pytest.skip("this CPU has no tile registers (AMX), or Numba is not installed", allow_module_level=True)

from pi0_control.model import amx

SIZES = {"prefix_width": 64, "prefix_mlp_dim": 96, "head_dim": 16, "num_heads": 2, "max_token_len": 120}
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


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_product_is_rounded_once(batch: int, tokens: int, depth: int, columns: int) -> None:
    x, weight = random(batch, tokens, depth), random(columns, depth)
    product = amx.Matrix(weight)(x)
    assert product.shape == (batch, tokens, columns)
    assert ulps(product, x.float() @ weight.float().mT) < 1.01


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
def test_gates_go_through_gelu_and_meet_what_they_gate(tokens: int, depth: int, columns: int) -> None:
    x, weight = random(1, tokens, depth), random(2 * columns, depth) / depth**0.5
    gated = amx.Matrix(weight, is_gated=True).gated(x)
    gate, up = (x.float() @ weight.float().mT).chunk(2, dim=-1)
    assert gated.shape == (1, tokens)
    rows = gated.memory.transpose(1, 2).reshape(1, -1, columns)[:, :tokens]
    assert ulps(rows, F.gelu(gate, approximate="tanh") * up) < 1.01


def test_what_is_exact_in_bfloat16_stays_as_it_is() -> None:
    x = torch.cat([random(1, 32, 64), torch.tensor([0.0, -0.0, 1e30, -1e-30]).bfloat16().expand(1, 32, 4)], dim=-1)
    x = F.pad(x, (0, 28))
    assert torch.equal(amx.Matrix(torch.eye(96).bfloat16())(x), x)


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([[1.0, 2.0**-8], [1.0 + 2.0**-7, 2.0**-8]]).bfloat16()  # in the middle of two neighbours
    product = amx.Matrix(torch.ones(64, 32).bfloat16())(F.pad(x, (0, 30))[None])
    assert product[0, :, 0].tolist() == [1.0, 1.0 + 2.0**-6]


@pytest.mark.parametrize("gate", [-3e38, -1e4, -20.0, -1e-30, 0.0, 1e-30, 20.0, 1e4, float("nan")])
def test_gelu_has_no_limits(gate: float) -> None:
    x = torch.zeros(1, 1, 32).bfloat16()
    x[..., 0], x[..., 1] = gate, 1
    weight = torch.zeros(128, 32).bfloat16()
    weight[:64, 0], weight[64:, 1] = 1, 1
    result = amx.Matrix(weight, is_gated=True).gated(x).memory[0, :, 0].flatten()
    exact = F.gelu(x[0, 0, 0].float(), approximate="tanh").bfloat16().expand(64)
    torch.testing.assert_close(result, exact, rtol=1e-2, atol=1e-30, equal_nan=True)


def test_nothing_is_written_behind_the_rows() -> None:
    matrix, tokens = amx.Matrix(random(64, 64)), amx.Tiles.of(random(1, 33, 64))
    out = torch.full((40, 64), 7.0).bfloat16()
    matrix._multiply(tokens, out)
    assert torch.equal(out[:33], matrix.of(tokens)[0])
    assert (out[33:] == 7).all()


def test_oneDNN_uses_the_same_registers_in_turns() -> None:
    x, weight = random(1, 40, 256), random(128, 256)
    matrix, theirs = amx.Matrix(weight), F.linear(x, weight)
    for _ in range(3):
        ours = matrix(x)
        assert torch.equal(F.linear(x, weight), theirs)
        assert torch.equal(matrix(x), ours)


def test_a_layer_has_its_own_products() -> None:
    layer, y = GemmaLayer(FITS, suffix=False).bfloat16(), random(2, 37, 64)
    kernels = amx.pack(layer)
    for ours, theirs in ((kernels.qkv, layer.qkv), (kernels.out, layer.out)):
        x = random(2, 37, theirs.in_features)
        torch.testing.assert_close(ours(x), theirs(x), atol=0.02, rtol=0.02)
    torch.testing.assert_close(kernels.down(kernels.hidden(y)), layer.down(layer.hidden(y)), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("config", [FITS, FITS_PI05, replace(FITS, value_residual="mean")])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("one_thread")
def test_a_sampler_has_threads_do_its_parts(threads: int, config: Pi0Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LEAST", 1)  # parts of so few tokens are fine here
    model, inputs = make_model(config).cast(torch.bfloat16), make_inputs(config)
    noise, sampler = make_flow(config)[1], FastSampler(model, 3, packs=True)
    alone, by = sampler(inputs, noise), set()
    assert sampler.tables.layers.by_amx

    def qkv(y: Tensor) -> Tensor:
        by.add(current_thread() is main_thread())
        return first.qkv(y)

    kernels = sampler.tables.layers.prefix_kernels
    first, kernels[0] = kernels[0], kernels[0]._replace(qkv=qkv)
    torch.set_num_threads(threads)
    together = sampler(inputs, noise)
    assert by == {threads == 1}  # otherwise none by the calling thread
    assert torch.equal(sampler(inputs, noise), together)
    torch.testing.assert_close(together, alone, atol=0.03, rtol=0.03)
    assert relative_rms(together, FastSampler(model, 3)(inputs, noise).numpy()) < 0.1  # bfloat16 is 0.05 from float32


def test_what_does_not_fill_tiles_is_left_to_oneDNN() -> None:
    fits = GemmaLayer(FITS, suffix=False).bfloat16()
    assert can_use_amx(fits)
    assert not can_use_amx(GemmaLayer(replace(FITS, prefix_mlp_dim=80), suffix=False).bfloat16())
    assert not can_use_amx(GemmaLayer(FITS, suffix=False))  # float32
    fits.qkv = nn.Identity()  # as an adapter would stand there
    assert not can_use_amx(fits)


@pytest.mark.usefixtures("one_thread")
def test_more_threads_than_parts_share_every_product() -> None:
    model = make_model(FITS).cast(torch.bfloat16)  # with a prefix of 128 tokens, of which a thread wants 96
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert FastSampler(model, 2, packs=True).tables.layers.by_amx == (threads == 1)
