"""LoRA's laws: nothing changes at first, only adapters learn, and merged they are an ordinary model again."""

import pytest
import torch
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.lora import add_lora, merged_state
from pi0_control.model.parts import part_of
from pi0_control.model.pi0 import Pi0

ALPHA = 3.0


def adapted(config: Pi0Config = TINY, random: bool = True) -> Pi0:
    """A model with adapters in all layers; random ones, as after a training."""
    model = make_model(config)
    add_lora(model, ["vision", "language", "action_expert"], rank=2, alpha=ALPHA)
    generator = torch.Generator().manual_seed(0)
    if random:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora" in name:
                    parameter.normal_(std=0.3, generator=generator)
    return model


def test_an_untrained_adapter_changes_nothing() -> None:
    inputs, (_, noise, time) = make_inputs(), make_flow()
    with torch.no_grad():
        assert torch.equal(
            adapted(random=False).velocity(inputs, noise, time), make_model().velocity(inputs, noise, time)
        )


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
@torch.no_grad()
def test_merged_is_unmerged(config: Pi0Config) -> None:
    inputs, (_, noise, time) = make_inputs(config), make_flow(config)
    model, plain = adapted(config), Pi0(config)
    plain.load_state_dict(merged_state(model.state_dict(), ALPHA))
    velocity = model.velocity(inputs, noise, time)
    torch.testing.assert_close(plain.velocity(inputs, noise, time), velocity, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(make_model(config).velocity(inputs, noise, time), velocity, atol=1e-2)


def test_a_model_without_adapters_is_merged_already() -> None:
    model = make_model()
    state = merged_state(model.state_dict(), ALPHA)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_only_adapters_and_other_parts_learn() -> None:
    model, inputs = make_model(), make_inputs()
    add_lora(model, ["action_expert"], rank=2, alpha=2.0)
    model.loss(inputs, *make_flow()).mean().backward()
    for name, parameter in model.named_parameters():
        is_trained = "lora" in name or part_of(name) != "action_expert"
        assert parameter.requires_grad == is_trained, name
        assert is_trained or parameter.grad is None, name
    adapters = [name for name, _ in model.named_parameters() if "lora" in name]
    assert len(adapters) == TINY.depth * 4 * 2  # qkv, out, gate_up, down; A and B


def test_a_part_without_layers_is_named() -> None:
    model = Pi0(Pi0Config.preset("mini"))
    with pytest.raises(ConfigError, match="vision has no layers for adapters"):
        add_lora(model, ["vision"], rank=2, alpha=2.0)
