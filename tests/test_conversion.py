"""Round trips through every format are bit-exact, keep what surrounds the weights, and appear whole or not at all."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import GOLDEN, golden_tensors, torch_directory
from policy_parts import ARM6, TINY, TINY05, make_policy, observe
from public_policies import PI0, openpi_policy, plain_stats
from torch import Tensor

from pi0_control import cli
from pi0_control.errors import CheckpointError, ConfigError
from pi0_control.model.checkpoints import open_checkpoint
from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.policy import Pi0Policy, PolicyConfig, read_policy
from pi0_control.policy.conversion import convert
from pi0_control.policy.settings import presets

VISION = SiglipConfig(image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_dim=24)
FORMATS = ["openpi", "lerobot"]


@pytest.fixture(scope="module", params=[TINY, TINY05], ids=["pi0", "pi05"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy directory of ours, of the public architecture."""
    directory = tmp_path_factory.mktemp("policy") / request.param.ada_norm
    model: Pi0Config = replace(request.param, vision=VISION)
    make_policy(PolicyConfig.for_robot(ARM6, model)).save(directory)
    return directory


def state_of(directory: Path) -> dict[str, Tensor]:
    return open_checkpoint(directory).state()


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    assert all(state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("to", FORMATS)
def test_there_and_back_again_is_the_same_policy(policy: Path, to: Any, tmp_path: Path) -> None:
    convert(policy, tmp_path / "public", to)
    assert open_checkpoint(tmp_path / "public").format == {"openpi": "openpi_torch", "lerobot": "lerobot"}[to]
    settings = json.loads((policy / "policy.json").read_text(encoding="utf-8"))
    known = {"policy_config": settings, "tokenizer": policy / "tokenizer.model"}
    report = convert(tmp_path / "public", tmp_path / "again", **known)
    assert report.missing == ()
    assert_same(state_of(tmp_path / "again"), state_of(policy))
    before, after = (Pi0Policy.from_pretrained(path).infer(observe()).actions for path in (policy, tmp_path / "again"))
    tolerance = {"openpi": 0.0, "lerobot": 1e-5}[to]  # LeRobot's statistics are float32
    np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("to", ["pi0_control", *FORMATS])
def test_a_base_model_has_no_statistics_in_any_format(policy: Path, to: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(policy, base)
    (base / "norm_stats.json").unlink()
    convert(base, tmp_path / "out", to)
    settings = None if to == "pi0_control" else json.loads((policy / "policy.json").read_text(encoding="utf-8"))
    assert read_policy(tmp_path / "out", settings).norm_stats is None
    assert_same(state_of(tmp_path / "out"), state_of(policy))


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_a_jax_checkpoint_becomes_openpis_own_pytorch_with_its_statistics(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="the optional reader of orbax directories is not installed")
    source, out = GOLDEN / "orbax_pi05_tiny", tmp_path / "out"
    convert(source, out, "openpi", dtype)
    assert (out / "assets/tiny_robot/norm_stats.json").read_bytes() == next(
        source.glob("assets/**/*.json")
    ).read_bytes()
    settings = json.loads((out / "config.json").read_text())
    assert (settings["action_dim"], settings["precision"]) == (6, {"keep": "float32"}.get(dtype, dtype))
    assert "action_horizon" not in settings
    checkpoint, original = open_checkpoint(out), open_checkpoint(source)
    assert checkpoint.config == original.config
    assert checkpoint.assumed == original.assumed  # what was not known is not known now
    assert_same(checkpoint.state(), original.state({"bfloat16": torch.bfloat16}.get(dtype)))


@pytest.mark.parametrize("policy_config", [None, "pi0_aloha"])
def test_an_openpi_directory_keeps_what_surrounds_its_weights(policy_config: str | None, tmp_path: Path) -> None:
    assets = {"trossen": plain_stats(14, 14), "lab/franka": plain_stats(8, 8)}
    source = openpi_policy(tmp_path / "source", PI0, assets)
    (source / "policy.json").write_text(json.dumps(presets()["pi0_aloha"]), encoding="utf-8")
    plain_stats(14, 14).save(source / "norm_stats.json")
    convert(source, tmp_path / "out", "openpi", policy_config=policy_config)
    before, after = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (source, tmp_path / "out")
    )
    assert after == {*before, Path("config.json")}
    for name in {*before} - {Path("model.safetensors")}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    tokenizer = (source / "paligemma_tokenizer.model").rename(tmp_path / "given.model")
    convert(source, tmp_path / "told", "openpi", policy_config=policy_config, tokenizer=tokenizer)
    assert read_policy(tmp_path / "told", "pi0_aloha").require_tokenizer().read_bytes() == tokenizer.read_bytes()


def test_a_lerobot_directory_keeps_its_processors(tmp_path: Path) -> None:
    source = torch_directory(tmp_path / "source", golden_tensors("pi0"), {"type": "pi0", "chunk_size": 20})
    (source / "policy_preprocessor.json").write_text('{"steps": []}')
    (source / "policy_preprocessor_step_3_normalizer_processor.safetensors").write_bytes(b"as it is")
    convert(source, tmp_path / "out", "lerobot")
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert all(name.startswith("model.") for name in open_checkpoint(tmp_path / "out").reader.shapes)
    assert_same(state_of(tmp_path / "out"), state_of(source))


@pytest.mark.parametrize(("joint", "fits"), [("waist", False), ("tool", True)])
def test_relative_actions_that_lerobot_would_take_from_other_joints_are_refused(
    joint: str, fits: bool, tmp_path: Path
) -> None:
    mask = tuple(name not in (joint, "gripper") for name in ARM6.joint_names)
    config = PolicyConfig.for_robot(
        ARM6, replace(TINY, vision=VISION), action_space="joint_delta", uncommanded=(joint,), delta_mask=mask
    )
    make_policy(config).save(tmp_path / "ours")
    if fits:
        convert(tmp_path / "ours", tmp_path / "theirs", "lerobot")
    else:
        with pytest.raises(ConfigError, match=r"wrong joints: \['waist'\] have no action and come before"):
            convert(tmp_path / "ours", tmp_path / "theirs", "lerobot")


def test_images_are_called_like_the_robots_cameras_for_lerobot(policy: Path, tmp_path: Path) -> None:
    cameras = ("front", "hand", "side")
    robot = replace(ARM6, cameras=cameras)
    slots = read_policy(policy).config.cameras
    config = replace(read_policy(policy).config, robot=robot, cameras=dict(zip(slots, cameras, strict=True)))
    make_policy(config).save(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", "lerobot")
    features = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))["input_features"]
    assert [name for name in features if "images" in name] == [f"observation.images.{name}" for name in cameras]
    assert list(read_policy(tmp_path / "theirs", robot=robot).config.cameras.values()) == list(cameras)


def test_what_remains_unknown_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    source = torch_directory(tmp_path / "source", golden_tensors("pi0"))
    with pytest.raises((ConfigError, CheckpointError)):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_conversion_leaves_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(policy, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        convert(policy, tmp_path)
    with pytest.raises(ConfigError, match="No dtype 'int8'"):
        convert(policy, tmp_path / "out", dtype="int8")


def test_mini_is_of_no_public_architecture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model with stem 'conv'"):
        convert("mini", tmp_path / "out", "openpi")
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_became_of_each_tensor(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["pi0", "convert", str(policy), str(out), "--to", "openpi", "--dtype", "bfloat16"])
    cli.main()
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("converted") and line.endswith("float32 to bfloat16") for line in printed)
    assert printed[-2].split() == ["missing", "0"]
    assert printed[-1] == f"Written: {out}"
    with pytest.raises(SystemExit):
        cli.main()
    assert "is there already" in capsys.readouterr().err
