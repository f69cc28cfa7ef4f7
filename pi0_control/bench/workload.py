"""What is computed: a model with random weights, one observation, and the work that a chunk takes."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pi0_control.errors import ConfigError
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.sampler import sample_noise

Variant = Literal["pi0", "pi05", "mini"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}  # of the weights
POOL = 4_194_301  # random numbers that all weights are filled from; a prime, so that rows of a matrix differ


@dataclass(frozen=True)
class Workload:
    """One chunk to compute.

    Attributes:
        variant: ``pi0`` or ``pi05`` at full size, or ``mini``.
        views: cameras that are there; the others of the model are masked.
        prompt_tokens: valid tokens of the prompt; the rest of the model's length is padding.
        steps: Euler steps.
        horizon: actions per chunk; the variant's if None.
        dtype: of the bulk of the weights; float8 is bfloat16 but for the products of the prefix.
        device: a torch device.
    """

    variant: Variant = "mini"
    views: int = 3
    prompt_tokens: int | None = None
    steps: int = 10
    horizon: int | None = None
    dtype: Literal["float32", "bfloat16", "float8"] = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that the variant does not have."""
        config = self.config
        for name, value, most in (
            ("views", self.views, config.num_cameras),
            ("prompt_tokens", self.valid_tokens, config.max_token_len),
            ("steps", self.steps, 1000),
        ):
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}; expected 1 to {most} for {self.variant}.")

    @property
    def config(self) -> Pi0Config:
        """The model's."""
        config = Pi0Config.preset(self.variant)
        return config if self.horizon is None else replace(config, action_horizon=self.horizon)

    @property
    def valid_tokens(self) -> int:
        """Tokens of the prompt; half of the model's length if it was not said."""
        return self.config.max_token_len // 2 if self.prompt_tokens is None else self.prompt_tokens

    @torch.no_grad()
    def model(self, seed: int = 0) -> Pi0:
        """Random weights of the size that training leaves, so that activations are ordinary numbers."""
        model = Pi0.empty(self.config, DTYPES[self.dtype])
        pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed)) * 0.02
        for tensor in model.state_dict().values():
            flat = tensor.view(-1)
            for start in range(0, len(flat), POOL):
                flat[start : start + POOL].copy_(pool[: len(flat) - start])
        return model.to(self.device).eval().requires_grad_(False)

    def inputs(self, seed: int = 1) -> tuple[ModelInputs, Tensor]:
        """One observation as a policy hands it over, on the CPU, and the noise [1, horizon, action_dim]."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        size, length = config.vision.image_size, config.max_token_len
        inputs = ModelInputs(
            images=torch.randint(256, (1, config.num_cameras, 3, size, size), generator=generator, dtype=torch.uint8),
            image_masks=(torch.arange(config.num_cameras) < self.views)[None],
            tokens=torch.randint(config.vocab_size, (1, length), generator=generator),
            token_mask=(torch.arange(length) < self.valid_tokens)[None],
            state=torch.randn(1, config.action_dim, generator=generator),
        )
        return inputs, sample_noise(config, 1, generator)

    @property
    def is_float8(self) -> bool:
        """Whether the prefix is multiplied in float8."""
        return self.dtype == "float8"

    @property
    def work(self) -> dict[str, tuple[float, float]]:
        """FLOP and bytes of ``vision``, ``prefill`` and ``denoise``: products of matrices, and weights read.

        The prefix has no padding, its last layer stops at keys and values, and each denoising step reads the weights
        of the suffix and the cache anew.
        """
        c, v, item = self.config, self.config.vision, torch.finfo(DTYPES[self.dtype]).bits // 8
        heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        pixels, text = self.views * v.num_tokens, self.valid_tokens
        tokens = self.steps * c.action_horizon + (c.state_input == "token")  # the state in the first step only
        block = 4 * v.width**2 + 2 * v.width * v.mlp_dim
        seen = v.num_tokens * 2 * v.width * v.depth  # what each pixel token attends to, per FLOP pair
        vision = v.depth * block + v.width * c.prefix_width
        layer = c.prefix_width * (2 * heads + 2 * kv + 3 * c.prefix_mlp_dim)
        prefix = pixels + text
        prefill = (c.depth - 1) * (prefix * layer + 2 * prefix**2 * heads) + prefix * c.prefix_width * 2 * kv
        suffix_weights = c.depth * c.action_width * (2 * heads + 2 * kv + 3 * c.action_mlp_dim)
        denoise = tokens * (suffix_weights + c.depth * 2 * (prefix + c.suffix_len) * heads)
        cache, prefix_item = c.depth * 2 * prefix * kv, 1 if self.is_float8 else item
        return {
            "vision": (2.0 * pixels * (vision + seen), float(item * vision)),
            "prefill": (2.0 * prefill, float(prefix_item * ((c.depth - 1) * layer + c.prefix_width * 2 * kv))),
            "denoise": (2.0 * denoise, float(self.steps * item * (suffix_weights + cache))),
        }
