"""``pi0 train``."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from pi0_control.errors import ConfigError
from pi0_control.train.config import TrainConfig

if TYPE_CHECKING:
    from pi0_control.policy import PolicyConfig

Variant = Literal["mini", "pi0", "pi05"]
PROMPT_TOKENS = 48  # of mini on another robot, whose prompts may be longer than those of the bundled tasks


def train(
    dataset: tuple[Path, ...],
    out: Path,
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  frozen
    grounding: tuple[Path, ...] = (),
    init: str | None = None,
    policy_config: str | None = None,
    asset: str | None = None,
    tokenizer: Path | None = None,
    keep_norm_stats: bool = False,
    robot: str | None = None,
    variant: Variant | None = None,
    cameras: dict[str, str] = {},  # noqa: B006  never changed
    resume: bool = False,
) -> None:
    """Train a policy on recorded demonstrations; the result is a policy directory, as every command takes it.

    On several GPUs: ``torchrun --nproc-per-node 4 --no-python pi0 train ... --device cuda``; they share each batch.

    Args:
        dataset: one or more folders of demonstrations (LeRobotDataset v3.0, v2.1 or v2.0).
        out: the policy directory to write; checkpoint.pt, train_log.jsonl and tensorboard/ go there too.
        config: of the training.
        grounding: folders of random scenes (``pi0 record --task scenes``), to learn what the words mean first.
        init: a policy or a public checkpoint to start from, by name or directory, with its robot, instead of random
            weights.
        policy_config: what such a checkpoint does not tell: a preset such as pi05_droid, or a YAML or JSON file with
            entries of policy.json.
        asset: whose statistics to keep, where the checkpoint has those of several robots.
        tokenizer: the SentencePiece file, where none lies in or beside the checkpoint.
        keep_norm_stats: normalise states and actions as ``init`` does, not by the statistics of the demonstrations.
        robot: the robot of a policy that starts from random weights: a YAML file, or ``arm6``, which is the default.
        variant: its size; mini is the default.
        cameras: pairs of a camera of the robot and what the recordings call it, where that is another name.
        resume: go on from the checkpoint in ``out``; where there is none yet, begin.
    """
    from pi0_control.train.distributed import is_main_process
    from pi0_control.train.training import train as run
    from sims.record import grounding_wordings

    if init and (robot or variant):
        raise ConfigError("--init brings its own robot and size; expected it without --robot and --variant.")
    known = {"policy_config": policy_config, "asset": asset, "tokenizer": tokenizer}
    try:
        policy = run(
            config,
            dataset,
            out,
            None if init else fresh_policy(robot, variant or "mini"),
            grounding_roots=grounding,
            templates=grounding_wordings(),
            init=init,
            init_known={name: value for name, value in known.items() if value is not None},
            keep_norm_stats=keep_norm_stats,
            camera_names=cameras,
            resume=resume,
        )
    except KeyboardInterrupt:
        if is_main_process() and (out / "checkpoint.pt").exists():
            print(f"{out}: the same command with --resume goes on from the last checkpoint.", file=sys.stderr)
        raise
    if is_main_process():
        print(f"{out}: try it with  {how_to_try(policy.config.robot.name, out, dataset[0], cameras)}")


def how_to_try(robot: str, out: Path, data: Path, cameras: Mapping[str, str]) -> str:
    """The command for a policy in ``out``: only the bundled robot can be simulated."""
    if robot == "arm6":
        return f"pi0 eval --policy {out}"
    pairs = "".join(f" {camera} {name}" for camera, name in cameras.items())
    return f"pi0 doctor {out} --data {data}" + (f" --cameras{pairs}" if cameras else "")


def fresh_policy(robot: str | None, variant: Variant) -> "PolicyConfig":
    """A policy with random weights; where another robot needs more joints or cameras, the model gets them."""
    from pi0_control.model import Pi0Config
    from pi0_control.policy import PolicyConfig
    from pi0_control.robot import RobotSpec

    spec, model = RobotSpec.from_yaml(robot or "arm6"), Pi0Config.preset(variant)
    if robot:
        model = replace(
            model,
            action_dim=max(model.action_dim, len(spec.joints)),
            num_cameras=max(model.num_cameras, len(spec.cameras)),
            max_token_len=max(model.max_token_len, PROMPT_TOKENS),
        )
    if variant == "mini":
        return PolicyConfig.for_robot(spec, model, execution_horizon=4, num_steps=5)
    return PolicyConfig.for_robot(spec, model)
