"""TrainConfig: how a policy is trained."""

from dataclasses import dataclass
from typing import Literal, get_args

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
    "saturation_jitter",
    "rotation_deg",
    "rtc_max_delay",
    "seed",
)
_POSITIVE = (
    "batch_size",
    "grounding_batch_size",
    "learning_rate",
    "clip_norm",
    "crop",
    "lora_rank",
    "lora_alpha",
    "noise_draws_per_prefix",
    "log_every",
    "validate_every",
    "checkpoint_every",
)

Part = Literal["vision", "language", "action_expert", "projections"]  # see model/parts.py
LoraPart = Literal["vision", "language", "action_expert"]


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. The defaults suit ``mini``; public models take far smaller learning rates.

    Images are changed at random, each on its own: openpi's models were trained with about ``crop`` 0.95,
    ``rotation_deg`` 5, ``brightness_jitter`` 0.17, ``contrast_jitter`` 0.23 and ``saturation_jitter`` 0.29.

    Attributes:
        steps: steps of learning the demonstrations.
        grounding_steps: steps of learning what the words mean, before; only where random scenes are given.
        batch_size: frames per step.
        grounding_batch_size: images per grounding step; each is asked for every object.

        learning_rate: its peak; a linear warm-up over ``warmup_steps`` leads there and a cosine down to
            ``final_learning_rate`` times the peak.
        warmup_steps: steps of the warm-up, at most half of a stage.
        final_learning_rate: where the cosine ends, as a fraction of the peak.
        betas: how much AdamW keeps of its running means of gradients and of their squares.
        weight_decay: of AdamW; only matrices decay.
        clip_norm: gradients are clipped by their global norm.
        ema_decay: of the averaged weights, which are the ones saved; shorter at the start.

        freeze: parts of the policy that stay as they are: ``vision`` (the image encoder), ``language`` (the embedding
            and the expert of images and text), ``action_expert``, ``projections`` (of state, actions and time).
        lora: parts that stay as they are but for low-rank adapters (LoRA) beside the matrices of their layers; the
            saved policy has them merged in.
        lora_rank: width of the adapters.
        lora_alpha: the adapters count ``lora_alpha / lora_rank`` times.

        noise_draws_per_prefix: points of the flow learned per frame, against one encoding of images and text.
        grounding_weight: weight of locating the named object while learning the demonstrations; 0 is off.
        rtc_max_delay: training-time real-time chunking: up to so many first actions of a chunk are given, and the
            policy learns to continue them; 0 is off. Kept in policy.json.

        state_dropout: how often the policy does not see its joints.
        state_noise: spread of the noise on the normalised state. Neither this nor ``state_dropout`` touches a state
            that is written in the prompt (``discrete_state_input``).
        brightness_jitter: spread of random changes to the brightness of each image, on a range of -1 to 1.
        contrast_jitter: spread of random factors on the contrast.
        saturation_jitter: spread of random factors on the saturation.
        crop: side of a random part that is shown enlarged in place of an image, 1 for all of it; not for wrist cameras:
            those with "wrist" or "hand" in their name, else the second and third camera.
        rotation_deg: images are turned by up to so many degrees; not those of wrist cameras.
        camera_dropout: how often one wrist camera is masked; above 0, the policy accepts observations without them.

        validation_fraction: part of the episodes that is held out.
        log_every: steps between two lines of the log.
        validate_every: steps between two validations.
        checkpoint_every: steps between two checkpoints.
        seed: of everything random; a step's draws depend on the seed and the step alone.

        bf16: compute in bfloat16 where that is safe; weights stay float32.
        compile: compile the forward pass with torch.compile; on a CPU that takes minutes. Not with ``fsdp``.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: far less
            memory, about a third more time.
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

    freeze: tuple[Part, ...] = ()
    lora: tuple[LoraPart, ...] = ()
    lora_rank: int = 16
    lora_alpha: float = 16.0

    noise_draws_per_prefix: int = 4
    grounding_weight: float = 1.0
    rtc_max_delay: int = 0

    state_dropout: float = 0.1
    state_noise: float = 0.02
    brightness_jitter: float = 0.05
    contrast_jitter: float = 0.1
    saturation_jitter: float = 0.0
    crop: float = 1.0
    rotation_deg: float = 0.0
    camera_dropout: float = 0.0

    validation_fraction: float = 0.02
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 500
    seed: int = 0

    bf16: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
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
        if self.compile and self.parallel == "fsdp":
            raise ConfigError("compile does not go with parallel 'fsdp'; expected one of them, or 'ddp'.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; expected two numbers of at least 0 and below 1.")
        if self.crop > 1:
            raise ConfigError(f"crop is {self.crop}; expected above 0 and at most 1.")
        self._check_parts()

    def _check_parts(self) -> None:
        for name in ("lora_rank", "lora_alpha"):
            if not self.lora and getattr(self, name) != getattr(TrainConfig, name):
                raise ConfigError(f"{name} is {getattr(self, name)} without lora; expected parts that get adapters.")
        for name, choices in (("freeze", get_args(Part)), ("lora", get_args(LoraPart))):
            unknown = [part for part in getattr(self, name) if part not in choices]
            if unknown:
                raise ConfigError(f"{name} has {unknown[0]!r}; expected some of {list(choices)}.")
        twice = [part for part in self.lora if part in self.freeze]
        if twice:
            raise ConfigError(f"{twice[0]!r} is both in freeze and in lora; expected it in one of them.")
        if set(self.freeze) == set(get_args(Part)):
            raise ConfigError(f"freeze has all parts {list(self.freeze)}; expected one to be left that learns.")
