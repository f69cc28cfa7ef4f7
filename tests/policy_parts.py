"""Parts of policies of random weights, their statistics and what they see."""

import dataclasses
from typing import Any

import numpy as np
import torch

from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import (
    NormStats,
    Pi0Policy,
    PolicyConfig,
    Tokenizer,
    VectorStats,
)
from pi0_control.policy.train_tokenizer import BUNDLED_FILE
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation

ARM6 = RobotSpec.from_yaml("arm6")
VISION = SiglipConfig(image_size=16, width=16, depth=0, num_heads=2, mlp_dim=32, stem="conv", stem_channels=(8,))
TINY = Pi0Config(
    vision=VISION,
    prefix_width=16,
    prefix_mlp_dim=32,
    action_width=16,
    action_mlp_dim=32,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=256,
    action_dim=9,
    action_horizon=6,
    max_token_len=12,
    attn_backend="eager",
)
TINY05 = dataclasses.replace(TINY, state_input="none", ada_norm="adarms", max_token_len=120)


def stats() -> NormStats:
    def vector(offset: float) -> VectorStats:
        mean = np.linspace(-1, 1, 7) + offset
        return VectorStats(mean, np.linspace(0.1, 2, 7), mean - 1, mean + 2)

    return NormStats(vector(0.0), vector(0.25))


def make_policy(config: PolicyConfig, dtype: str = "float32") -> Pi0Policy:
    torch.manual_seed(0)
    tokenizer = Tokenizer(BUNDLED_FILE, config.model.max_token_len)
    return Pi0Policy(Pi0(config.model), config, stats(), tokenizer, dtype=dtype)


def observe(seed: int = 0, prompt: str = "touch the red block", **changes: Any) -> Observation:
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (24, 32, 3), dtype=np.uint8) for name in ARM6.cameras}
    state = generator.uniform(-1, 1, 7).astype(np.float32)
    return dataclasses.replace(Observation(images, state, prompt, stamp_s=2.5), **changes)
