from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import TINY, TINY_PI05, make_flow, make_inputs, make_model
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.rtc import Guidance, guidance_weight, prefix_weights
from pi0_control.model.sampler import sample_actions

JACOBIANS: list[Any] = ["identity", "full"]
SCHEDULES: list[Any] = ["exp", "linear", "ones", "zeros"]


def make_guidance(jacobian: Any = "identity", delay: int = 2, end: int = 5, **settings: Any) -> Guidance:
    """Towards random actions, for two rows; the last dimension is free."""
    targets, _, _ = make_flow(seed=3)
    weights = prefix_weights(TINY.action_horizon, delay, end, settings.pop("schedule", "exp"))[None, :, None]
    weights = weights * torch.tensor([1.0, 1, 1, 1, 0]) * torch.ones(2, 1, 1)
    return Guidance(targets, weights, jacobian=jacobian, **settings)


# Closed forms


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0]),
        ("exp", [1, 1, 0.5706, 0.2871, 0.1145, 0.0258, 0, 0, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_prefix_weights_have_their_closed_form(schedule: Any, expected: list[float]) -> None:
    torch.testing.assert_close(prefix_weights(10, 2, 6, schedule), torch.tensor(expected).float(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prefix_weights_fall_from_one_to_zero(schedule: Any) -> None:
    for delay in range(7):
        for end in range(7):
            weights = prefix_weights(6, delay, end, schedule)
            assert (weights[: min(delay, end)] == 1).all()
            assert (weights[end:] == 0).all()
            assert (weights.diff() <= 0).all()
            assert weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("tau", "weight"), [(0.1, 9.11), (0.2, 4.25), (0.5, 2), (0.8, 4.25), (0.9, 9.11), (0, 100), (1, 100), (1e-9, 100)]
)
def test_the_guidance_weight_has_its_closed_form(tau: float, weight: float) -> None:
    assert guidance_weight(1 - tau, 100) == pytest.approx(weight, abs=2e-3)
    assert guidance_weight(1 - tau, 1.5) == 1.5


# Guided sampling


@pytest.mark.parametrize("jacobian", JACOBIANS)
@pytest.mark.parametrize("nothing", [{"schedule": "zeros", "delay": 0}, {"max_guidance": 0.0}, {"delay": 0, "end": 0}])
def test_guidance_without_weight_changes_no_bit(jacobian: Any, nothing: dict[str, Any]) -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(), make_flow()
    free = sample_actions(model, inputs, noise, 3)
    assert torch.equal(sample_actions(model, inputs, noise, 3, guidance=make_guidance(jacobian, **nothing)), free)


@pytest.mark.parametrize("config", [TINY, TINY_PI05, replace(TINY, attn_backend="flex")])
@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_guided_sampling_is_guided_euler_on_the_uncached_velocity(config: Pi0Config, jacobian: Any) -> None:
    model, inputs, (_, noise, _) = make_model(config), make_inputs(config), make_flow(config)
    reference, guidance, x_t = make_model(replace(config, attn_backend="eager")), make_guidance(jacobian), noise
    for step, weight in enumerate((5.0, (1 / 9 + 4 / 9) * 9 / 2, (1 / 9 + 4 / 9) * 9 / 2)):
        time = 1 - step / 3

        def estimate(x: Tensor, time: float = time) -> Tensor:
            return x - time * reference.velocity(inputs, x, torch.full((2,), time))

        clean = estimate(x_t).detach()
        pull = (guidance.targets - clean) * guidance.weights
        if jacobian == "full":
            pull = torch.autograd.functional.vjp(estimate, x_t, pull)[1]
        v = (x_t - clean) / time
        x_t = x_t - (v - weight * pull) / 3  # v points to the noise, so what pulls is subtracted from it
    guided = sample_actions(model, inputs, noise, 3, guidance=guidance)
    torch.testing.assert_close(guided, x_t, atol=1e-3, rtol=1e-3)


def test_the_jacobian_matters_unless_it_is_the_identity() -> None:
    mix, (_, x_t, _) = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), make_flow()
    identity, full = (make_guidance(jacobian) for jacobian in JACOBIANS)

    def constant(x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def linear(x: Tensor) -> Tensor:
        return x @ mix

    torch.testing.assert_close(full.guide(constant, x_t, 0.5), identity.guide(constant, x_t, 0.5))
    error = (identity.targets - (x_t - 0.5 * x_t @ mix)) * identity.weights
    torch.testing.assert_close(identity.guide(linear, x_t, 0.5), x_t @ mix - 2 * error)
    torch.testing.assert_close(full.guide(linear, x_t, 0.5), x_t @ mix - 2 * (error - 0.5 * error @ mix.T))


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_the_stronger_the_guidance_the_nearer_the_frozen_actions(jacobian: Any) -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(), make_flow()
    errors = []
    for max_guidance in (0.0, 0.5, 1.0, 2.0, 5.0):
        guidance = make_guidance(jacobian, max_guidance=max_guidance)
        sampled = sample_actions(model, inputs, noise, 5, guidance=guidance)
        errors.append((sampled - guidance.targets)[:, :2, :4].square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_rows_without_weight_are_as_if_alone(jacobian: Any) -> None:
    model, inputs, (_, noise, _) = make_model(), make_inputs(), make_flow()
    guidance = make_guidance(jacobian)
    guidance.weights[1] = 0
    free, mixed = (sample_actions(model, inputs, noise, 3, guidance=each) for each in (None, guidance))
    if jacobian == "identity":
        assert torch.equal(mixed[1], free[1])
    torch.testing.assert_close(mixed[1], free[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], free[0], atol=0.1)
    alone = type(inputs)(**{name: value[:1] for name, value in vars(inputs).items()})
    first = replace(guidance, targets=guidance.targets[:1], weights=guidance.weights[:1])
    torch.testing.assert_close(
        sample_actions(model, alone, noise[:1], 3, guidance=first)[0], mixed[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("jacobian", JACOBIANS)
def test_the_prefix_is_encoded_once_and_identity_needs_no_gradient(jacobian: Any, monkeypatch: Any) -> None:
    model, encoded, graphs = make_model(), [], []
    encode, denoise = model.vision.forward, model.denoise_step

    def vision(images: Tensor, _: object) -> Tensor:
        encoded.append(torch.is_grad_enabled())
        return encode(images)

    def step(*args: Any) -> Tensor:
        velocity = denoise(*args)
        graphs.append(velocity.requires_grad)
        return velocity

    monkeypatch.setattr(model.vision, "forward", vision)
    monkeypatch.setattr(model, "denoise_step", step)
    with torch.enable_grad():
        sampled = sample_actions(model, make_inputs(), num_steps=3, guidance=make_guidance(jacobian))
    assert encoded == [False]
    assert graphs == [jacobian == "full"] * 3
    assert not sampled.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# Errors


def test_what_does_not_fit_is_refused() -> None:
    zeros = torch.zeros(2, 6, 5)
    with pytest.raises(ConfigError, match=r"'cosine'; expected one of \['exp', 'linear', 'ones', 'zeros'\]"):
        prefix_weights(6, 1, 3, "cosine")  # type: ignore[arg-type]
    for delay, end in ((-1, 3), (7, 3), (1, -1), (1, 7)):
        with pytest.raises(ConfigError, match=f"is {delay} and the end {end}; expected both in 0 to the horizon 6"):
            prefix_weights(6, delay, end, "exp")
    with pytest.raises(ConfigError, match=r"targets \[2, 6, 5\] and weights \[6\]; expected one shape"):
        Guidance(zeros, torch.zeros(6))
    with pytest.raises(ConfigError, match=r"max_guidance is -1; expected zero or more"):
        Guidance(zeros, zeros, -1)
    with pytest.raises(ConfigError, match=r"'exact'; expected one of \['identity', 'full'\]"):
        Guidance(zeros, zeros, jacobian="exact")  # type: ignore[arg-type]
    model, inputs = make_model(), make_inputs()
    with pytest.raises(ConfigError, match=r"guidance has shape \[1, 6, 5\]; expected \[2, 6, 5\]"):
        sample_actions(model, inputs, guidance=Guidance(zeros[:1], zeros[:1]))
    with pytest.raises(ConfigError, match="at most one of them"):
        sample_actions(model, inputs, known_actions=zeros[:, :1], guidance=make_guidance())
