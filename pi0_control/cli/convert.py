"""``pi0 convert``."""

from pathlib import Path
from typing import Literal

import tyro


def convert(
    source: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    to: Literal["pi0_control", "openpi", "lerobot"] = "pi0_control",
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
    policy_config: str | None = None,
    robot: str | None = None,
    asset: str | None = None,
    tokenizer: Path | None = None,
    lora_scaling: float = 1.0,
) -> None:
    """Write a policy or a public checkpoint in another format and tell what became of each tensor.

    Args:
        source: a policy directory of pi0_control, openpi (PyTorch, JAX) or LeRobot, mini, or org/name on the Hugging
            Face hub.
        out: the directory to write; it must not exist, and appears when it is whole.
        to: whose format; openpi is that of its PyTorch code.
        dtype: of the matrices; norms and the projections of state, actions and time stay float32 unless kept.
        policy_config: what a public checkpoint does not tell: a preset such as pi05_droid, or a YAML or JSON file with
            entries of policy.json.
        robot: a robot file, or the name of a bundled one.
        asset: whose statistics, where there are those of several robots.
        tokenizer: the SentencePiece file, where none lies in or beside the checkpoint.
        lora_scaling: alpha / rank of LoRA adapters in the attention, which openpi's JAX checkpoints do not tell.
    """
    from pi0_control.policy.conversion import convert as convert_policy
    from pi0_control.robot import RobotSpec

    spec = None if robot is None else RobotSpec.from_yaml(robot)
    known = {"policy_config": policy_config, "robot": spec, "asset": asset, "tokenizer": tokenizer}
    print(convert_policy(source, out, to, dtype, lora_scaling, **known))
    print(f"Written: {out}")
