"""The run folder's laws: what is not a whole checkpoint is refused, and a torn log does not stop a resumed run."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from pi0_control.errors import CheckpointError
from pi0_control.train import layout
from pi0_control.train.run_folder import Checkpoint, RunFolder

CHECKPOINT = Checkpoint("settings", 0, 2, {"weight": torch.ones(2)}, {"weight": torch.zeros(2)}, {})
ENTRIES = [{"stage": "policy", "step": step, "loss": 1.0} for step in (1, 2, 3)]


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


@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN)
def test_what_is_not_a_whole_checkpoint_is_refused_in_one_sentence(tmp_path: Path, write):
    write(tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError) as caught:
        RunFolder(tmp_path).load()
    assert str(caught.value) == f"{tmp_path / 'checkpoint.pt'} is not a whole checkpoint of a training run."


@pytest.mark.parametrize("tail", ["", '{"stage": "pol', '{"stage": "policy", "step": 2}\n{"sta'])
def test_the_log_is_rewound_to_the_checkpoint_even_if_it_is_torn(tmp_path: Path, tail: str):
    folder = RunFolder(tmp_path)
    for entry in ENTRIES:
        folder.log(entry)
    whole = folder.log_file.read_text()
    folder.log_file.write_text(whole + tail)
    folder.rewind_log(["policy"], CHECKPOINT)
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert lines[:2] == ENTRIES[:2]
    assert all(line["step"] <= 2 for line in lines)
    assert not list(tmp_path.glob(f"*{layout.PARTIAL}"))
