"""A training small enough for one core: a robot, a model, demonstrations and settings."""

import json
from pathlib import Path

import numpy as np

from pi0_control.model import Pi0Config, SiglipConfig
from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.policy import Pi0Policy
from pi0_control.robot import Joint, RobotSpec
from pi0_control.train.config import TrainConfig
from pi0_control.train.training import train
from pi0_control.train.writer import DatasetWriter

ROBOT = RobotSpec(
    "two_joints",
    (Joint("swing", "revolute", -2, 2, 1, 1, 0), Joint("grip", "gripper", 0, 1, 1, 1, 1)),
    ("front", "wrist"),
    20.0,
)
MODEL = Pi0Config(
    vision=SiglipConfig(image_size=16, width=32, depth=0, num_heads=2, mlp_dim=32, stem="conv", stem_channels=(8, 16)),
    prefix_width=32,
    prefix_mlp_dim=64,
    action_width=32,
    action_mlp_dim=64,
    depth=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    action_dim=3,
    action_horizon=4,
    max_token_len=12,
    num_cameras=2,
    attn_backend="eager",
)
POLICY = PolicyConfig.for_robot(ROBOT, MODEL, num_steps=4)
QUICK = TrainConfig(
    steps=8,
    batch_size=8,
    warmup_steps=2,
    noise_draws_per_prefix=2,
    validation_fraction=0.25,
    log_every=1,
    validate_every=4,
    checkpoint_every=3,
    bf16=False,
)


def demonstrate(root: Path) -> None:
    """Record: swing to the side on which the red block is, wherever the arm was."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, ROBOT, ("red", "blue"), (32, 32)) as recorder:
        for episode in range(12):
            sides = np.array([-1.0, 1.0]) * (1 if episode // 2 % 2 else -1)
            target = episode % 2
            for _ in range(6):
                swing = rng.uniform(-0.5, 0.5)  # tells nothing about the goal
                objects = [[side * 0.2, 0.1, 0.0] for side in sides]
                images = {"front": draw(sides), "wrist": draw(sides)[::-1]}
                recorder.add_frame(images, [swing, 1], [0.6 * sides[0], 1], objects)
            recorder.save_episode(f"reach the {('red', 'blue')[target]} block", [target])


def draw(sides: np.ndarray) -> np.ndarray:
    image = np.full((32, 32, 3), 40, np.uint8)
    for colour, side in zip(((220, 30, 30), (30, 30, 220)), sides, strict=True):
        image[8:24, slice(2, 14) if side < 0 else slice(18, 30)] = colour
    return image


def lines(out: Path, key: str = "loss") -> list[dict]:
    entries = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in entry.items() if k not in ("samples_per_s", "unix_s")} for entry in entries if key in entry
    ]


def run(config: TrainConfig, data: Path, out: Path, **options) -> Pi0Policy:
    options = {"policy_config": POLICY, "cache_dir": data.parent / "cache", "show_progress": False, **options}
    return train(config, [data], out, **options)
