"""Gradient checkpointing: the same numbers with less kept in memory."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_model import SWITCHES, TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import Pi0
from pi0_control.model.sampler import sample_actions


def losses(model: Pi0) -> Iterator[Tensor]:
    inputs, flow = make_inputs(model.config), make_flow(model.config)
    yield model.loss(inputs, *flow).mean()
    hidden = model.encode_prefix(inputs).hidden
    assert hidden is not None
    yield hidden.square().mean()


def kept(model: Pi0) -> int:
    """Numbers saved for the backward pass of one loss, without those of the weights."""
    sizes: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = next(losses(model))  # alive until everything is counted, so that no address is used twice
    assert held.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("config", [TINY, TINY_PI05, replace(TINY, **SWITCHES[-1])])
def test_losses_and_gradients_are_the_same(config: Pi0Config) -> None:
    plain, lean = make_model(config), make_model(config).checkpoint_gradients()
    for expected, got in zip(losses(plain), losses(lean), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        for model, loss in ((plain, expected), (lean, got)):
            model.zero_grad()
            loss.backward()
        for (name, parameter), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None), name
            if parameter.grad is not None and other.grad is not None:
                torch.testing.assert_close(other.grad, parameter.grad, atol=1e-6, rtol=1e-6)


def test_less_is_kept() -> None:
    assert kept(make_model().checkpoint_gradients()) < 0.5 * kept(make_model())


def test_sampling_does_not_mind() -> None:
    inputs, (_, noise, _) = make_inputs(), make_flow()
    expected = sample_actions(make_model(), inputs, noise, 2)
    assert torch.equal(sample_actions(make_model().checkpoint_gradients(), inputs, noise, 2), expected)
