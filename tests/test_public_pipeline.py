"""Public checkpoints from directory to actions, against openpi's steps written out by hand, one after the other."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from public_policies import PI0, openpi_policy

from pi0_control.model.checkpoints import open_checkpoint
from pi0_control.model.config import Pi0Config
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.sampler import sample_actions
from pi0_control.policy import NormStats, Pi0Policy, VectorStats
from pi0_control.policy.train_tokenizer import BUNDLED_FILE
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent / "golden" / "orbax_pi05_tiny"
PROMPT = " touch_the red block\n"
CLEAN = "touch the red block"
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(BUNDLED_FILE))


def model_of(directory: Path, config: Pi0Config) -> Pi0:
    model = Pi0.empty(config)
    open_checkpoint(directory).load(model)
    return model.eval()


def padded(ids: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.bool)
    tokens[0, : len(ids)], mask[0, : len(ids)] = torch.tensor(ids), True
    return tokens, mask


def fitted(image: np.ndarray, size: int) -> torch.Tensor:
    """Of 48x64: the same width, and margins of an eighth above and below."""
    small = Image.fromarray(image).resize((size, size * 3 // 4), Image.Resampling.BILINEAR)
    square = np.zeros((size, size, 3), np.uint8)
    margin = (size - size * 3 // 4) // 2
    square[margin : margin + size * 3 // 4] = np.asarray(small)
    return torch.from_numpy(square.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)


def seen(robot: RobotSpec, state: np.ndarray) -> Observation:
    generator = np.random.default_rng(3)
    images = {name: generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in robot.cameras}
    return Observation(images, state.astype(np.float32), PROMPT)


def run(model: Pi0, observation: Observation, ids: list[int], state: np.ndarray, noise: np.ndarray) -> np.ndarray:
    config = model.config
    images = torch.stack([fitted(image, config.vision.image_size) for image in observation.images.values()])[None]
    tokens, mask = padded(ids, config.max_token_len)
    padding = np.zeros(config.action_dim - len(state))
    vector = torch.tensor(np.concatenate([state, padding])[None], dtype=torch.float32)
    inputs = ModelInputs(images, torch.ones(images.shape[:2], dtype=torch.bool), tokens, mask, vector)
    with torch.no_grad():
        return sample_actions(model, inputs, torch.from_numpy(noise)[None], 10).numpy()[0]


def test_pi05_of_jax_with_quantiles_and_deltas() -> None:
    joints = [f"joint{index}" for index in range(5)]
    limits = {"lower": -9, "upper": 9, "max_velocity": 1, "max_effort": 1, "home": 0}
    robot: dict[str, Any] = {
        "name": "lab",
        "joints": [{"name": name, "kind": "revolute", **limits} for name in joints],
        "cameras": ["base_0_rgb", "left_wrist_0_rgb"],
        "control_rate_hz": 10,
    }
    robot["joints"][4]["kind"] = "gripper"
    settings = {
        "robot": robot,
        "action_space": "joint_delta",
        "discrete_state_input": True,
        "model": {"action_horizon": 4},
    }
    policy = Pi0Policy.from_pretrained(GOLDEN, policy_config=settings, tokenizer=BUNDLED_FILE)
    stats = json.loads(next(GOLDEN.glob("assets/*/norm_stats.json")).read_text())["norm_stats"]
    spans = {name: [np.array(part[key][:5]) for key in ("q01", "q99")] for name, part in stats.items()}
    state = np.array([2.0, -2.4, 0.3, -0.5, -0.4])
    noise = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    observation = seen(policy.robot, state)

    low, high = spans["state"]
    normal = (state - low) / (high - low + 1e-6) * 2 - 1
    bins = " ".join(str(min(255, max(-1, math.floor((value + 1) * 128)))) for value in normal)
    ids = [2, *PIECES.EncodeAsIds(f"Task: {CLEAN}, State: {bins};\nAction: ")]
    config = dataclasses.replace(open_checkpoint(GOLDEN).config, action_horizon=4, num_cameras=2)
    raw = run(model_of(GOLDEN, config), observation, ids, normal, noise)[:, :5]
    low, high = spans["actions"]
    expected = (raw + 1) / 2 * (high - low + 1e-6) + low + state * [1, 1, 1, 1, 0]
    np.testing.assert_allclose(policy.infer(observation, noise=noise).actions, expected, atol=1e-4)


def test_pi0_of_aloha_with_z_scores_in_the_units_of_its_makers(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    parts = [VectorStats(generator.normal(size=14), generator.uniform(0.5, 2, 14)) for _ in range(2)]
    directory = openpi_policy(tmp_path, PI0, {"trossen": NormStats(*parts)})
    policy = Pi0Policy.from_pretrained(directory, policy_config="pi0_aloha")
    state = generator.uniform(0.1, 0.9, 14)
    noise = generator.normal(size=(50, 16)).astype(np.float32)
    observation = seen(policy.robot, state)

    signs = np.array([1, -1, -1, 1, 1, 1, 1] * 2)
    adapted = signs * state
    for gripper in (6, 13):
        way = state[gripper] * (0.05800 - 0.01844) + 0.01844
        angle = math.asin((0.022**2 + way**2 - 0.036**2) / (2 * 0.022 * way))
        adapted[gripper] = (angle - 0.5476) / (1.6296 - 0.5476)
    normal = (adapted - parts[0].mean) / (parts[0].std + 1e-6)
    ids = [2, *PIECES.EncodeAsIds(CLEAN), *PIECES.EncodeAsIds("\n")]
    raw = run(model_of(directory, policy.config.model), observation, ids, normal, noise)[:, :14]
    mask = np.array([1, 1, 1, 1, 1, 1, 0] * 2)
    absolute = raw * (parts[1].std + 1e-6) + parts[1].mean + adapted * mask
    expected = absolute * signs
    expected[:, [6, 13]] = (absolute[:, [6, 13]] + 0.5476 + 0.6213) / (1.4910 + 0.6213)
    np.testing.assert_allclose(policy.infer(observation, noise=noise).actions, expected, atol=1e-4)
