"""The folder of a training run: its checkpoint and its log."""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pi0_control.errors import CheckpointError
from pi0_control.train import layout


@dataclass
class Checkpoint:
    """Where a run stands: everything needed to go on as if it had not stopped.

    Attributes:
        settings: what the run was started with; only a run with the same settings may go on.
        stage: index of the stage under way.
        step: steps of that stage already done.
        learner, averaged: state dicts of the trained and the averaged weights.
        optimizer: its state dict.
    """

    settings: str
    stage: int
    step: int
    learner: dict[str, Tensor]
    averaged: dict[str, Tensor]
    optimizer: dict[str, Any]


class RunFolder:
    """Reads and writes ``checkpoint.pt`` and ``train_log.jsonl``; a crash leaves the last checkpoint whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint_file = self.path / "checkpoint.pt"
        self.log_file = self.path / "train_log.jsonl"

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        layout.write_file(self.checkpoint_file, lambda partial: torch.save(vars(checkpoint), partial))

    def load(self) -> Checkpoint:
        """Read the checkpoint; nothing in it is executed.

        Raises:
            CheckpointError: there is none, or it is not whole.
        """
        if not self.checkpoint_file.exists():
            raise CheckpointError(f"No {self.checkpoint_file}; there is no run to resume.")
        broken = f"{self.checkpoint_file} is not a whole checkpoint of a training run."
        if not zipfile.is_zipfile(self.checkpoint_file):  # else torch would take it for a file of its old format
            raise CheckpointError(broken)
        try:
            return Checkpoint(**torch.load(self.checkpoint_file, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, pickle.UnpicklingError, OSError) as error:
            raise CheckpointError(broken) from error

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind_log(self, stages: list[str], checkpoint: Checkpoint) -> None:
        """Drop the lines written behind a checkpoint, which its steps will write again, and a torn last one."""
        if self.log_file.exists():
            done = (checkpoint.stage, checkpoint.step)
            kept = [line for line in self._lines() if (stages.index(line["stage"]), line["step"]) <= done]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            layout.write_file(self.log_file, lambda partial: partial.write_text(text, encoding="utf-8"))

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Lines of the log up to the first one that is not whole."""
        for line in self.log_file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
