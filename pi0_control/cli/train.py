"""``pi0 train``."""

from pathlib import Path

import tyro

from pi0_control.train.config import TrainConfig


def train(
    dataset: tuple[Path, ...],
    out: Path,
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  frozen
    grounding: tuple[Path, ...] = (),
    init: str | None = None,
    resume: bool = False,
) -> None:
    """Train a policy on recorded demonstrations; the result is a policy directory for ``pi0 eval --policy``.

    Args:
        dataset: one or more folders of demonstrations (LeRobotDataset v3.0).
        out: the policy directory to write; checkpoint.pt and train_log.jsonl go there too.
        config: of the training.
        grounding: folders of random scenes (``pi0 record --task scenes``), to learn what the words mean first.
        init: a policy to start from, by name or directory, instead of random weights at mini's size.
        resume: go on from the checkpoint in ``out``.
    """
    from pi0_control.model import Pi0Config
    from pi0_control.policy import PolicyConfig
    from pi0_control.robot import RobotSpec
    from pi0_control.train.training import train as run
    from sims.record import grounding_wordings

    fresh = PolicyConfig.for_robot(
        RobotSpec.from_yaml("arm6"), Pi0Config.preset("mini"), execution_horizon=4, num_steps=5
    )
    run(
        config,
        dataset,
        out,
        None if init else fresh,
        grounding_roots=grounding,
        templates=grounding_wordings(),
        init=init,
        resume=resume,
    )
    print(f"{out}: try it with  pi0 eval --policy {out}")
