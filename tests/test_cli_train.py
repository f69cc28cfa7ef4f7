"""``pi0 train``: every option explains itself, and a robot of one's own trains."""

import io
import re
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from pi0_control import cli
from pi0_control.cli.train import fresh_policy, how_to_try
from pi0_control.policy.policy import Pi0Policy
from pi0_control.robot import Joint, RobotSpec
from pi0_control.train.config import TrainConfig
from pi0_control.train.writer import DatasetWriter

pytestmark = pytest.mark.usefixtures("one_thread")

JOINTS = tuple(Joint(f"joint_{index}", "revolute", -3, 3, 1, 1, 0) for index in range(8))
OWN = RobotSpec("own", JOINTS, ("top", "side", "hand", "far"), 10.0)


def pi0(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pi0", "train", *arguments])
    cli.main()


@pytest.fixture
def own_robot(tmp_path: Path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(OWN.to_dict()))
    return file


def test_every_option_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        pi0(monkeypatch, "--help")
    text = re.sub(r"[│\s]+", " ", out.getvalue())
    names = ("robot", "variant", "cameras", "keep_norm_stats", "policy_config", "asset", "tokenizer")
    for name in (*names, *(field.name for field in fields(TrainConfig))):
        option = re.search(rf"--{name.replace('_', '-')}[ ,](.*?)\(default", text)
        assert option, name
        assert len(re.findall(r"\b[a-z]{2,}\b", option[1])) >= 2, name  # words, not only the type


def test_a_model_fits_the_robot(own_robot: Path) -> None:
    own = fresh_policy(str(own_robot), "mini")
    assert (own.model.action_dim, own.model.num_cameras, own.model.max_token_len) == (8, 4, 48)
    assert list(own.cameras.values()) == list(OWN.cameras)
    bundled = fresh_policy(None, "mini")
    assert (bundled.robot.name, bundled.model.action_dim, bundled.model.max_token_len) == ("arm6", 7, 16)
    large = fresh_policy(str(own_robot), "pi05")
    assert (large.model.action_dim, large.model.max_token_len, large.prompt_format) == (32, 200, "pi05")


def test_a_robot_of_ones_own_is_trained(
    own_robot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = RobotSpec("own", JOINTS, ("cam_high", "side", "hand", "far"), 10.0)
    with DatasetWriter(tmp_path / "data", recorded, (), (32, 32)) as recorder:
        for _ in range(3):
            images = {camera: np.zeros((32, 32, 3), np.uint8) for camera in recorded.cameras}
            recorder.add_frame(images, np.zeros(8), np.ones(8))
        recorder.save_episode("unscrew the lid of the left jar and lay it on the towel")
    common = ["--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--steps", "1", "--batch-size", "1"]
    common += ["--validation-fraction", "0", "--threads", "1", "--robot", str(own_robot)]
    with pytest.raises(SystemExit):
        pi0(monkeypatch, *common)  # no camera 'top'
    pi0(monkeypatch, *common, "--cameras", "top", "cam_high", "--freeze", "vision", "--lora", "language")
    command = capsys.readouterr().out.strip().split("try it with  ")[1]
    assert command == f"pi0 doctor {tmp_path / 'out'} --data {tmp_path / 'data'} --cameras top cam_high"
    monkeypatch.setattr(sys, "argv", command.split())
    with suppress(SystemExit):  # whatever it finds
        cli.main()
    assert "Findings" in capsys.readouterr().out
    policy = Pi0Policy.from_pretrained(tmp_path / "out", robot=OWN)
    assert policy.config.provenance["training"]["config"]["freeze"] == ["vision"]


def test_a_policy_of_the_bundled_robot_is_tried_in_simulation() -> None:
    assert how_to_try("arm6", Path("out"), Path("data"), {}) == "pi0 eval --policy out"
    assert how_to_try("own", Path("out"), Path("data"), {}) == "pi0 doctor out --data data"


def test_a_policy_to_start_from_brings_its_robot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pi0(monkeypatch, "--dataset", "x", "--out", "y", "--init", "mini", "--robot", "arm6")
    assert "--init brings its own robot and size" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pi0(monkeypatch, "--dataset", "x", "--out", "y", "--keep-norm-stats")
    assert "keep_norm_stats is set without init" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pi0(monkeypatch, "--dataset", "x", "--out", "y", "--policy-config", "pi0_aloha", "--asset", "trossen")
    assert "Got ['asset', 'policy_config'] without init" in re.sub(r"[│\s]+", " ", capsys.readouterr().err)
