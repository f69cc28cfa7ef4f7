"""Products by tile registers are those of PyTorch, whatever their shape."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pi0_control.model.attention import apply_rope, rope_table
from pi0_control.model.gemma import RMS_NORM_EPS
from pi0_control.model.packed import has_amx
from pi0_control.model.siglip import LAYER_NORM_EPS

if not has_amx():
    pytest.skip("this CPU has no tile registers (AMX), or Numba is not installed", allow_module_level=True)

from pi0_control.model import amx
from pi0_control.model.tiles import Matrix, Tiles, rms_norm, rotate_into

SHAPES = [  # tokens, depth, columns
    (1, 32, 64),
    (16, 64, 64),
    (31, 64, 128),
    (33, 1024, 96),  # as many steps as rows of a block
    (50, 2304, 64),  # as deep as one pass
    (70, 2336, 64),  # two passes
    (224, 4704, 160),  # three
]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def ulps(ours: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of bfloat16, of the values' root mean square or more."""
    size = exact.abs().clamp(min=float(exact.square().mean().sqrt()))
    return float(((ours.float() - exact).abs() / size).max() * 2**8)


def rows_of(tiles: Tiles) -> Tensor:
    """[B, T, ..] as they would be in rows."""
    rows = tiles.memory.transpose(1, 2).flatten(0, 1).flatten(1)
    return rows[: tiles.shape[:-1].numel(), : tiles.shape[-1]].view(tiles.shape)


@pytest.mark.parametrize(("tokens", "depth", "columns"), SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_product_is_rounded_once(batch: int, tokens: int, depth: int, columns: int) -> None:
    x, weight, bias = random(batch, tokens, depth), random(columns, depth), random(columns)
    tiles = Tiles.of(x)
    assert torch.equal(rows_of(tiles), x)
    exact = x.float() @ weight.float().mT
    matrix, biased = Matrix(weight), Matrix(weight, bias)
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
    tiles, exact = Tiles.of(x), x.float() @ weight.float().mT
    activated = Matrix(weight, bias).gelu(tiles)
    assert ulps(rows_of(activated), F.gelu(exact + bias.float(), approximate="tanh")) < 1.01
    gate, up = exact.chunk(2, dim=-1)
    gated = Matrix(weight, is_gated=True).gated(tiles)
    assert gated.shape == (1, tokens, columns)
    assert ulps(rows_of(gated), F.gelu(gate, approximate="tanh") * up) < 1.01


def test_what_does_not_fill_a_panel_is_filled_up_with_zeros() -> None:
    x, first, bias, second = random(1, 40, 64), random(40, 64) / 8, random(40), random(32, 40)
    hidden = Matrix(first, bias).gelu(Tiles.of(x))
    assert hidden.shape == (1, 40, 64)
    exact = F.gelu(F.linear(x.float(), first.float(), bias.float()), approximate="tanh").bfloat16()
    assert ulps(rows_of(hidden)[..., :40], exact.float()) < 1.01
    assert (rows_of(hidden)[..., 40:] == 0).all()
    assert ulps(Matrix(second)(hidden), rows_of(hidden)[..., :40].float() @ second.float().mT) < 1.01


def test_what_does_not_fit_is_refused() -> None:
    tiles, wide = Tiles.of(random(1, 3, 64)), torch.ones(96)
    with pytest.raises(ValueError, match="Tokens are 64 deep, the matrix 96"):
        Matrix(random(64, 96))(tiles)
    for call in (
        lambda: Matrix(random(64, 64).float()),
        lambda: Matrix(random(96, 64), is_gated=True),
        lambda: Matrix(random(64, 64), wide, is_gated=True),
        lambda: Matrix(random(40, 64))(tiles),
        lambda: Matrix(random(64, 64))(tiles, random(1, 3, 32)),
        lambda: Matrix(random(64, 64))(tiles, random(1, 3, 64).half()),
        lambda: Matrix(random(64, 64), random(32)),
        lambda: Matrix(random(64, 64), is_gated=True)(tiles),
        lambda: Matrix(random(64, 64)).gated(tiles),
        lambda: Tiles.of(random(1, 3, 40)),
        lambda: Tiles.rms_normed(torch.randn(1, 3, 96), wide),
        lambda: Tiles.layer_normed(random(1, 3, 96), wide, wide),
        lambda: Tiles.layer_normed(torch.randn(1, 3, 96), wide, wide[:64]),
        lambda: rms_norm(torch.randn(1, 3, 96), wide, None),
        lambda: rms_norm(random(1, 3, 64), wide, None),
        lambda: rms_norm(random(1, 3, 96), wide.bfloat16(), None),
        lambda: rms_norm(random(1, 3, 96), wide, wide[:64]),
    ):
        with pytest.raises(ValueError, match=r"bfloat16|float32|panels|multiple of 32|to be gated"):
            call()


@pytest.mark.parametrize("start", [-1, 6])
def test_a_rotation_outside_of_the_cache_is_refused(start: int) -> None:
    qkv, angles, cache = random(1, 5, 4 * 32), torch.randn(1, 10, 1, 32), random(2, 1, 10, 1, 32)
    rotate_into(qkv, (angles, angles), cache, 5)
    for wrong in (
        lambda: rotate_into(qkv, (angles, angles), cache, start),
        lambda: rotate_into(qkv, (angles[:, :9], angles), cache, 5),
        lambda: rotate_into(qkv, (angles, angles.bfloat16()), cache, 5),
        lambda: rotate_into(qkv, (angles, angles), cache.float(), 5),
        lambda: rotate_into(qkv, (angles, angles), cache[..., ::2].repeat(1, 1, 1, 2, 1)[:, :, :, ::2], 5),
        lambda: rotate_into(qkv[..., :64], (angles, angles), cache, 5),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            wrong()


def test_tensors_of_other_devices_and_dtypes_by_default_change_nothing() -> None:
    x, weight, scale = random(1, 3, 64), random(64, 64), torch.randn(64)
    expected = Matrix(weight)(Tiles.rms_normed(x, scale), x)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            result = Matrix(weight)(Tiles.rms_normed(x, scale), x)
            normed = rms_norm(x, scale, None)
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(result, expected)
    assert torch.equal(normed, rms_norm(x, scale, None))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1])
def test_what_is_not_a_number_stays_none(bits: int) -> None:
    x = torch.full((1, 1, 32), bits, dtype=torch.int32).view(torch.float32)
    assert rows_of(Tiles.layer_normed(x, torch.ones(32), torch.zeros(32))).isnan().all()


def test_what_is_exact_in_bfloat16_stays_as_it_is() -> None:
    x = torch.cat([random(1, 32, 64), torch.tensor([0.0, -0.0, 1e30, -1e-30]).bfloat16().expand(1, 32, 4)], dim=-1)
    x = F.pad(x, (0, 28))
    assert torch.equal(Matrix(torch.eye(96).bfloat16())(Tiles.of(x)), x)


def test_halves_are_rounded_to_even() -> None:
    x = torch.tensor([[1.0, 2.0**-8], [1.0 + 2.0**-7, 2.0**-8]]).bfloat16()  # in the middle of two neighbours
    product = Matrix(torch.ones(64, 32).bfloat16())(Tiles.of(F.pad(x, (0, 30))[None]))
    assert product[0, :, 0].tolist() == [1.0, 1.0 + 2.0**-6]


@pytest.mark.parametrize("gate", [-3e38, -1e4, -20.0, -1e-30, 0.0, 1e-30, 20.0, 1e4, float("nan")])
def test_gelu_has_no_limits(gate: float) -> None:
    x = torch.zeros(1, 1, 32).bfloat16()
    x[..., 0], x[..., 1] = gate, 1
    weight = torch.zeros(128, 32).bfloat16()
    weight[:64, 0], weight[64:, 1] = 1, 1
    result = Matrix(weight, is_gated=True).gated(Tiles.of(x)).memory[0, :, 0].flatten()
    exact = F.gelu(x[0, 0, 0].float(), approximate="tanh").bfloat16().expand(64)
    torch.testing.assert_close(result, exact, rtol=1e-2, atol=1e-30, equal_nan=True)


def test_nothing_is_written_behind_the_rows() -> None:
    matrix, tokens = Matrix(random(64, 64)), Tiles.of(random(1, 33, 64))
    out = torch.full((40, 64), 7.0).bfloat16()
    matrix._multiply(tokens, out, amx.ROWS)
    assert torch.equal(out[:33], matrix(tokens)[0])
    assert (out[33:] == 7).all()


def test_oneDNN_uses_the_same_registers_in_turns() -> None:
    x, weight = random(1, 40, 256), random(128, 256)
    matrix, tokens, theirs = Matrix(weight), Tiles.of(x), F.linear(x, weight)
    for _ in range(3):
        ours = matrix(tokens)
        assert torch.equal(F.linear(x, weight), theirs)
        assert torch.equal(matrix(tokens), ours)


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 37, 96), (1, 224, 2048)])
def test_norms_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    x, scale, shift = 3 * random(*shape), torch.randn(shape[-1]), torch.randn(shape[-1])
    exact = F.rms_norm(x.float(), shape[-1:], scale, RMS_NORM_EPS)
    assert ulps(rows_of(Tiles.rms_normed(x, scale)), exact) < 1.01
    assert ulps(rms_norm(x.mT.contiguous().mT, scale, shift), exact + shift) < 1.01
    assert ulps(rms_norm(x, scale, None), exact) < 1.01
    wide = 3 * torch.randn(*shape) + 5
    normed = rows_of(Tiles.layer_normed(wide, scale, shift))
    assert ulps(normed, F.layer_norm(wide, shape[-1:], scale, shift, LAYER_NORM_EPS)) < 1.01
    assert (rows_of(Tiles.rms_normed(torch.zeros_like(x), scale)) == 0).all()
    flat = rows_of(Tiles.layer_normed(torch.full(shape, 7.0), scale, shift))
    assert torch.equal(flat, shift.bfloat16().expand(shape))


@pytest.mark.parametrize("rows", [1, 2], ids="angles of {} rows".format)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 32), (4, 2, 96)])
def test_rotation_is_that_of_operators(heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    qkv, start = random(2, 5, (heads + 2 * kv_heads) * head_dim), 3
    cos, sin = rope_table(torch.randint(0, 900, (rows, 10)), head_dim)
    rope = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    cache = torch.full((2, 2, 10, kv_heads, head_dim), 7.0).bfloat16()
    queries = rotate_into(qkv, rope, cache, start)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=2)
    angles = cos[:, start : start + 5], sin[:, start : start + 5]
    exact = [apply_rope(x.float(), angles) for x in (q, k)]
    assert ulps(queries, exact[0]) < 1.01
    assert ulps(cache[0, :, start : start + 5], exact[1]) < 1.01
    assert torch.equal(cache[1, :, start : start + 5], v)
    assert (cache[:, :, :start] == 7).all()
    assert (cache[:, :, start + 5 :] == 7).all()
