"""Sampling: encode the prefix once, then follow the flow from noise (time 1) to actions (time 0) in Euler steps."""

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.rtc import Guidance


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
    known_actions: Sequence[Tensor] | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """A chunk of actions in model space, float32 [B, horizon, action_dim].

    Args:
        model: the network, on the device of the inputs.
        inputs: the batch.
        noise: where the flow starts, [horizon, action_dim] or [B, horizon, action_dim]; drawn if None.
        num_steps: Euler steps N; the model is asked at times 1, 1 - 1/N, .., 1/N.
        generator: source of the noise.
        timing: if given, receives ``prefix_ms`` and ``denoise_ms``.
        known_actions: for each row the first d actions of its chunk that are decided already, [d, action_dim], with a
            d of its own; the rest continues them, provided that the model was trained so (training-time real-time
            chunking, arXiv 2512.05964).
        guidance: where to pull the chunks instead; works with any model.

    Raises:
        ConfigError: ``num_steps`` below one; noise, known actions or guidance of another shape; or known actions and
            guidance at once.
    """
    flow = Flow.begin(model.config, inputs, noise, num_steps, generator, known_actions, guidance)
    needs_gradient = flow.needs_gradient
    started = now(flow.x_t.device)
    cache = model.encode_prefix(inputs, with_hidden=False)
    if not needs_gradient:
        cache = cache.with_room(model.config.suffix_len)
    encoded = now(flow.x_t.device) if timing is not None else started
    with torch.set_grad_enabled(needs_gradient):
        context = model.suffix_context(cache)

    def velocity(x_t: Tensor, step: int) -> Tensor:
        time = torch.full(x_t.shape[:1], flow.time(step), device=x_t.device)
        return model.denoise_step(inputs.state, cache, x_t, flow.times(time), context)

    actions = flow.follow(velocity)
    if timing is not None:
        timing["prefix_ms"] = 1000 * (encoded - started)
        timing["denoise_ms"] = 1000 * (now(actions.device) - encoded)
    return actions


@dataclass(frozen=True)
class Flow:
    """One chunk on its way from noise to actions: where it starts, in how many steps, and what steers it.

    Attributes:
        x_t: the noise, float32 [B, horizon, action_dim].
        num_steps: Euler steps N; step k is taken at time 1 - k / N.
        known: actions that are decided already; None if no row knows any.
        guidance: where to pull instead; None if it changes nothing.
    """

    x_t: Tensor
    num_steps: int
    known: "Known | None" = None
    guidance: Guidance | None = None

    @classmethod
    def begin(
        cls,
        config: Pi0Config,
        inputs: ModelInputs,
        noise: Tensor | None,
        num_steps: int,
        generator: torch.Generator | None = None,
        known_actions: Sequence[Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> "Flow":
        """Check and place what :func:`sample_actions` was given; raises as that does."""
        if num_steps < 1:
            raise ConfigError(f"num_steps is {num_steps}; expected one or more.")
        x_t = _start(config, inputs, noise, generator)
        known = _known(config, inputs, known_actions)
        guidance = _acting(guidance, x_t)
        if known is not None and guidance is not None:
            raise ConfigError("The sampler got known actions and guidance; expected at most one of them.")
        return cls(x_t if known is None else known.clamp(x_t), num_steps, known, guidance)

    @property
    def needs_gradient(self) -> bool:
        """Whether the guidance goes back through the network."""
        return self.guidance is not None and self.guidance.jacobian == "full"

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of: the start, then what steers it."""
        known = [] if self.known is None else [self.known.actions, self.known.mask]
        return [self.x_t, *known, *([] if self.guidance is None else [self.guidance.targets, self.guidance.weights])]

    def on(self, x_t: Tensor, *steering: Tensor) -> "Flow":
        """The same made of other tensors, given as ``tensors`` has them."""
        known = self.known and Known(*steering)
        guidance = self.guidance and replace(self.guidance, targets=steering[0], weights=steering[1])
        return replace(self, x_t=x_t, known=known, guidance=guidance)

    def time(self, step: int) -> float:
        """Time of a step, 1 noise .. 0 data."""
        return 1 - step / self.num_steps

    def times(self, time: Tensor) -> Tensor:
        """Time [B]; where actions are known, one per action [B, horizon]."""
        return time if self.known is None else self.known.times(time)

    def follow(self, velocity: Callable[..., Tensor]) -> Tensor:
        """The actions [B, horizon, action_dim], by ``velocity(x_t, step=k)``."""
        x_t = self.x_t
        for step in range(self.num_steps):
            if self.guidance is None:
                v = velocity(x_t, step=step)
            else:
                v = self.guidance.guide(partial(velocity, step=step), x_t, self.time(step))
            x_t = x_t - v / self.num_steps
            if self.known is not None:
                x_t = self.known.clamp(x_t)
        return x_t


def _start(config: Pi0Config, inputs: ModelInputs, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    batch, device = inputs.batch_size, inputs.images.device
    if noise is None:
        return sample_noise(config, batch, generator, device)
    single = (config.action_horizon, config.action_dim)
    if tuple(noise.shape) not in (single, (batch, *single)):
        raise ConfigError(f"Noise has shape {list(noise.shape)}; expected {list(single)} or {[batch, *single]}.")
    return noise.to(device, torch.float32).expand(batch, *single)


@dataclass(frozen=True)
class Known:
    """First actions that are decided: ``actions`` [B, horizon, action_dim] where ``mask`` [B, horizon] is True."""

    actions: Tensor
    mask: Tensor

    def clamp(self, x_t: Tensor) -> Tensor:
        """x_t [B, horizon, action_dim] with what is known put in."""
        return torch.where(self.mask[..., None], self.actions, x_t)

    def times(self, time: Tensor) -> Tensor:
        """Time [B] as [B, horizon], 0 for what is known."""
        return time[:, None].masked_fill(self.mask, 0)


def _known(config: Pi0Config, inputs: ModelInputs, actions: Sequence[Tensor] | None) -> Known | None:
    """None if no row knows any."""
    if actions is None:
        return None
    batch, horizon, width = inputs.batch_size, config.action_horizon, config.action_dim
    shapes = [list(row.shape) for row in actions]
    if len(shapes) != batch or any(shape not in ([d, width] for d in range(horizon)) for shape in shapes):
        raise ConfigError(
            f"Known actions have shapes {shapes}; expected {batch} of [d, {width}] with d below the horizon {horizon}."
        )
    if not any(map(len, actions)):
        return None
    device = inputs.images.device
    lengths = torch.tensor([[len(row)] for row in actions], device=device)
    padded = torch.zeros(batch, horizon, width, device=device)
    for row, values in zip(padded, actions, strict=True):
        row[: len(values)] = values
    return Known(padded, torch.arange(horizon, device=device) < lengths)


def _acting(guidance: Guidance | None, x_t: Tensor) -> Guidance | None:
    """The guidance on the device of x_t [B, horizon, action_dim]; None if it changes nothing."""
    if guidance is not None and guidance.targets.shape != x_t.shape:
        raise ConfigError(f"The guidance has shape {list(guidance.targets.shape)}; expected {list(x_t.shape)}.")
    return None if guidance is None or guidance.is_idle else guidance.to(x_t.device)


def now(device: torch.device) -> float:
    """A clock [s] that has waited for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock.perf_counter()
