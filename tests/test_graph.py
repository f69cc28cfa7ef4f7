"""What a CUDA graph captures, run uncaptured on the CPU: fixed buffers, the numbers of the fast path."""

from dataclasses import replace

import pytest
import torch
from test_fast import padded, without_padding
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model

from pi0_control.model.config import Pi0Config
from pi0_control.model.graph import GraphSampler, Program
from pi0_control.model.sampler import sample_actions


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_the_numbers_of_the_plain_sampler(config: Pi0Config) -> None:
    model, inputs = make_model(replace(config, attn_backend="sdpa")), make_inputs(config)
    sampler = GraphSampler(model, 3, multiple=5)
    for each in (inputs, padded(inputs), without_padding(inputs), padded(inputs)):
        noise = make_flow(config, each.batch_size)[1]
        torch.testing.assert_close(sampler(each, noise), sample_actions(model, each, noise, 3), atol=1e-4, rtol=1e-5)
    assert len(sampler._programs) == 3  # one per shape, found again


def test_buffers_stay_and_hold_no_earlier_input() -> None:
    model, inputs = make_model(), without_padding(make_inputs())
    sampler, noise = GraphSampler(model, 2), make_flow()[1]
    first = sampler(inputs, noise)
    ((program, graph),) = sampler._programs.values()
    assert graph is None
    places = [program.actions.data_ptr(), *(value.data_ptr() for value in vars(program.inputs).values())]
    other = sampler(replace(inputs, state=-inputs.state), noise)
    assert not torch.equal(other, first)
    assert torch.equal(sampler(inputs, noise), first)
    assert places == [program.actions.data_ptr(), *(value.data_ptr() for value in vars(program.inputs).values())]
    assert inputs.state.data_ptr() not in places


def test_changed_weights_lead_to_new_programs() -> None:
    model, inputs, noise = make_model(), make_inputs(), make_flow()[1]
    sampler = GraphSampler(model, 2)
    sampler(inputs, noise)
    model.load_state_dict(make_model(seed=1).state_dict())
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)


def test_a_program_never_waits_for_the_device() -> None:
    model = make_model(replace(TINY_PI05, attn_backend="sdpa")).to("meta")  # no values there to wait for
    sampler = GraphSampler(model, 2).sampler
    for is_full in (True, False):
        Program.of(sampler, make_inputs(TINY_PI05), is_full).run()
