"""The kernels of a GPU have the numbers of the plain model; without a GPU they run in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fast import without_padding
from test_fast_counts import Launches
from test_golden import relative_rms
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model, make_wide_model
from torch import Tensor

from pi0_control.model import float8
from pi0_control.model.attention import Attention, apply_rope, rope_table
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.gemma import Modulation
from pi0_control.model.graph import GraphSampler
from pi0_control.model.sampler import Flow, sample_actions

kernels = pytest.importorskip("pi0_control.model.kernels", reason="Triton is not installed", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of NumPy's sigmoid
on_tiny_models = pytest.mark.skipif(torch.cuda.is_available(), reason="tiles of a GPU are larger than these models")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDED = replace(TINY, ada_norm="bounded")  # a shift, but no gate
BATCH, TOKENS, HEADS = 2, 5, 4
WIDTH, HEAD_DIM, HIDDEN, PREFIX = (512, 128, 768, 700) if DEVICE == "cuda" else (24, 16, 40, 11)
PLACES = PREFIX + TOKENS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def matrix(out: int, width: int) -> Tensor:
    return random(out, width) * width**-0.5


def rope(rows: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """As the kernels take it, and as the plain model does."""
    positions = torch.randint(0, PLACES, (rows, PLACES), device=DEVICE)
    cos, sin = rope_table(positions, HEAD_DIM)
    return (torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)), (cos, sin)


def norm(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    return Modulation(scale, shift).apply(x)


@pytest.mark.parametrize("rows", [1, BATCH])
@pytest.mark.parametrize("has_shift", [True, False])
def test_normed_qkv(rows: int, has_shift: bool) -> None:
    x, scale, weight = random(BATCH, TOKENS, WIDTH), random(WIDTH), matrix((HEADS + 2) * HEAD_DIM, WIDTH)
    shift = random(WIDTH) if has_shift else None
    (wide, plain), cache = rope(rows), random(2, BATCH, PLACES, 1, HEAD_DIM)
    expected = cache.clone()
    qkv = (norm(x, scale, shift) @ weight.mT).unflatten(-1, (HEADS + 2, HEAD_DIM))
    here = tuple(table[:, PREFIX:] for table in plain)
    rotated = apply_rope(qkv[:, :, : HEADS + 1], here)  # type: ignore[arg-type]
    expected[0, :, PREFIX:], expected[1, :, PREFIX:] = rotated[:, :, HEADS:], qkv[:, :, HEADS + 1 :]
    bias = None if shift is None else shift @ weight.mT
    queries = kernels.normed_qkv(x, scale, bias, weight, wide, cache, PREFIX)
    torch.testing.assert_close(queries, rotated[:, :, :HEADS], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first_sees", [PREFIX + 1, PLACES])
def test_attend(first_sees: int) -> None:
    queries, cache = random(BATCH, TOKENS, HEADS, HEAD_DIM), 3 * random(2, BATCH, PLACES, 1, HEAD_DIM)
    seen = torch.ones(BATCH, PLACES, dtype=torch.uint8, device=DEVICE)
    seen[0, 2:9] = 0
    mask = seen.bool()[:, None].repeat(1, TOKENS, 1)
    mask[:, 0, first_sees:] = False
    expected = Attention(mask, "eager")(queries, cache[0], cache[1])
    torch.testing.assert_close(kernels.attend(queries, cache, seen, first_sees), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("has_gate", [True, False])
def test_gated_product(has_gate: bool) -> None:
    x, branch, weight = random(BATCH, TOKENS, WIDTH), random(BATCH, TOKENS, HIDDEN), matrix(WIDTH, HIDDEN)
    gate = random(WIDTH) if has_gate else None
    expected = x + branch @ weight.mT * (1 if gate is None else gate)
    torch.testing.assert_close(kernels.gated_product(x, branch, weight, gate), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("has_shift", [True, False])
def test_normed_gate_up(has_shift: bool) -> None:
    x, scale, weight = random(BATCH, TOKENS, WIDTH), random(WIDTH), matrix(2 * HIDDEN, WIDTH)
    shift = random(WIDTH) if has_shift else None
    gate, up = (norm(x, scale, shift) @ weight.mT).chunk(2, dim=-1)
    bias = None if shift is None else shift @ weight.mT
    expected = F.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(kernels.normed_gate_up(x, scale, bias, weight), expected, atol=1e-4, rtol=1e-4)


def test_around_the_products_of_a_prefix() -> None:
    x, scale, both = random(BATCH, PREFIX, WIDTH), random(WIDTH), random(BATCH, PREFIX, 2 * HIDDEN)
    torch.testing.assert_close(kernels.rms_norm(x, scale), norm(x, scale, None), atol=1e-5, rtol=1e-5)
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(kernels.join_gate_up(both), F.gelu(gate, approximate="tanh") * up, atol=1e-5, rtol=1e-5)
    qkv, (wide, plain) = random(BATCH, PREFIX, (HEADS + 2) * HEAD_DIM), rope(BATCH)
    cache = random(2, BATCH, PLACES, 1, HEAD_DIM)
    expected, heads = cache.clone(), qkv.unflatten(-1, (HEADS + 2, HEAD_DIM))
    rotated = apply_rope(heads[:, :, : HEADS + 1], tuple(table[:, :PREFIX] for table in plain))  # type: ignore[arg-type]
    expected[0, :, :PREFIX], expected[1, :, :PREFIX] = rotated[:, :, HEADS:], heads[:, :, HEADS + 1 :]
    torch.testing.assert_close(kernels.rotate_into(qkv, wide, cache), rotated[:, :, :HEADS], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache, expected, atol=1e-5, rtol=1e-5)


def test_rows_in_float8() -> None:
    x = random(7, 96) * torch.logspace(-3, 3, 7, device=DEVICE)[:, None]
    x[3] = 0
    (values, scale), expected = kernels.scaled_rows(x), float8.scaled_rows(x)
    torch.testing.assert_close(scale, expected.scale)
    assert values.dtype == expected.values.dtype
    exponents = [torch.frexp(each.float()).exponent for each in (x / scale, expected.values)]
    stays = exponents[0] == exponents[1]  # where rounding up makes another digit, Triton's interpreter forgets to carry
    stays |= DEVICE == "cuda"
    assert stays.float().mean() > 0.9
    torch.testing.assert_close(values.float()[stays], expected.values.float()[stays])


@on_tiny_models
@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_a_fused_sampler_in_float8(config: Pi0Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "scaled_rows", float8.scaled_rows)  # the interpreter cannot round, see above
    model, inputs, noise = make_model(replace(config, attn_backend="sdpa")), make_inputs(config), make_flow(config)[1]
    fused, plain = (FastSampler(model, 2, fuses=fuses, float8=True)(inputs, noise) for fuses in (True, False))
    exact = sample_actions(model, inputs, noise, 2)
    assert relative_rms(fused, plain) < 0.2 * relative_rms(plain, exact)


@on_tiny_models
@pytest.mark.parametrize("config", [TINY, TINY_PI05, BOUNDED])
def test_a_fused_sampler_has_the_numbers_of_the_plain_one(config: Pi0Config) -> None:
    model, inputs = make_model(replace(config, attn_backend="sdpa")), make_inputs(config)
    sampler = FastSampler(model, 2, fuses=True)
    assert sampler.tables.fused is not None
    for each in (inputs, without_padding(inputs)):
        noise = make_flow(config, each.batch_size)[1]
        torch.testing.assert_close(sampler(each, noise), sample_actions(model, each, noise, 2), atol=1e-4, rtol=1e-5)


@on_tiny_models
def test_what_graphs_of_kernels_were_compared_with_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pi0_control.model.graph._can_fuse", lambda model: True)
    model, inputs, noise = make_model(TINY_PI05), make_inputs(TINY_PI05), make_flow(TINY_PI05)[1]
    sampler = GraphSampler(model, 2)
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)
    assert sampler.fuses
    assert sampler.sampler._tables is None
    torch.testing.assert_close(sampler.sampler(inputs, noise), sampler(inputs, noise), atol=1e-4, rtol=1e-5)


@on_tiny_models
def test_known_actions_go_the_way_without_kernels() -> None:
    model, inputs, (actions, noise, _) = make_model(TINY_PI05), make_inputs(TINY_PI05), make_flow(TINY_PI05)
    known = [actions[0, :2], actions[1, :0]]
    expected = sample_actions(model, inputs, noise, 3, known_actions=known)
    ours = FastSampler(model, 3, fuses=True)(inputs, noise, known_actions=known)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@on_tiny_models
def test_shifts_follow_the_weights() -> None:
    model, inputs, noise = make_model(TINY_PI05), make_inputs(TINY_PI05), make_flow(TINY_PI05)[1]
    sampler = FastSampler(model, 1, fuses=True)
    sampler(inputs, noise)
    with torch.no_grad():
        model.suffix_layers[1].gate_up.weight.neg_()
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 1), atol=1e-4, rtol=1e-5)


@on_tiny_models
@pytest.mark.parametrize(
    ("changes", "fits"),
    [({}, True), ({"num_kv_heads": 4}, False), ({"attn_softcap": 2.0}, False), ({"action_mlp_dim": 41}, False)],
)
def test_what_can_be_fused(changes: dict[str, object], fits: bool) -> None:
    from pi0_control.model.fused import can_fuse

    assert can_fuse(make_model(replace(TINY, **changes))) == fits  # type: ignore[arg-type]
    adapted = make_model()
    adapted.suffix_layers[0].qkv = torch.nn.Sequential(adapted.suffix_layers[0].qkv)  # as an adapter wraps it
    assert not can_fuse(adapted)


@pytest.mark.skipif(DEVICE == "cpu", reason="bfloat16 is not what Triton's interpreter can multiply")
@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_bfloat16_at_full_width_is_no_further_from_float32(variant: str) -> None:
    model = make_wide_model(variant).to(DEVICE)
    inputs, noise = make_inputs(model.config), make_flow(model.config)[1]
    exact = FastSampler(model, 4)(inputs, noise)
    plain, fused = (FastSampler(model.cast(torch.bfloat16), 4, fuses=fuses)(inputs, noise) for fuses in (False, True))
    assert (fused - exact).square().mean() <= 1.2 * (plain - exact).square().mean()


@on_tiny_models
def test_one_step_is_six_launches_per_layer_and_few_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []
    for name in ("normed_qkv", "attend", "gated_product", "normed_gate_up"):
        monkeypatch.setattr(kernels, name, noting(launches, name, getattr(kernels, name)))
    model, inputs, noise = make_model(TINY_PI05), without_padding(make_inputs(TINY_PI05)), make_flow(TINY_PI05)[1]
    sampler = FastSampler(model, 1, fuses=True)
    encoded = sampler.encode(inputs, is_full=True)
    with Launches() as besides:
        sampler.denoise(Flow(noise, 1), encoded, inputs.state)
    assert launches == model.config.depth * ["normed_qkv", "attend", "gated_product", "normed_gate_up", "gated_product"]
    assert len([name for name in besides.names if not name.startswith(("empty", "new_empty"))]) <= 12


def noting(launches: list[str], name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def noted(*args: Any) -> Tensor:
        launches.append(name)
        with torch.utils._python_dispatch._disable_current_modes():  # what the interpreter does is not a launch
            return kernel(*args)

    return noted


@pytest.mark.parametrize("capability", ["80", "89", "90"])
def test_kernels_compile_for_a_gpu_that_is_not_here(capability: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    surroundings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), capability]
    out = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr
    taken = {line.split()[1]: [int(figure) for figure in line.split()[-3:]] for line in out.stdout.splitlines()}
    assert len(taken) == (8 if capability == "80" else 9)  # which has no float8
    shared = {"80": 163, "89": 227, "90": 227}[capability]  # 8.9 has 99, and does not choose those that take more
    for name, (memory, products, copies) in taken.items():
        assert memory <= shared * 1024, name
        if name in ("_qkv", "_attend_part", "_gated_product", "_gate_up"):
            assert products > 0, name  # on tensor cores
            assert copies > 0, name  # the next tile comes while this one is multiplied
