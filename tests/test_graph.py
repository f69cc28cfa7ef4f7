"""What a CUDA graph captures, run uncaptured on the CPU: fixed buffers, the numbers of the fast path."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_fast import guidance, padded, without_padding
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model, make_wide_model

from pi0_control.model.config import Pi0Config
from pi0_control.model.fast import FastSampler
from pi0_control.model.graph import TOLERANCE_FLOAT8, GraphSampler, Program, difference
from pi0_control.model.rtc import Guidance
from pi0_control.model.sampler import Flow, sample_actions


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_the_numbers_of_the_plain_sampler(config: Pi0Config) -> None:
    model, inputs = make_model(replace(config, attn_backend="sdpa")), make_inputs(config)
    sampler = GraphSampler(model, 3, multiple=5)
    for each in (inputs, padded(inputs), without_padding(inputs), padded(inputs)):
        noise = make_flow(config, each.batch_size)[1]
        timing: dict[str, float] = {}
        actions = sampler(each, noise, timing=timing)
        torch.testing.assert_close(actions, sample_actions(model, each, noise, 3), atol=1e-4, rtol=1e-5)
        assert list(timing) == ["graph_ms"]
    lengths = [sorted(launches) for launches in sampler._launches.values()]
    assert lengths == [[5, 7], [5, 7], [7]]  # two rows, one row and camera, nothing masked; found again


def test_noise_of_the_generator_is_that_of_the_plain_sampler() -> None:
    model, inputs = make_model(), make_inputs()
    ours, plain = (torch.Generator().manual_seed(3) for _ in range(2))
    torch.testing.assert_close(
        GraphSampler(model, 2)(inputs, generator=ours), sample_actions(model, inputs, None, 2, plain), atol=1e-4, rtol=0
    )


def test_buffers_stay_and_hold_no_earlier_input() -> None:
    model, inputs = make_model(), without_padding(make_inputs())
    sampler, noise = GraphSampler(model, 2), make_flow()[1]
    first = sampler(inputs, noise)
    ((launch,),) = (launches.values() for launches in sampler._launches.values())
    assert launch is not None
    program = launch.program
    places = [program.actions.data_ptr(), *(value.data_ptr() for value in vars(program.inputs).values())]
    other = sampler(replace(inputs, state=-inputs.state), noise)
    assert not torch.equal(other, first)
    assert torch.equal(sampler(inputs, noise), first)
    assert places == [program.actions.data_ptr(), *(value.data_ptr() for value in vars(program.inputs).values())]
    assert inputs.state.data_ptr() not in places


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_chunks_that_continue_others(config: Pi0Config) -> None:
    model, inputs, (actions, noise, _) = make_model(config), make_inputs(config), make_flow(config)
    sampler, close = GraphSampler(model, 2), partial(torch.testing.assert_close, atol=2e-4, rtol=1e-4)
    for known in ([actions[0, :2], actions[1, :0]], [actions[0, :1], actions[1, :3]]):
        expected = sample_actions(model, inputs, noise, 2, known_actions=known)
        close(sampler(inputs, noise, known_actions=known), expected)
    sampler(inputs, noise, known_actions=[actions[0, :0]] * 2)  # nothing is known
    pull = guidance(config, "identity")
    for each in (pull, replace(pull, targets=-pull.targets)):
        close(sampler(inputs, noise, guidance=each), sample_actions(model, inputs, noise, 2, guidance=each))
    assert len(sampler._launches) == 3  # known, free, guided
    through_the_network = guidance(config, "full")
    expected = sample_actions(model, inputs, noise, 2, guidance=through_the_network)
    close(sampler(inputs, noise, guidance=through_the_network), expected)
    assert len(sampler._launches) == 3


def test_changed_weights_lead_to_new_programs() -> None:
    model, inputs, noise = make_model(), make_inputs(), make_flow()[1]
    sampler = GraphSampler(model, 2)
    sampler(inputs, noise)
    model.load_state_dict(make_model(seed=1).state_dict())
    torch.testing.assert_close(sampler(inputs, noise), sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)


def test_buffers_made_under_inference_mode_can_be_filled_outside() -> None:
    model, inputs, noise = make_model(), make_inputs(), make_flow()[1]
    sampler = GraphSampler(model, 2)
    with torch.inference_mode():
        first = sampler(inputs, noise)
    assert torch.equal(sampler(inputs, noise), first)


def test_an_absent_camera_and_guidance_through_the_network() -> None:
    model, inputs, noise = make_model(), make_inputs(batch=1), make_flow(batch=1)[1]
    inputs.image_masks[:, 0] = False
    pull = Guidance(noise, torch.ones_like(noise), 2.0, "full")
    expected = sample_actions(model, inputs, noise, 2, guidance=pull)
    for sampler in (FastSampler(model, 2), GraphSampler(model, 2)):
        torch.testing.assert_close(sampler(inputs, noise, guidance=pull), expected, atol=2e-4, rtol=1e-4)


def test_noise_that_guidance_through_the_network_draws() -> None:
    model, inputs = make_model(), make_inputs()
    pull = guidance(TINY, "full")
    ours, plain = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = sample_actions(model, inputs, None, 2, plain, guidance=pull)
    actual = FastSampler(model, 2)(inputs, None, ours, guidance=pull)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(ours.get_state(), plain.get_state())


def _none_captured(program: Program) -> Any:
    raise RuntimeError("no graphs here")


def _wrong(program: Program) -> Any:
    def run() -> None:
        Program.run(program)
        program.actions[0, 0] += 1.0

    return run


def _not_finite(program: Program) -> Any:
    return lambda: program.actions.fill_(torch.nan)


def _dead(program: Program) -> Any:
    program.run()
    return lambda: None


@pytest.mark.parametrize(
    ("captured", "reason"),
    [
        (_none_captured, "could not be made"),
        (_wrong, r"its actions are \d+\.\d % off"),
        (_dead, r"its actions are \d+\.\d % off"),
        (_not_finite, "inf % off"),
    ],
)
def test_a_graph_that_fails_or_errs_is_not_used(
    captured: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs, noise = make_model(), make_inputs(), make_flow()[1]
    monkeypatch.setattr(Program, "captured", captured)
    sampler, timing = GraphSampler(model, 2), dict[str, float]()
    for _ in range(2):
        actions = sampler(inputs, noise, timing=timing)
        torch.testing.assert_close(actions, sample_actions(model, inputs, noise, 2), atol=1e-4, rtol=1e-5)
    assert re.search(reason, caplog.text)
    assert caplog.text.count("A CUDA graph") == 1  # tried once for this shape
    assert set(timing) == {"prefix_ms", "denoise_ms"}


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("steering", ["free", "known", "guided"])
def test_a_program_never_waits_for_the_device(steering: str, float8: bool) -> None:
    """On a device without values to wait for, where whoever does gets an error."""
    dtype = torch.bfloat16 if float8 else torch.float32
    model = make_model(replace(TINY_PI05, attn_backend="sdpa")).cast(dtype).to("meta")
    sampler, inputs = GraphSampler(model, 2, float8=float8).sampler, make_inputs(TINY_PI05)
    actions, noise, _ = make_flow(TINY_PI05)
    known = [actions[0, :2], actions[1, :1]] if steering == "known" else None
    pull = guidance(TINY_PI05, "identity") if steering == "guided" else None
    flow = Flow.begin(TINY_PI05, inputs, noise, 2, None, known, pull)
    for is_full in (True, False):
        Program.of(sampler, inputs, is_full, flow).run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_graphs_on_a_gpu(variant: Any, float8: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = make_wide_model(variant).cast(torch.bfloat16).to("cuda").eval()
    config = model.config
    sampler, plain = GraphSampler(model, 4, float8=float8), FastSampler(model, 4, float8=float8)
    actions, noise, _ = make_flow(config)
    batches = [make_inputs(config, seed=seed) for seed in (0, 1)]
    short = [replace(each, token_mask=each.token_mask & (torch.arange(config.max_token_len) < 9)) for each in batches]
    for each in (*batches, *short, *map(without_padding, batches), *batches):
        for known in (None, [actions[0, :2], actions[1, :1]]):
            expected, most = plain(each, noise, known_actions=known), TOLERANCE_FLOAT8 if float8 else 0.03
            assert difference(sampler(each, noise, known_actions=known), expected) < most
    ways = {launch and launch.program.sampler.fuses for kind in sampler._launches.values() for launch in kind.values()}
    assert ways == {True}, caplog.text  # every graph was made, and of our kernels
