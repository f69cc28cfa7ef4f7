import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.errors import ObservationError
from pi0_control.model import gemma, pi0
from pi0_control.model.attention import attention_mask
from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import ModelInputs, Pi0, in_model_range
from pi0_control.model.sampler import sample_actions
from pi0_control.model.times import sample_time, time_sincos

BACKENDS = ["eager", "sdpa", "flex"]
VARIANTS = [TINY, TINY_PI05]
SWITCHED = [replace(TINY, **switch) for switch in SWITCHES] + [replace(TINY_PI05, value_residual="mean")]

# A published walk-through of π0.5 has these sizes; they differ from the public weights in many places.
WALKTHROUGH = Pi0Config(
    vision=SiglipConfig(depth=12, mlp_dim=4608),
    action_width=2048,
    action_mlp_dim=16384,
    action_dim=7,
    action_horizon=32,
    max_token_len=16,
    state_input="none",
    ada_norm="adarms",
)


def test_images_may_come_in_bytes() -> None:
    values = in_model_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([-1.0, -0.6, 1.0]), atol=1e-6, rtol=0)
    model, inputs = make_model(TINY), make_inputs(TINY)
    in_bytes = replace(inputs, images=((inputs.images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    in_floats = replace(in_bytes, images=in_model_range(in_bytes.images))
    assert torch.equal(model.embed_prefix(in_bytes)[0], model.embed_prefix(in_floats)[0])
    there = in_bytes.to("cpu", torch.bfloat16)
    assert [there.images.dtype, there.state.dtype] == [torch.uint8, torch.bfloat16]


def record(module: torch.nn.Module, calls: list[Tensor]) -> Callable[[], None]:
    """Append every output of a module to ``calls`` until the returned function is called."""
    return module.register_forward_hook(lambda _module, _args, output: calls.append(output.detach().clone())).remove


def with_other_padding(inputs: ModelInputs) -> ModelInputs:
    """The same inputs with different content wherever a mask is False."""
    images, tokens = inputs.images.clone(), inputs.tokens.clone()
    images[~inputs.image_masks] = 0.77
    tokens[~inputs.token_mask] = 3
    return replace(inputs, images=images, tokens=tokens)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (1.0, [0, 0, 0, 1, 1, 1, -1, 0]),
        (0.9, [0, 0, 1, 0.987688, 1, -1, 0, 0.156434]),
        (0.3, [0, 0, -1, 0.45399, 1, -1, 0, 0.891007]),
    ],
)
def test_time_embedding_values(time: float, expected: list[float]) -> None:
    embedded = time_sincos(torch.tensor([time], dtype=torch.float64), 8)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded[0], torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_training_times_are_beta_distributed() -> None:
    time = sample_time(20_000, torch.Generator().manual_seed(0))
    assert time.min() >= 0.001
    assert time.max() <= 1.0
    scaled = (time - 0.001) / 0.999
    assert scaled.mean().item() == pytest.approx(0.6, abs=0.01)
    for quantile in (0.1, 0.5, 0.9):
        assert (scaled <= quantile).float().mean().item() == pytest.approx(quantile**1.5, abs=0.015)


@pytest.mark.parametrize(("preset", "count"), [("pi0", 3_238_048_528), ("pi05", 3_353_433_872)])
def test_parameter_count_of_the_public_models(preset: str, count: int) -> None:
    with torch.device("meta"):
        model = Pi0(Pi0Config.preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_mini_runs_and_is_small() -> None:
    config = Pi0Config.preset("mini")
    model = Pi0(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    actions = sample_actions(model, make_inputs(config, batch=1), num_steps=2)
    assert actions.shape == (1, config.action_horizon, config.action_dim)


def test_shapes_of_the_published_walk_through() -> None:
    batch = 4
    with torch.device("meta"), torch.no_grad():
        model = Pi0(WALKTHROUGH)
        masks = torch.ones(batch, 3, dtype=torch.bool), torch.ones(batch, 16, dtype=torch.bool)
        inputs = ModelInputs(
            torch.empty(batch, 3, 3, 224, 224),
            masks[0],
            torch.empty(batch, 16, dtype=torch.long),
            masks[1],
            torch.empty(batch, 7),
        )
        noise, time = torch.empty(batch, 32, 7), torch.empty(batch)
        prefix, prefix_valid, prefix_ar = model.embed_prefix(inputs)
        suffix, suffix_valid, suffix_ar, cond = model.embed_suffix(inputs.state, noise, time)
        mask = attention_mask(torch.cat([prefix_valid, suffix_valid], 1), torch.cat([prefix_ar, suffix_ar]))
        cache = model.encode_prefix(inputs)
        velocity = model.velocity(inputs, noise, time)
        actions = sample_actions(model, inputs, num_steps=2)
    assert prefix.shape == (batch, 784, 2048)
    assert suffix.shape == (batch, 32, 2048)
    assert cond is not None
    assert cond.shape == (batch, 2048)
    assert mask.shape == (batch, 816, 816)
    assert cache.keys.shape == cache.values.shape == (18, batch, 784, 1, 256)
    assert velocity.shape == actions.shape == (batch, 32, 7)


@torch.no_grad()
def test_only_text_is_scaled() -> None:
    model, inputs = make_model(), make_inputs()
    tokens, _, ar = model.embed_prefix(inputs)
    images = TINY.num_cameras * TINY.vision.num_tokens
    torch.testing.assert_close(tokens[:, images:], model.embedding(inputs.tokens) * 32**0.5)
    torch.testing.assert_close(tokens[:, : TINY.vision.num_tokens], model.vision(inputs.images[:, 0]))
    assert not ar.any()


@torch.no_grad()
def test_pi05_has_no_state_token() -> None:
    model, inputs, (_, noise, time) = make_model(TINY_PI05), make_inputs(), make_flow()
    tokens, _, ar, cond = model.embed_suffix(inputs.state, noise, time)
    assert tokens.shape[1] == TINY.action_horizon
    assert ar.tolist() == [1, 0, 0, 0, 0, 0]
    assert cond is not None
    assert torch.equal(
        model.velocity(inputs, noise, time), model.velocity(replace(inputs, state=-inputs.state), noise, time)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
@torch.no_grad()
def test_cached_is_uncached_in_every_back_end(config: Pi0Config, backend: str) -> None:
    inputs, (_, noise, time) = make_inputs(config), make_flow(config)
    plain = make_model(config).velocity(inputs, noise, time)
    model = make_model(replace(config, attn_backend=backend))
    for velocity in (
        model.velocity(inputs, noise, time),
        model.denoise_step(inputs.state, model.encode_prefix(inputs), noise, time),
        model.denoise_step(inputs.state, model.encode_prefix(inputs, with_hidden=False), noise, time),
    ):
        torch.testing.assert_close(velocity, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
@torch.no_grad()
def test_one_time_for_all_actions_is_the_same_time_for_each(config: Pi0Config) -> None:
    model, inputs, (actions, noise, time) = make_model(config), make_inputs(config), make_flow(config)
    each = time[:, None].expand(-1, config.action_horizon)
    expected = model.loss(inputs, actions, noise, time)
    torch.testing.assert_close(model.loss(inputs, actions, noise, each), expected, atol=2e-5, rtol=1e-4)
    each = each.clone()
    each[:, 0] = 0  # known: its noise does not matter
    other = torch.cat([noise[:, :1] + 1, noise[:, 1:]], dim=1)
    got, changed = (model.loss(inputs, actions, x, each)[:, 1:] for x in (noise, other))
    torch.testing.assert_close(got, changed)
    assert not torch.allclose(got, expected[:, 1:], atol=1e-3)


@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
@torch.no_grad()
def test_the_prefix_does_not_see_state_or_actions(config: Pi0Config) -> None:
    model, inputs, (actions, noise, time) = make_model(config), make_inputs(config), make_flow(config)
    outputs: list[Tensor] = []
    stop = record(model.prefix_layers[-1].down, outputs)
    model.velocity(inputs, noise, time)
    model.velocity(replace(inputs, state=inputs.state + 1), actions, time / 2)
    stop()
    assert torch.equal(*outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
@torch.no_grad()
def test_masked_cameras_and_padding_never_matter(config: Pi0Config, backend: str) -> None:
    config = replace(config, attn_backend=backend)
    model, inputs, (_, noise, time) = make_model(config), make_inputs(config), make_flow(config)
    other = with_other_padding(inputs)
    assert not torch.equal(model.embed_prefix(inputs)[0], model.embed_prefix(other)[0])
    assert torch.equal(model.velocity(inputs, noise, time), model.velocity(other, noise, time))
    assert torch.equal(sample_actions(model, inputs, noise, 2), sample_actions(model, other, noise, 2))


@torch.no_grad()
def test_more_padding_changes_nothing() -> None:
    model, inputs, (_, noise, time) = make_model(), make_inputs(), make_flow()
    longer = replace(
        inputs,
        tokens=torch.cat([inputs.tokens, torch.full((2, 4), 9)], dim=1),
        token_mask=torch.cat([inputs.token_mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(
        model.velocity(longer, noise, time), model.velocity(inputs, noise, time), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("config", VARIANTS)
@torch.no_grad()
def test_every_action_sees_every_other(config: Pi0Config) -> None:
    model, inputs, (_, noise, time) = make_model(config), make_inputs(), make_flow()
    before = model.velocity(inputs, noise, time)
    noise[:, -1] += 1
    assert ((model.velocity(inputs, noise, time) - before).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
def test_the_state_token_does_not_see_the_actions() -> None:
    model, inputs, (actions, noise, time) = make_model(), make_inputs(), make_flow()
    outputs: list[Tensor] = []
    stop = record(model.suffix_layers[-1].down, outputs)
    model.velocity(inputs, noise, time)
    model.velocity(inputs, actions, time)
    stop()
    assert torch.equal(outputs[0][:, 0], outputs[1][:, 0])
    assert not torch.equal(outputs[0][:, 1], outputs[1][:, 1])


@pytest.mark.parametrize("config", VARIANTS)
@torch.no_grad()
def test_loss_is_the_squared_error_of_the_joint_velocity(config: Pi0Config) -> None:
    model, inputs, (actions, noise, time) = make_model(config), make_inputs(), make_flow()
    t = time[:, None, None]
    expected = (model.velocity(inputs, t * noise + (1 - t) * actions, time) - (noise - actions)) ** 2
    torch.testing.assert_close(model.loss(inputs, actions, noise, time), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def switches_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of code that only a switch uses raises."""

    def fail(*args: Any, **options: Any) -> None:
        raise SwitchUsedError

    monkeypatch.setattr(torch, "tanh", fail)  # attn_softcap
    monkeypatch.setattr(pi0.RandomFourierTime, "forward", fail)
    monkeypatch.setattr(gemma.BoundedRMSNorm, "forward", fail)
    monkeypatch.setattr(gemma.LayerScale, "forward", fail)
    monkeypatch.setattr(gemma.GemmaLayer, "mix_values", fail)


class SwitchUsedError(Exception):
    pass


@pytest.mark.parametrize("config", VARIANTS)
@torch.no_grad()
def test_every_switch_off_is_bit_exact(config: Pi0Config, request: pytest.FixtureRequest) -> None:
    model, inputs, (_, noise, time) = make_model(config), make_inputs(), make_flow()
    before = model.velocity(inputs, noise, time), sample_actions(model, inputs, noise, 2)
    request.getfixturevalue("switches_fail")
    assert torch.equal(model.velocity(inputs, noise, time), before[0])
    assert torch.equal(sample_actions(model, inputs, noise, 2), before[1])


@pytest.mark.parametrize("config", [config for config in SWITCHED if config.residual_gate != "none"])
@pytest.mark.usefixtures("switches_fail")
@torch.no_grad()
def test_every_switch_on_is_used(config: Pi0Config) -> None:
    model, inputs, (_, noise, time) = make_model(config), make_inputs(), make_flow()
    with pytest.raises(SwitchUsedError):
        model.velocity(inputs, noise, time)


@pytest.mark.parametrize("config", SWITCHED)
@torch.no_grad()
def test_each_switch_on_changes_the_numbers_of_the_same_weights(config: Pi0Config) -> None:
    inputs, (_, noise, time) = make_inputs(), make_flow()
    public, switched = make_model(config.public_twin()), make_model(config)
    shared = switched.state_dict().keys() & public.state_dict().keys()
    switched.load_state_dict({name: public.state_dict()[name] for name in shared}, strict=False)
    assert not config.is_public_architecture
    assert config.public_twin().is_public_architecture
    assert (switched.velocity(inputs, noise, time) - public.velocity(inputs, noise, time)).abs().max() > 1e-3


@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
def test_gradient_reaches_every_parameter(config: Pi0Config) -> None:
    model, inputs, (actions, noise, time) = make_model(config), make_inputs(config), make_flow(config)
    t = time[:, None, None]
    cache = model.encode_prefix(inputs)
    assert cache.hidden is not None
    velocity = model.denoise_step(inputs.state, cache, t * noise + (1 - t) * actions, time)
    (velocity.square().mean() + cache.hidden.square().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", VARIANTS)
@torch.no_grad()
def test_rows_of_padding_are_never_nan(config: Pi0Config, backend: str, dtype: torch.dtype) -> None:
    model = make_model(replace(config, attn_backend=backend)).to(dtype)
    inputs, (_, noise, time) = make_inputs(), make_flow()
    nothing = replace(
        inputs, image_masks=torch.zeros_like(inputs.image_masks), token_mask=torch.zeros_like(inputs.token_mask)
    )
    for batch in (inputs, nothing):
        hidden = model.encode_prefix(batch).hidden
        assert hidden is not None
        assert hidden.isfinite().all()
        assert model.velocity(batch, noise, time).isfinite().all()
        assert sample_actions(model, batch, noise, 3).isfinite().all()


@pytest.mark.parametrize("config", VARIANTS + SWITCHED)
def test_autocast_trains_near_float32(config: Pi0Config) -> None:
    model, inputs, flow = make_model(config), make_inputs(config), make_flow(config)
    exact = model.loss(inputs, *flow).mean()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(inputs, *flow).mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_cast_keeps_the_sensitive_parts_in_float32() -> None:
    model = make_model(TINY_PI05).cast(torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["prefix_layers.0.qkv.weight"] == dtypes["embedding.weight"] == torch.bfloat16
    for name in ("vision.stem.weight", "vision.position", "suffix_norm.modulation.weight", "action_in_proj.weight"):
        assert dtypes[name] == torch.float32
    assert sample_actions(model, make_inputs(), num_steps=1).dtype == torch.float32
    assert model.cast(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("config", VARIANTS)
def test_training_step_is_one_graph(config: Pi0Config) -> None:
    model, inputs, (_, noise, time) = make_model(config), make_inputs(), make_flow(batch=4)

    def velocity(inputs: ModelInputs, noise: Tensor, time: Tensor) -> Tensor:
        cache = model.encode_prefix(inputs, with_hidden=False).repeat_interleave(2)
        return model.denoise_step(inputs.state.repeat_interleave(2, dim=0), cache, noise, time)

    compiled = torch.compile(velocity, backend="eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(inputs, noise, time), velocity(inputs, noise, time), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gradients_are_those_of_the_plain_model() -> None:
    config = replace(TINY, depth=1, vision=replace(TINY.vision, depth=0))
    model, inputs, (_, noise, time) = make_model(config), make_inputs(config), make_flow(config, batch=4)

    def score(inputs: ModelInputs, noise: Tensor, time: Tensor) -> Tensor:
        cache = model.encode_prefix(inputs, with_hidden=False).repeat_interleave(2)
        return model.denoise_step(inputs.state.repeat_interleave(2, dim=0), cache, noise, time).square().mean()

    gradients = []
    for compute in (score, torch.compile(score, dynamic=False, fullgraph=True)):
        model.zero_grad()
        compute(inputs, noise, time).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-5, rtol=1e-3, msg=name)


def test_images_of_another_size_are_refused() -> None:
    model, inputs = make_model(), make_inputs()
    with pytest.raises(ObservationError, match=r"\[2, 1, 3, 28, 28\]"):
        model.embed_prefix(replace(inputs, images=inputs.images[:, :1]))
    with pytest.raises(ObservationError, match="expected"):
        model.embed_prefix(replace(inputs, images=inputs.images[..., :14]))


def test_inputs_move_and_cast() -> None:
    moved = make_inputs().to("meta", torch.bfloat16)
    assert moved.images.dtype == moved.state.dtype == torch.bfloat16
    assert moved.tokens.dtype == torch.long
    assert moved.image_masks.device.type == "meta"
    assert moved.batch_size == 2
