"""Sampling: encode the prefix once, then follow the flow from noise (time 1) to actions (time 0) in Euler steps."""

import time as clock

import torch
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import ModelInputs, Pi0


def sample_noise(
    config: Pi0Config,
    batch: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal start of the flow, float32 [batch, horizon, action_dim].

    It is drawn on the generator's device and then moved, so one seed gives one noise wherever the model is.
    """
    drawn_on = generator.device if generator is not None else torch.device(device)
    shape = (batch, config.action_horizon, config.action_dim)
    return torch.randn(shape, generator=generator, device=drawn_on).to(device)


@torch.no_grad()
def sample_actions(
    model: Pi0,
    inputs: ModelInputs,
    noise: Tensor | None = None,
    num_steps: int = 10,
    generator: torch.Generator | None = None,
    timing: dict[str, float] | None = None,
    known_actions: Tensor | None = None,
) -> Tensor:
    """A chunk of actions in model space, float32 [B, horizon, action_dim].

    Args:
        model: the network, on the device of the inputs.
        inputs: the batch.
        noise: where the flow starts, [horizon, action_dim] or [B, horizon, action_dim]; drawn if None.
        num_steps: Euler steps N; the model is asked at times 1, 1 - 1/N, .., 1/N.
        generator: source of the noise.
        timing: if given, receives ``prefix_ms`` and ``denoise_ms``.
        known_actions: the first d actions of the chunk where they are decided already, [d, action_dim] or
            [B, d, action_dim]; the rest continues them, provided that the model was trained so (training-time
            real-time chunking, arXiv 2512.05964).

    Raises:
        ConfigError: ``num_steps`` below one, noise or known actions of another shape, or no action left to find.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps is {num_steps}; expected one or more.")
    x_t = _start(model.config, inputs, noise, generator)
    known = _known(model.config, inputs, known_actions)
    length = known.shape[1]
    x_t = torch.cat([known, x_t[:, length:]], dim=1)
    started = _now(x_t.device)
    cache = model.encode_prefix(inputs, with_hidden=False).with_room(model.config.suffix_len)
    encoded = _now(x_t.device) if timing is not None else started
    context = model.suffix_context(cache)
    for step in range(num_steps):
        time = torch.full(x_t.shape[:2] if length else x_t.shape[:1], 1 - step / num_steps, device=x_t.device)
        if length:
            time[:, :length] = 0
        x_t = x_t - model.denoise_step(inputs.state, cache, x_t, time, context) / num_steps
        x_t[:, :length] = known
    if timing is not None:
        timing["prefix_ms"] = 1000 * (encoded - started)
        timing["denoise_ms"] = 1000 * (_now(x_t.device) - encoded)
    return x_t


def _start(config: Pi0Config, inputs: ModelInputs, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    batch, device = inputs.batch_size, inputs.images.device
    if noise is None:
        return sample_noise(config, batch, generator, device)
    single = (config.action_horizon, config.action_dim)
    if tuple(noise.shape) not in (single, (batch, *single)):
        raise ConfigError(f"Noise has shape {list(noise.shape)}; expected {list(single)} or {[batch, *single]}.")
    return noise.to(device, torch.float32).expand(batch, *single)


def _known(config: Pi0Config, inputs: ModelInputs, actions: Tensor | None) -> Tensor:
    """Known actions as float32 [B, d, action_dim]; none are d = 0."""
    batch, device, width = inputs.batch_size, inputs.images.device, config.action_dim
    if actions is None:
        return torch.empty(batch, 0, width, device=device)
    length = actions.shape[-2] if actions.dim() in (2, 3) else config.action_horizon
    if length >= config.action_horizon or tuple(actions.shape) not in ((length, width), (batch, length, width)):
        raise ConfigError(
            f"Known actions have shape {list(actions.shape)}; expected [d, {width}] or [{batch}, d, {width}] with d "
            f"below the horizon {config.action_horizon}."
        )
    return actions.to(device, torch.float32).expand(batch, length, width)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock.perf_counter()
