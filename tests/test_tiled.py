"""Layers by tile registers are those of operators, whoever computes which part."""

import os
import subprocess
import sys
from dataclasses import replace
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
from test_fast import padded, without_padding
from test_golden import relative_rms
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor, nn

from pi0_control.model import layers
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.packed import can_tile, has_amx
from pi0_control.model.siglip import SiglipBlock

if not has_amx():
    pytest.skip("this CPU has no tile registers (AMX), or Numba is not installed", allow_module_level=True)

from pi0_control.model.tiles import Tiles

SIZES: dict[str, Any] = {"prefix_width": 64, "prefix_mlp_dim": 96, "head_dim": 32, "num_heads": 2, "max_token_len": 120}
SIZES |= {"vision": replace(TINY.vision, width=32, mlp_dim=40), "action_width": 32, "action_mlp_dim": 64}
FITS, FITS_PI05 = replace(TINY, **SIZES), replace(TINY_PI05, **SIZES)


@pytest.mark.parametrize("inputs_of", [lambda x: x, without_padding, padded], ids=["ragged", "full", "padded"])
@pytest.mark.parametrize("config", [FITS, FITS_PI05, replace(FITS_PI05, value_residual="mean", num_kv_heads=2)])
def test_no_further_from_float32_than_operators(
    config: Pi0Config, inputs_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LEAST", 1)  # parts of so few tokens are fine here
    model, inputs = make_model(config).cast(torch.bfloat16), inputs_of(make_inputs(config))
    actions, noise, _ = make_flow(config, inputs.batch_size)
    exact = FastSampler(make_model(config), 3)
    sampler, operators = (FastSampler(model, 3, packs) for packs in (True, False))
    for known in (None, [row[:2] for row in actions]):
        expected = exact(inputs, noise, known_actions=known).numpy()
        ours, theirs = (
            relative_rms(each(inputs, noise, known_actions=known), expected) for each in (sampler, operators)
        )
        assert ours < 0.05 + 1.5 * theirs  # 0.03 to 0.26 each, by chance one more or the other
    assert sampler.tables.layers.tiled is not None


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

    def qkv(y: Tiles) -> Tensor:
        by.add(current_thread() is main_thread())
        return first(y)

    first, *others = tiled.matrices[0]
    tiled.matrices[0] = (qkv, *others)
    torch.set_num_threads(threads)
    together = sampler(inputs, noise)
    assert by == {threads == 1}  # otherwise none by the calling thread
    assert torch.equal(sampler(inputs, noise), together)
    torch.testing.assert_close(together, alone, atol=0.03, rtol=0.03)


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


def test_without_numba_all_is_left_to_oneDNN(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "pi0_control.model.amx", None)  # to import it is an error
    assert not has_amx.__wrapped__()
    assert "pip install 'pi0-control[amx]'" in caplog.text


def test_a_numba_that_cannot_compile_the_kernels_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("amx", "llvm"):
        monkeypatch.delitem(sys.modules, f"pi0_control.model.{name}")
    monkeypatch.delattr("numba.core.cgutils.get_or_insert_function")  # as a Numba to come may have none
    assert not has_amx.__wrapped__()
    assert "get_or_insert_function" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("NUMBA_CPU_NAME", "generic"), ("NUMBA_DISABLE_JIT", "1")])
def test_a_numba_that_does_not_compile_for_this_cpu_is_not_used(name: str, value: str) -> None:
    script = "from pi0_control.model.packed import has_amx; print(has_amx())"
    environment = {**os.environ, name: value}  # with the first, LLVM would end the process
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
