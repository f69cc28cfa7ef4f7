"""The run folder's law: what is not a whole checkpoint is refused."""

import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pi0_control.errors import CheckpointError
from pi0_control.train.run_folder import Checkpoint, RunFolder

CHECKPOINT = Checkpoint("settings", 0, 2, {"weight": torch.ones(2)}, {"weight": torch.zeros(2)}, {})


def torn(path: Path) -> None:
    RunFolder(path.parent).save(CHECKPOINT)
    path.write_bytes(path.read_bytes()[:-100])


BROKEN = {
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("hello"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"settings": ""})),
    "old torch format": lambda path: torch.save(vars(CHECKPOINT), path, _use_new_zipfile_serialization=False),
    "torn": torn,
    "code": lambda path: torch.save({"settings": Path.home}, path),
    "tensor": lambda path: torch.save(torch.ones(2), path),
    "other keys": lambda path: torch.save({"weight": torch.ones(2)}, path),
}


def test_a_checkpoint_is_read_back(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.save(CHECKPOINT)
    loaded = folder.load()
    assert (loaded.settings, loaded.stage, loaded.step) == ("settings", 0, 2)
    assert torch.equal(loaded.learner["weight"], torch.ones(2))


def test_where_there_is_no_room_the_last_checkpoint_stays(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.save(CHECKPOINT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="cannot be written; is the disk full"):
            folder.save(replace(CHECKPOINT, step=3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.load().step == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.pt", "train.lock", "log.jsonl"}


def test_one_training_at_a_time_has_the_folder(tmp_path: Path):
    path = tmp_path / "run"
    with RunFolder(path):
        with pytest.raises(CheckpointError, match="run is being trained in by another process; wait for it or stop it"):
            RunFolder(path).__enter__()
        with RunFolder(path, writes=False):  # another process of the same training
            pass
    with RunFolder(path):
        pass


@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN)
def test_what_is_not_a_whole_checkpoint_is_refused_in_one_sentence(tmp_path: Path, write):
    write(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError) as caught:
        RunFolder(tmp_path).load()
    assert str(caught.value) == f"{tmp_path / 'checkpoint.pt'} is not a whole checkpoint of a training run."
