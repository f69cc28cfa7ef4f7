"""The fast path has the numbers of the plain one, whatever is switched on."""

import sys
from dataclasses import replace
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch
from test_golden import NAMES, jax_model, relative_rms, torch_model
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model

from pi0_control.model import packed
from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.gemma import GemmaLayer
from pi0_control.model.packed import pack, part_sizes
from pi0_control.model.pi0 import ModelInputs
from pi0_control.model.rtc import Guidance
from pi0_control.model.sampler import sample_actions

CONFIGS = [TINY, TINY_PI05, replace(TINY, ada_norm="adarms"), replace(TINY, num_kv_heads=4, attn_backend="sdpa")]
CONFIGS += [replace(TINY, **switch) for switch in SWITCHES]


def without_padding(inputs: ModelInputs) -> ModelInputs:
    return replace(
        inputs, image_masks=torch.ones_like(inputs.image_masks), token_mask=torch.ones_like(inputs.token_mask)
    )


def padded(inputs: ModelInputs) -> ModelInputs:
    """One row, with padding behind the text and without the first camera."""
    first = ModelInputs(**{name: value[:1].clone() for name, value in vars(inputs).items()})
    first.token_mask[:] = torch.arange(first.tokens.shape[1]) < 4
    first.image_masks[:] = torch.tensor([False, True])
    return first


def guidance(config: Pi0Config, jacobian: Any) -> Guidance:
    actions = make_flow(config)[0]
    weights = torch.zeros_like(actions)
    weights[:, :3] = 1
    return Guidance(actions, weights, 2.0, jacobian)


@pytest.mark.parametrize("inputs_of", [lambda x: x, without_padding, padded], ids=["ragged", "full", "padded"])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_numbers_of_the_plain_sampler(config: Pi0Config, inputs_of: Any) -> None:
    model, inputs = make_model(config), inputs_of(make_inputs(config))
    noise = make_flow(config, inputs.batch_size)[1]
    expected = sample_actions(model, inputs, noise, 4)
    torch.testing.assert_close(FastSampler(model, 4)(inputs, noise), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_known_actions_and_guidance(config: Pi0Config) -> None:
    model, inputs, (actions, noise, _) = make_model(config), make_inputs(config), make_flow(config)
    sampler = FastSampler(model, 3)
    for steering in (
        {"known_actions": [actions[0, :2], actions[1, :0]]},
        {"guidance": guidance(config, "identity")},
        {"guidance": guidance(config, "full")},
    ):
        expected = sample_actions(model, inputs, noise, 3, **steering)
        torch.testing.assert_close(sampler(inputs, noise, **steering), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_openpi(name: str) -> None:
    model, inputs, golden = torch_model(name)
    actions = FastSampler(model, 10)(inputs, golden["in.noise"])
    torch.testing.assert_close(actions, golden["out.actions_10_steps"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "openpis"), [("pi0", 0.01307), ("pi05", 0.01473)])
def test_bfloat16_is_no_further_from_float32_than_openpis(name: str, openpis: float) -> None:
    """One draw of roundings varies by a tenth; openpi's error is that of its JAX code over these same noises."""
    model, inputs, golden = jax_model(name)
    generator, first = torch.Generator().manual_seed(1), torch.tensor(golden["noise"])
    noises = [first, *(torch.randn(first.shape, generator=generator) for _ in range(30))]
    exact = [FastSampler(model, 10)(inputs, noise) for noise in noises]
    ours = FastSampler(model.cast(torch.bfloat16), 10)
    errors = [relative_rms(ours(inputs, noise), truth) for noise, truth in zip(noises, exact, strict=True)]
    assert sum(errors) / len(errors) <= openpis
    openpi_once = relative_rms(torch.tensor(golden["sample_10_bf16"]), golden["sample_10"])
    assert openpis == pytest.approx(openpi_once, rel=0.1)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize("name", NAMES)
def test_packed_matrices_are_no_less_exact(name: str) -> None:
    model, inputs, golden = jax_model(name)
    noise, exact = torch.tensor(golden["noise"]), golden["sample_10"]
    plain, faster = (FastSampler(model.cast(torch.bfloat16), 10, packs)(inputs, noise) for packs in (False, True))
    assert relative_rms(faster, plain) < 0.02
    assert relative_rms(faster, exact) < 1.1 * relative_rms(plain, exact)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize("inputs_of", [lambda x: x, without_padding, padded], ids=["ragged", "full", "padded"])
@pytest.mark.parametrize("config", [TINY, TINY_PI05])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("one_thread")
def test_a_packed_prefix_goes_through_its_layers_in_parts(
    threads: int, config: Pi0Config, inputs_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make_model(config).cast(torch.bfloat16), inputs_of(make_inputs(config))
    noise, sampler = make_flow(config, inputs.batch_size)[1], FastSampler(model, 3, packs=True)
    whole, rows, by = sampler(inputs, noise), [], set()
    for name, value in {"LEAST": 2, "PART": 6, "BLOCK": 2}.items():
        monkeypatch.setattr(packed, name, value)

    def qkv(y: torch.Tensor) -> torch.Tensor:
        rows.append(y.shape[1])
        by.add(current_thread() is main_thread())
        return first.qkv(y)

    kernels = sampler.tables.layers.prefix_kernels
    first, kernels[0] = kernels[0], kernels[0]._replace(qkv=qkv)
    torch.set_num_threads(threads)
    in_parts = sampler(inputs, noise)
    torch.testing.assert_close(in_parts, whole, atol=0.03, rtol=0.03)
    assert len(rows) > 1
    assert sum(rows) == inputs.trimmed().tokens.shape[1] + inputs.trimmed().image_masks.shape[1] * 4
    assert by == {threads == 1}  # otherwise none by the calling thread
    assert torch.equal(sampler(inputs, noise), in_parts)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products")
def test_a_packed_mlp_is_that_of_its_layer() -> None:
    layer, y = GemmaLayer(TINY, suffix=False).bfloat16(), torch.randn(2, 7, TINY.prefix_width).bfloat16()
    kernels = pack(layer, 7)
    mlp = kernels.down(kernels.hidden(y))
    torch.testing.assert_close(mlp, layer.down(layer.hidden(y)), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("least_parts", [1, 3])
@pytest.mark.parametrize(("batch", "length"), [(1, 828), (1, 968), (1, 816), (1, 96), (1, 7), (3, 260), (300, 20)])
def test_parts_of_a_prefix_are_alike_and_small(batch: int, length: int, least_parts: int) -> None:
    *whole, last = part_sizes(batch, length, least_parts)
    assert sum(whole) + last == length
    assert all(size % packed.BLOCK == 0 for size in whole)
    assert max([*whole, last]) - min([*whole, last]) < 2 * packed.BLOCK
    assert batch * max([*whole, last]) <= packed.PART + batch * packed.BLOCK
    assert len(whole) + 1 >= min(least_parts, length / packed.BLOCK)


def test_an_encoder_without_blocks_needs_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi0_control.model.tiled", None)  # to import it is an error
    model = make_model(replace(TINY, vision=replace(TINY.vision, depth=0)))
    for dtype in (torch.bfloat16, torch.float32):
        assert FastSampler(model.cast(dtype), 2, packs=True).tables.vision is None


def test_packed_copies_follow_the_weights() -> None:
    model, inputs = make_model().cast(torch.bfloat16), make_inputs()
    sampler, noise = FastSampler(model, 2, packs=True), make_flow()[1]
    for layer in (model.suffix_layers[0], model.vision.blocks[0]):
        before = sampler(inputs, noise)
        with torch.no_grad():
            layer.qkv.weight.neg_()
        assert not torch.equal(sampler(inputs, noise), before)
    torch.testing.assert_close(sampler(inputs, noise), FastSampler(model, 2)(inputs, noise), atol=0.1, rtol=0.1)
    model.float()  # nothing to pack in float32
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_changed_weights_are_noticed(config: Pi0Config) -> None:
    model, inputs, (_, noise, _) = make_model(config), make_inputs(config), make_flow(config)
    sampler = FastSampler(model, 2)
    sampler(inputs, noise)
    tables = sampler.tables
    assert sampler.tables is tables
    model.load_state_dict(make_model(config, seed=1).state_dict())
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        model.suffix_layers[1].norm1.get_parameter("scale" if config is TINY else "modulation.bias").add_(0.5)
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)
    model.cast(torch.bfloat16)
    assert sampler(inputs, noise).isfinite().all()
    assert sampler.tables is not tables


def test_padding_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_model(), padded(make_inputs())
    seen = []
    encode = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda images, kernels: seen.append(len(images)) or encode(images))
    encoded = FastSampler(model).encode(inputs.trimmed(), is_full=True)
    assert seen == [1]
    assert encoded.length == TINY.vision.num_tokens + 4


def test_trimming_keeps_what_any_row_needs() -> None:
    inputs = make_inputs()
    assert inputs.trimmed() is inputs  # the second row has it all
    assert padded(inputs).trimmed(3).tokens.shape == (1, 6)
    assert padded(inputs).trimmed(5).tokens.shape == (1, 5)
    assert padded(inputs).trimmed(100).tokens.shape == (1, 7)
    nothing = replace(inputs, image_masks=inputs.image_masks & False, token_mask=inputs.token_mask & False)
    assert nothing.trimmed().images.shape[1] == nothing.trimmed().tokens.shape[1] == 1
    noise = make_flow()[1]
    model = make_model()
    expected = sample_actions(model, nothing, noise, 2)
    torch.testing.assert_close(FastSampler(model, 2)(nothing, noise), expected, atol=1e-4, rtol=1e-5)
