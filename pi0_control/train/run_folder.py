"""The folder of a training run: its checkpoint and its log."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from pi0_control import files
from pi0_control.errors import CheckpointError
from pi0_control.train.log import TrainLog

LOCK = "train.lock"


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
    """Reads and writes ``checkpoint.pt`` and holds the log; a crash leaves the last checkpoint whole.

    In a ``with`` statement it keeps other trainings out.

    Args:
        path: of the folder.
        writes: False leaves every file as it is; in processes beside the main one.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.checkpoint_file = self.path / "checkpoint.pt"
        self.log = TrainLog(self.path, writes)
        self._writes = writes
        self._lock = files.lock_of(self.path / LOCK)

    def __enter__(self) -> Self:
        """Make the folder and keep it, if it ``writes``; CheckpointError where another process does."""
        if self._writes:
            busy = CheckpointError(f"{self.path} is being trained in by another process; wait for it or stop it.")
            files.take(self._lock, busy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the folder to others."""
        self._lock.release()

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        if self._writes:
            files.write_file(self.checkpoint_file, lambda partial: _save(checkpoint, partial))

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


def _save(checkpoint: Checkpoint, path: Path) -> None:
    try:
        torch.save(vars(checkpoint), path)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise OSError(f"{path} cannot be written; is the disk full? {str(error).splitlines()[0]}") from error
