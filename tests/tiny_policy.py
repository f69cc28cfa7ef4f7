"""A policy of random weights, small enough for one core, for the bundled robot or another."""

from typing import Any

import numpy as np
import torch

from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import NormStats, Pi0Policy, PolicyConfig, RtcConfig, Tokenizer, VectorStats
from pi0_control.policy.train_tokenizer import BUNDLED_FILE
from pi0_control.robot import RobotSpec

ARM6 = RobotSpec.from_yaml("arm6")


def tiny_policy(
    action_dim: int = 7, rtc: RtcConfig | None = None, robot: RobotSpec = ARM6, **settings: Any
) -> Pi0Policy:
    """The same weights each time, for a width; settings are those of the PolicyConfig."""
    vision = SiglipConfig(image_size=16, width=16, depth=0, num_heads=2, mlp_dim=32, stem="conv", stem_channels=(8,))
    sizes: dict[str, Any] = {"prefix_width": 16, "prefix_mlp_dim": 32, "action_width": 16, "action_mlp_dim": 32}
    heads: dict[str, Any] = {"depth": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    widths: dict[str, Any] = {"vocab_size": 256, "action_dim": action_dim, "action_horizon": 6, "max_token_len": 16}
    model = Pi0Config(vision=vision, attn_backend="eager", **sizes, **heads, **widths)
    torch.manual_seed(0)
    joints = len(robot.joints)
    stats = VectorStats(np.zeros(joints), np.full(joints, 0.05), None, None)
    config = PolicyConfig.for_robot(robot, model, **{"num_steps": 2, **settings})
    tokenizer = Tokenizer(BUNDLED_FILE, model.max_token_len)
    return Pi0Policy(Pi0(model), config, NormStats(stats, stats), tokenizer, rtc=rtc)
