"""TrainConfig: how a policy is trained."""

from dataclasses import dataclass
from typing import Literal

from pi0_control.errors import ConfigError

_FRACTIONS = ("state_dropout", "camera_dropout", "validation_fraction", "ema_decay", "final_learning_rate")
_NOT_NEGATIVE = (
    "steps",
    "grounding_steps",
    "warmup_steps",
    "threads",
    "weight_decay",
    "grounding_weight",
    "state_noise",
    "brightness_jitter",
    "contrast_jitter",
    "seed",
)
_POSITIVE = (
    "batch_size",
    "grounding_batch_size",
    "learning_rate",
    "clip_norm",
    "noise_draws_per_prefix",
    "log_every",
    "validate_every",
    "checkpoint_every",
)


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. The defaults suit ``mini``; public models take far smaller learning rates.

    Attributes:
        steps: steps of learning the demonstrations.
        grounding_steps: steps of learning what the words mean, before; only where random scenes are given.
        batch_size: frames per step.
        grounding_batch_size: images per grounding step; each is asked for every object.
        learning_rate: its peak; a linear warm-up over ``warmup_steps`` leads there and a cosine down to
            ``final_learning_rate`` times the peak.
        betas, weight_decay, clip_norm: of AdamW; only matrices decay; gradients are clipped by their global norm.
        ema_decay: of the averaged weights, which are the ones saved; shorter at the start.
        noise_draws_per_prefix: points of the flow learned per frame, against one encoding of images and text.
        grounding_weight: weight of locating the named object while learning the demonstrations; 0 is off.
        state_dropout: how often the policy does not see its joints.
        state_noise: spread of the noise on the normalised state. Neither this nor ``state_dropout`` touches a state
            that is written in the prompt (``discrete_state_input``).
        brightness_jitter, contrast_jitter: spread of random changes to each image, on a range of -1 to 1.
        camera_dropout: how often one wrist camera is masked.
        validation_fraction: part of the episodes that is held out.
        log_every, validate_every, checkpoint_every: in steps.
        seed: of everything random; a step's draws depend on the seed and the step alone.
        bf16: compute in bfloat16 where that is safe; weights stay float32.
        compile: compile the forward pass with torch.compile; on a CPU that takes minutes.
        device: a torch device such as ``cpu`` or ``cuda``.
        parallel: how several processes (torchrun) train together: ``ddp`` holds all weights in each, ``fsdp`` a part.
        threads: CPU threads of torch; 0 leaves torch's choice.
    """

    steps: int = 3000
    grounding_steps: int = 1000
    batch_size: int = 64
    grounding_batch_size: int = 48
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    final_learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    noise_draws_per_prefix: int = 4
    grounding_weight: float = 1.0
    state_dropout: float = 0.1
    state_noise: float = 0.02
    brightness_jitter: float = 0.05
    contrast_jitter: float = 0.1
    camera_dropout: float = 0.0
    validation_fraction: float = 0.02
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 500
    seed: int = 0
    bf16: bool = True
    compile: bool = False
    device: str = "cpu"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges with a ConfigError."""
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 0 and below 1.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected above 0.")
        if self.parallel not in ("ddp", "fsdp"):
            raise ConfigError(f"parallel is {self.parallel!r}; expected 'ddp' or 'fsdp'.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; expected two numbers of at least 0 and below 1.")
