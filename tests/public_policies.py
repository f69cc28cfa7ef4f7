"""Public checkpoint directories of random weights, small enough for one core, with all that lies beside the weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policy_parts import TINY
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from pi0_control.model.checkpoints import openpi_tensors
from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import NormStats, VectorStats
from pi0_control.policy.train_tokenizer import BUNDLED_FILE

VISION = SiglipConfig(image_size=28, width=16, depth=1, num_heads=1, mlp_dim=24)
PI0 = dataclasses.replace(TINY, vision=VISION, action_dim=16, action_horizon=50, max_token_len=48)
PI05 = dataclasses.replace(PI0, state_input="none", ada_norm="adarms", max_token_len=200)
STATE, ACTION = "observation.state", "action"


def public_weights(directory: Path, config: Pi0Config, prefix: str = "") -> Path:
    """model.safetensors as openpi writes it, which tells no horizon."""
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = openpi_tensors(Pi0(config).state_dict(), config)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def plain_stats(state: int, actions: int) -> NormStats:
    parts = [VectorStats(np.zeros(n), np.ones(n), -np.ones(n), np.ones(n)) for n in (state, actions)]
    return NormStats(*parts)


def openpi_policy(directory: Path, config: Pi0Config, assets: dict[str, NormStats]) -> Path:
    public_weights(directory, config)
    for asset, stats in assets.items():
        (directory / "assets" / asset).mkdir(parents=True)
        stats.save(directory / "assets" / asset / "norm_stats.json")
    shutil.copyfile(BUNDLED_FILE, directory / "paligemma_tokenizer.model")
    return directory


def lerobot_policy(
    directory: Path, config: Pi0Config, stats: NormStats, cameras: tuple[str, ...], **changes: Any
) -> Path:
    """As LeRobot 0.6 writes it; changes are entries of config.json."""
    public_weights(directory, config, "model.")
    family = "pi0" if config.state_input == "token" else "pi05"
    norm = dict.fromkeys(("STATE", "ACTION"), "MEAN_STD" if family == "pi0" else "QUANTILES")
    joints = [len(each.mean) for each in (stats.state, stats.actions)]
    images = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 48, 64]} for name in cameras}
    settings = {
        "type": family,
        "chunk_size": config.action_horizon,
        "n_action_steps": 5,
        "num_inference_steps": 2,
        "max_state_dim": config.action_dim,
        "max_action_dim": config.action_dim,
        "tokenizer_max_length": config.max_token_len,
        "empty_cameras": 0,
        "use_relative_actions": False,
        "normalization_mapping": {"VISUAL": "IDENTITY", **norm},
        "input_features": {STATE: {"type": "STATE", "shape": [joints[0]]}, **images},
        "output_features": {ACTION: {"type": "ACTION", "shape": [joints[1]]}},
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    relative = {
        "enabled": settings["use_relative_actions"],
        "exclude_joints": settings.get("relative_exclude_joints", []),
        "action_names": settings.get("action_feature_names"),
    }
    for file, step, place in (("pre", "normalizer_processor", 3), ("post", "unnormalizer_processor", 0)):
        state_file = f"policy_{file}processor_step_{place}_{step}.safetensors"
        steps = [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "relative_actions_processor", "config": relative},
            {
                "registry_name": step,
                "config": {"eps": 1e-8, "norm_map": settings["normalization_mapping"]},
                "state_file": state_file,
            },
        ]
        described = {"name": f"policy_{file}processor", "steps": steps}
        (directory / f"policy_{file}processor.json").write_text(json.dumps(described))
        arrays = {name: value.astype(np.float32) for name, value in stats.to_lerobot().items()}
        arrays |= {f"{name}.mean": np.full((3, 1, 1), 0.25, np.float32) for name in images}
        save_arrays(arrays, directory / state_file)
    shutil.copyfile(BUNDLED_FILE, directory / "tokenizer.model")
    return directory
