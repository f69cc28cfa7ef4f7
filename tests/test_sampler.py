from typing import Any

import pytest
import torch
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.sampler import sample_actions, sample_noise


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 100])
def test_constant_flow_arrives_at_the_data(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, (actions, noise, _) = make_model(), make_inputs(), make_flow()
    times: list[Tensor] = []

    def exact_velocity(state: Tensor, cache: Any, x_t: Tensor, time: Tensor, context: Any) -> Tensor:
        times.append(time)
        return noise - actions

    monkeypatch.setattr(model, "denoise_step", exact_velocity)
    torch.testing.assert_close(sample_actions(model, inputs, noise, num_steps), actions, atol=1e-5, rtol=0)
    expected = torch.tensor([1 - step / num_steps for step in range(num_steps)])
    torch.testing.assert_close(torch.stack(times)[:, 0], expected)
    assert torch.stack(times).shape == (num_steps, 2)


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
@torch.no_grad()
def test_sampling_is_euler_on_the_uncached_velocity(config: Pi0Config) -> None:
    model, inputs, (_, noise, _) = make_model(config), make_inputs(), make_flow()
    x_t = noise
    for step in range(4):
        x_t = x_t - 0.25 * model.velocity(inputs, x_t, torch.full((2,), 1 - step / 4))
    torch.testing.assert_close(sample_actions(model, inputs, noise, 4), x_t, atol=1e-4, rtol=1e-4)


def test_the_prefix_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = make_model(), []
    encode = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda images, _: calls.append(len(images)) or encode(images))
    sample_actions(model, make_inputs(), num_steps=5)
    assert calls == [2 * TINY.num_cameras]  # one call for all cameras of the batch


def test_rows_do_not_influence_each_other() -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(batch=3), make_flow(batch=3)
    together = sample_actions(model, inputs, noise, 3)
    for row in range(3):
        alone = type(inputs)(**{name: value[row : row + 1] for name, value in vars(inputs).items()})
        torch.testing.assert_close(sample_actions(model, alone, noise[row], 3)[0], together[row], atol=1e-5, rtol=1e-5)


def test_one_noise_serves_every_row() -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(), make_flow()
    both = torch.stack([noise[0], noise[0]])
    assert torch.equal(sample_actions(model, inputs, noise[0]), sample_actions(model, inputs, both))


def test_a_seed_decides_the_noise() -> None:
    model, inputs = make_model(), make_inputs()
    first, again, other = (
        sample_actions(model, inputs, num_steps=2, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_standard_normal() -> None:
    noise = sample_noise(TINY, 2000, torch.Generator().manual_seed(0))
    assert noise.shape == (2000, TINY.action_horizon, TINY.action_dim)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_no_gradient_and_the_callers_noise_stays() -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(), make_flow()
    before = noise.clone()
    actions = sample_actions(model, inputs, noise)
    assert not actions.requires_grad
    assert actions.dtype == torch.float32
    assert torch.equal(noise, before)


def test_timing_is_reported_by_stage() -> None:
    timing: dict[str, float] = {}
    sample_actions(make_model(), make_inputs(), num_steps=2, timing=timing)
    assert set(timing) == {"prefix_ms", "denoise_ms"}
    assert all(value > 0 for value in timing.values())


def test_wrong_arguments_are_refused() -> None:
    model, inputs = make_model(), make_inputs()
    with pytest.raises(ConfigError, match="num_steps is 0"):
        sample_actions(model, inputs, num_steps=0)
    with pytest.raises(ConfigError, match=r"\[3, 6, 5\].*\[2, 6, 5\]"):
        sample_actions(model, inputs, noise=torch.zeros(3, 6, 5))


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_known_actions_stay_and_shape_the_rest(config: Pi0Config) -> None:
    model, inputs, (actions, noise, _) = make_model(config), make_inputs(config), make_flow(config)
    free = sample_actions(model, inputs, noise, 3)
    assert torch.equal(sample_actions(model, inputs, noise, 3, known_actions=actions[:, :0]), free)
    known = sample_actions(model, inputs, noise, 3, known_actions=actions[:, :2])
    assert torch.equal(known[:, :2], actions[:, :2])
    assert not torch.allclose(known[:, 2:], free[:, 2:], atol=1e-3)


def test_known_actions_are_clean_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, (actions, noise, _) = make_model(), make_inputs(), make_flow()
    seen: list[tuple[Tensor, Tensor]] = []

    def velocity(state: Tensor, cache: Any, x_t: Tensor, time: Tensor, context: Any) -> Tensor:
        seen.append((x_t.clone(), time))
        return noise

    monkeypatch.setattr(model, "denoise_step", velocity)
    sample_actions(model, inputs, noise, 2, known_actions=actions[:, :1])
    for (x_t, time), now in zip(seen, (1.0, 0.5), strict=True):
        assert torch.equal(x_t[:, :1], actions[:, :1])
        assert time.tolist() == [[0.0, *[now] * 5]] * 2


@pytest.mark.parametrize("config", [TINY, TINY_PI05])
def test_each_row_knows_as_many_actions_as_it_likes(config: Pi0Config) -> None:
    model, inputs, (actions, noise, _) = make_model(config), make_inputs(config, 3), make_flow(config, 3)
    known = [actions[0, :3], actions[1, :0], actions[2, :1]]
    together = sample_actions(model, inputs, noise, 3, known_actions=known)
    for row, first in enumerate(known):
        alone = type(inputs)(**{name: value[row : row + 1] for name, value in vars(inputs).items()})
        expected = sample_actions(model, alone, noise[row], 3, known_actions=[first])
        torch.testing.assert_close(together[row], expected[0], atol=1e-4, rtol=1e-5)  # float32, values up to 6
        assert torch.equal(together[row, : len(first)], first)


@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 2, 5), (2, 2, 4), (2, 5)])
def test_wrong_known_actions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected 2 of \[d, 5\] with d below the horizon 6"):
        sample_actions(make_model(), make_inputs(), known_actions=torch.zeros(shape))
