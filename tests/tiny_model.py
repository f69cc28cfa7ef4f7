"""A model small enough for one core, its inputs, and switches; shared by the tests of the model floor."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import ModelInputs, Pi0

TINY = Pi0Config(
    vision=SiglipConfig(image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_dim=24),
    prefix_width=32,
    prefix_mlp_dim=48,
    action_width=24,
    action_mlp_dim=40,
    depth=3,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=50,
    action_dim=5,
    action_horizon=6,
    max_token_len=7,
    num_cameras=2,
    attn_backend="eager",
)
TINY_PI05 = replace(TINY, state_input="none", ada_norm="adarms")

SWITCHES: list[dict[str, Any]] = [
    {"attn_softcap": 2.0},
    {"time_embed": "random_fourier"},
    {"ada_norm": "bounded"},
    {"ada_norm": "adarms", "residual_gate": "layerscale"},
    {"ada_norm": "adarms", "residual_gate": "none"},
    {"value_residual": "mean"},
    {"value_residual": "learned", "num_kv_heads": 2},
]


def make_model(config: Pi0Config = TINY, seed: int = 0) -> Pi0:
    """A model whose parameters are all random, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Pi0(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.dim() > 1 else 0.1))
    return model


def make_wide_model(variant: Any) -> Pi0:
    """A public model with two layers of each stack and few words: the widths that kernels of a GPU are for."""
    config = replace(Pi0Config.preset(variant), depth=2, vocab_size=512)
    model = make_model(replace(config, vision=replace(config.vision, depth=2)))
    for parameter in model.parameters():
        parameter.data.mul_(0.07)  # the size that training leaves at these widths
    return model


def make_inputs(config: Pi0Config = TINY, batch: int = 2, seed: int = 0) -> ModelInputs:
    """Random inputs; the first row lacks its last camera and is padded to the last three tokens."""
    generator = torch.Generator().manual_seed(seed)
    size, length = config.vision.image_size, config.max_token_len
    image_masks = torch.ones(batch, config.num_cameras, dtype=torch.bool)
    token_mask = torch.ones(batch, length, dtype=torch.bool)
    image_masks[0, -1] = False
    token_mask[0, -3:] = False
    return ModelInputs(
        images=torch.rand(batch, config.num_cameras, 3, size, size, generator=generator) * 2 - 1,
        image_masks=image_masks,
        tokens=torch.randint(config.vocab_size, (batch, length), generator=generator),
        token_mask=token_mask,
        state=torch.randn(batch, config.action_dim, generator=generator),
    )


def make_flow(config: Pi0Config = TINY, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, noise [batch, horizon, action_dim] and time [batch]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.action_horizon, config.action_dim)
    actions, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return actions, noise, torch.rand(batch, generator=generator)
