import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_parts import ARM6, observe, stats
from public_policies import PI0, PI05, lerobot_policy, openpi_policy, plain_stats, public_weights
from safetensors.torch import load_file, save_file

from pi0_control.errors import CheckpointError, ConfigError, Pi0Error, RobotMismatchError
from pi0_control.model.pi0 import Pi0
from pi0_control.policy import HoldPolicy, Pi0Policy, PolicyConfig, load_policy, read_policy
from pi0_control.policy.camera_stats import CameraStats
from pi0_control.policy.settings import presets
from pi0_control.robot import RobotSpec
from pi0_control.types import Observation

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = {"robot": "arm6", "action_space": "joint_delta", "model": {"action_horizon": 6}}
ARM_CAMERAS = ("left_wrist_0_rgb", "base_0_rgb", "right_wrist_0_rgb")


@pytest.fixture(scope="module")
def openpi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openpi_policy(tmp_path_factory.mktemp("public") / "openpi", PI0, {"arm6": stats()})


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_policy(tmp_path_factory.mktemp("public") / "lerobot", PI05, stats(), ARM_CAMERAS)


def see(robot: RobotSpec, cameras: tuple[str, ...] | None = None) -> Observation:
    generator = np.random.default_rng(0)
    names = robot.cameras if cameras is None else cameras
    images = {name: generator.integers(0, 256, (24, 32, 3), dtype=np.uint8) for name in names}
    return Observation(images, robot.home, "touch the red block")


@pytest.mark.parametrize("name", sorted(presets()))
def test_each_preset_plays_its_checkpoint(tmp_path: Path, name: str) -> None:
    preset = presets()[name]
    robot = RobotSpec.from_yaml(preset["robot"])
    joints = len(robot.joints)
    commanded = joints - len(preset.get("uncommanded", ()))
    is_pi05 = name.startswith("pi05")
    assets = {preset["usual_asset"]: plain_stats(joints, commanded), "another": plain_stats(3, 3)}
    directory = openpi_policy(tmp_path, PI05 if is_pi05 else PI0, assets)
    policy = Pi0Policy.from_pretrained(directory, policy_config=name)
    assert policy.robot == robot
    assert policy.horizon == preset["model"]["action_horizon"]
    assert policy.config.norm == ("quantile" if is_pi05 else "z_score")
    policy = with_one_step(policy)
    chunk = policy.infer(see(robot))
    assert chunk.actions.shape == (policy.horizon, joints)
    kept = [index for index in range(joints) if index not in policy.config.commanded]
    assert (chunk.actions[:, kept] == robot.home[kept]).all()
    with pytest.raises(ConfigError, match="ada_norm"):
        read_policy(directory, name.replace("pi05", "pi0") if is_pi05 else "pi05_droid")


def with_one_step(policy: Pi0Policy) -> Pi0Policy:
    """One denoising step is enough here."""
    config = dataclasses.replace(policy.config, num_steps=1)
    return Pi0Policy(policy.model, config, policy.transforms.norm_stats, policy.transforms.tokenizer)


def test_pi05_libero_s_prompt_has_no_state(tmp_path: Path) -> None:
    directory = openpi_policy(tmp_path, PI05, {"physical-intelligence/libero": plain_stats(8, 7)})
    for name, has_state in (("pi05_libero", False), ({"preset": "pi05_libero", "discrete_state_input": True}, True)):
        transforms = Pi0Policy.from_pretrained(directory, policy_config=name).transforms
        robot = transforms.config.robot
        seen = [see(robot), dataclasses.replace(see(robot), state=robot.home + 0.5)]
        tokens = transforms.inputs(seen).tokens
        assert torch.equal(tokens[0], tokens[1]) != has_state


def test_what_openpi_does_not_tell_is_listed(openpi: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_policy(openpi)
    for word in ("robot (", "model.action_horizon", "cameras", "action_space", "policy.json beside", "pi05_droid"):
        assert word in str(error.value)
    with pytest.raises(ConfigError, match=r"does not tell model\.action_horizon \(the number.*\), action_space \("):
        read_policy(openpi, robot=ARM6)  # its cameras have openpi's names
    other = openpi_policy(tmp_path, PI05, {"arm6": stats()})
    with pytest.raises(ConfigError, match="does not tell discrete_state_input"):
        read_policy(other, OURS)


def test_settings_come_from_a_mapping_a_file_or_beside_the_weights(openpi: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(openpi, directory)
    from_mapping = read_policy(directory, OURS).config
    (tmp_path / "mine.yaml").write_text(json.dumps(OURS))  # which is YAML, too
    (tmp_path / "mine.json").write_text(json.dumps(OURS))
    for name in ("mine.yaml", "mine.json"):
        assert read_policy(directory, tmp_path / name).config == from_mapping
    (directory / "policy.json").write_text(json.dumps(OURS))
    assert read_policy(directory).config == from_mapping
    assert read_policy(directory, {"num_steps": 3}).config == dataclasses.replace(from_mapping, num_steps=3)
    from_mapping.save(directory / "policy.json")  # all of it
    assert read_policy(directory).config == from_mapping


def test_a_public_policy_saved_is_one_of_ours(openpi: Path, tmp_path: Path) -> None:
    policy = Pi0Policy.from_pretrained(openpi, policy_config=OURS, robot=ARM6)
    policy.save(tmp_path / "all")
    files = read_policy(openpi, OURS)
    files.save(tmp_path / "parts")
    shutil.copyfile(tmp_path / "all" / "model.safetensors", tmp_path / "parts" / "model.safetensors")
    expected = policy.infer(observe(), noise=np.ones((6, 16), np.float32)).actions
    for name in ("all", "parts"):
        again = Pi0Policy.from_pretrained(tmp_path / name)
        assert again.config == policy.config
        assert np.array_equal(again.infer(observe(), noise=np.ones((6, 16), np.float32)).actions, expected)
    with pytest.raises(ConfigError, match="says it all"):
        read_policy(tmp_path / "all", OURS)


def test_the_asset_is_chosen_and_the_others_listed(tmp_path: Path) -> None:
    small, large = plain_stats(7, 7), plain_stats(32, 32)
    directory = openpi_policy(tmp_path, PI0, {"arm": small, "lab/arm6": large})
    assert len(read_policy(directory, OURS, asset="lab/arm6").norm_stats.state.mean) == 32
    assert len(read_policy(directory, {**OURS, "asset": "arm"}).norm_stats.state.mean) == 7
    with pytest.raises(CheckpointError, match=r"asset None; give one of \['arm', 'lab/arm6'\]"):
        read_policy(directory, OURS)
    with pytest.raises(CheckpointError, match="asset 'droid'"):
        read_policy(directory, OURS, asset="droid")
    shutil.rmtree(directory / "assets" / "arm")
    assert len(read_policy(directory, {**OURS, "usual_asset": "elsewhere"}).norm_stats.state.mean) == 32  # the only one
    with pytest.raises(CheckpointError, match=r"asset 'elsewhere'; give one of \['lab/arm6'\]"):
        read_policy(directory, {**OURS, "asset": "elsewhere"})
    shutil.rmtree(directory / "assets")
    with pytest.raises(CheckpointError, match=r"asset 'lab/arm6'; give one of \[\]"):
        read_policy(directory, OURS, asset="lab/arm6")


def test_a_base_model_without_statistics_is_no_policy_yet(tmp_path: Path) -> None:
    directory = openpi_policy(tmp_path, PI0, {})
    files = read_policy(directory, OURS)
    assert files.norm_stats is None
    with pytest.raises(CheckpointError, match="has no statistics; copy the folder assets"):
        Pi0Policy.from_pretrained(directory, policy_config=OURS)


def test_the_tokenizer_is_in_beside_or_given(openpi: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "checkpoint"
    shutil.copytree(openpi, directory)
    file = directory / "paligemma_tokenizer.model"
    assert read_policy(directory, OURS).tokenizer == file
    beside = shutil.move(file, tmp_path / "run" / "tokenizer.model")
    assert read_policy(directory, OURS).tokenizer == beside
    elsewhere = shutil.move(beside, tmp_path / "pieces.model")
    assert read_policy(directory, OURS).tokenizer is None
    with pytest.raises(CheckpointError, match=r"no tokenizer in or beside .* as paligemma_tokenizer\.model"):
        Pi0Policy.from_pretrained(directory, policy_config=OURS)
    assert Pi0Policy.from_pretrained(directory, policy_config=OURS, tokenizer=elsewhere).horizon == 6
    with pytest.raises(CheckpointError, match="No tokenizer file nowhere"):
        read_policy(directory, OURS, tokenizer="nowhere")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ("pi06", CheckpointError, r"No policy config 'pi06'; give a YAML or JSON file or one of \['pi05_aloha'"),
        ({"colour": 1}, ConfigError, r"has \['colour'\]; expected some of \['model'"),
        ({"preset": "pi06"}, ConfigError, "begins with preset 'pi06'"),
        ({**OURS, "model": {"depth": 9}}, ConfigError, r"model\.depth 9; the checkpoint .* has 2"),
        ({**OURS, "model": {"action_horizon": "6"}}, ConfigError, "action_horizon '6'"),
        ({**OURS, "format_version": 2}, ConfigError, "another format_version than 1"),
        ({**OURS, "cameras": ["a"]}, ConfigError, r"cameras is \['a'\]; expected the robot's camera"),
        ({**OURS, "cameras": {"base_0_rgb": "top"}}, ConfigError, "expected distinct cameras"),
        ({**OURS, "robot": "nobody"}, ConfigError, "No robot file 'nobody'"),
        ({**OURS, "robot": "x" * 300}, ConfigError, "No robot file|do not fit"),
        ({**OURS, "uncommanded": 3}, ConfigError, "do not fit"),
        ({"preset": []}, ConfigError, r"begins with preset \[\]"),
        ({**OURS, "robot": 3}, ConfigError, "settings' robot has int"),
        ({**OURS, "action_space": "ee_delta"}, ConfigError, r"action_space is 'ee_delta'; expected one of"),
        ({**OURS, "delta_mask": [True]}, ConfigError, "expected 7 booleans"),
        ({**OURS, "norm": ["a"]}, ConfigError, "norm is"),
        ({**OURS, "units": "aloha_pi"}, ConfigError, "of 14 joints"),
    ],
)
def test_settings_are_strict(openpi: Path, settings: Any, error: type[Pi0Error], words: str) -> None:
    with pytest.raises(error, match=words):
        read_policy(openpi, settings)


def test_settings_change_a_horizon_that_a_file_tells(openpi: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(openpi, directory)
    (directory / "config.json").write_text(json.dumps({"action_horizon": 10}))
    assert read_policy(directory, {**OURS, "model": {}}).config.model.action_horizon == 10
    assert Pi0Policy.from_pretrained(directory, policy_config=OURS).horizon == 6


def test_a_tokenizer_of_a_smaller_model_is_refused(tmp_path: Path) -> None:
    large = dataclasses.replace(PI0, vocab_size=300)
    directory = openpi_policy(tmp_path / "run" / "checkpoint", large, {"arm6": stats()})
    (directory / "paligemma_tokenizer.model").rename(tmp_path / "run" / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model has 256 pieces; expected about .* of 300"):
        read_policy(directory, OURS)
    named = tmp_path / "run" / "tokenizer.model"
    assert read_policy(directory, OURS, tokenizer=named).tokenizer == named


def test_a_policy_for_real_time_chunking_stays_one_or_is_not_exported(tmp_path: Path) -> None:
    pi0 = read_policy(openpi_policy(tmp_path / "pi0", PI0, {"arm6": stats()}), {**OURS, "rtc_max_delay": 2})
    for to in ("openpi", "lerobot"):
        with pytest.raises(ConfigError, match=f"{to} has no rtc_max_delay 2"):
            pi0.export(tmp_path, to)
    directory = openpi_policy(tmp_path / "pi05", PI05, {"arm6": stats()})
    pi05 = read_policy(directory, {**OURS, "rtc_max_delay": 2, "discrete_state_input": True})
    pi05.export(public_weights(tmp_path / "lerobot", PI05, "model."), "lerobot")
    assert read_policy(tmp_path / "lerobot", robot=ARM6).config.rtc_max_delay == 2


def test_slots_keep_the_order_of_the_prefix(openpi: Path, lerobot: Path) -> None:
    given = {"extra": "right_wrist_0_rgb", "left_wrist_0_rgb": "left_wrist_0_rgb", "base_0_rgb": "base_0_rgb"}
    files = read_policy(openpi, {**OURS, "cameras": given})
    assert [*files.config.cameras] == ["base_0_rgb", "left_wrist_0_rgb", "extra"]
    one = read_policy(openpi, {**OURS, "cameras": {"base_0_rgb": "base_0_rgb"}}).config
    assert one.model.num_cameras == 1
    assert [*read_policy(lerobot, robot=ARM6).config.cameras] == list(ARM_CAMERAS)
    with pytest.raises(ConfigError, match="for some of"):
        read_policy(lerobot, {"cameras": {"top": "base_0_rgb"}}, robot=ARM6)


def test_a_masked_slot_costs_nothing(openpi: Path) -> None:
    names = ("base_0_rgb", "left_wrist_0_rgb")
    given = {**{name: name for name in names}, "right_wrist_0_rgb": None}
    policy = Pi0Policy.from_pretrained(openpi, policy_config={**OURS, "cameras": given})
    assert (policy.config.model.num_cameras, [*policy.config.cameras]) == (2, [*names])
    masked = dataclasses.replace(policy.config.model, num_cameras=3)
    config = dataclasses.replace(policy.config, model=masked, cameras=given)
    model = Pi0(masked)
    model.load_state_dict(policy.model.state_dict())
    slow = Pi0Policy(model, config, policy.transforms.norm_stats, policy.transforms.tokenizer)
    chunks = [each.infer(observe(), noise=np.ones((6, 16), np.float32)).actions for each in (policy, slow)]
    np.testing.assert_allclose(*chunks, atol=1e-5)


def test_a_lerobot_directory_needs_only_the_robot(lerobot: Path, tmp_path: Path) -> None:
    policy = Pi0Policy.from_pretrained(lerobot, robot=ARM6)
    config = policy.config
    assert (config.norm, config.norm_rule, config.norm_eps) == ("quantile", "lerobot", 1e-8)
    assert (config.prompt_format, config.discrete_state_input, config.resize) == ("pi05", True, "lerobot_v05")
    assert (config.action_space, config.num_steps, config.execution_horizon) == ("joint_absolute", 2, 5)
    np.testing.assert_allclose(policy.transforms.norm_stats.actions.q01, stats().actions.q01, rtol=1e-6)
    assert config.camera_stats == dict.fromkeys(ARM_CAMERAS, CameraStats(48, 64, (0.25, 0.25, 0.25)))
    assert policy.infer(observe()).actions.shape == (50, 7)
    with pytest.raises(ConfigError, match=r"does not tell robot \(.*cameras"):
        read_policy(lerobot)
    remembering = lerobot_policy(tmp_path, PI05, stats(), ARM_CAMERAS, use_visual_memory=True)
    with pytest.raises(CheckpointError, match="trained with use_visual_memory"):
        read_policy(remembering, robot=ARM6)
    cameras = {"base_0_rgb": "wrist_image_left"}
    with pytest.raises(RobotMismatchError, match=r"observation\.state of shape \[7\]; robot 'droid' has 8"):
        read_policy(lerobot, {"cameras": cameras}, robot=RobotSpec.from_yaml("droid"))


def change(directory: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((directory / name).read_text())
    edit(values)
    (directory / name).write_text(json.dumps(values))


def test_lerobot_s_settings_may_be_null(lerobot: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(lerobot, directory)
    for name in ("empty_cameras", "n_action_steps", "chunk_size"):
        change(directory, "config.json", lambda values, name=name: values.update({name: None}))
    settings = {"model": {"action_horizon": 8}}
    assert read_policy(directory, settings, ARM6).config.execution_horizon == 4


def test_lerobot_s_relative_actions_leave_named_joints_absolute(tmp_path: Path) -> None:
    names = [f"{name}.pos" for name in ARM6.joint_names]
    relative = {"use_relative_actions": True, "relative_exclude_joints": ["GRIPPER"], "action_feature_names": names}
    directory = lerobot_policy(tmp_path, PI0, stats(), ARM_CAMERAS, **relative)
    config = read_policy(directory, robot=ARM6).config
    assert (config.prompt_format, config.norm, config.action_space) == ("lerobot_pi0", "z_score", "joint_delta")
    assert config.delta_mask == (True,) * 6 + (False,)
    change(directory, "policy_preprocessor.json", lambda values: values["steps"][1]["config"].pop("action_names"))
    assert read_policy(directory, robot=ARM6).config.delta_mask == (True,) * 7
    (directory / "policy_preprocessor.json").unlink()  # what config.json says
    assert read_policy(directory, robot=ARM6).config.delta_mask == (True,) * 6 + (False,)


def test_actions_in_another_order_than_the_robot_s_joints_are_refused(tmp_path: Path) -> None:
    names = [f"{name}.pos" for name in ("gripper", *ARM6.joint_names[:-1])]
    directory = lerobot_policy(tmp_path, PI0, stats(), ARM_CAMERAS, action_feature_names=names)
    change(directory, "policy_preprocessor.json", lambda values: values["steps"][1]["config"].pop("action_names"))
    with pytest.raises(RobotMismatchError, match=r"order \['gripper', 'waist', .*robot 'arm6' has \['waist', "):
        read_policy(directory, robot=ARM6)
    other = ["another", *names[1:]]  # of no joint: nothing is known
    change(directory, "config.json", lambda values: values.update(action_feature_names=other))
    assert read_policy(directory, robot=ARM6).config.action_space == "joint_absolute"


def test_actions_without_a_name_are_relative(tmp_path: Path) -> None:
    names = [f"{name}.pos" for name in ARM6.joint_names[:2]]
    relative = {"use_relative_actions": True, "relative_exclude_joints": ["waist"], "action_feature_names": names}
    directory = lerobot_policy(tmp_path, PI0, stats(), ARM_CAMERAS, **relative)
    assert read_policy(directory, robot=ARM6).config.delta_mask == (False,) + (True,) * 6


@pytest.mark.parametrize("name", ["min_period", "max_period"])
def test_another_encoding_of_the_time_is_refused(lerobot: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(lerobot, directory)
    change(directory, "config.json", lambda values: values.update(min_period=4e-3, max_period=4.0))
    assert read_policy(directory, robot=ARM6)
    change(directory, "config.json", lambda values: values.update({name: 1.0}))
    with pytest.raises(CheckpointError, match=rf"has {name} 1\.0; expected 0?[4.]"):
        read_policy(directory, robot=ARM6)


def test_lerobot_0_4_and_0_5_0_look_alike(lerobot: Path, tmp_path: Path) -> None:
    directory = tmp_path / "old"
    shutil.copytree(lerobot, directory)
    change(directory, "config.json", lambda values: values.pop("use_relative_actions"))
    with pytest.raises(ConfigError, match=r"does not tell resize \(lerobot_v05, or lerobot_v04"):
        read_policy(directory, robot=ARM6)
    for resize, is_padded in (("lerobot_v04", True), ("lerobot_v05", False)):
        assert read_policy(directory, {"resize": resize}, ARM6).config.pad_state_in_prompt == is_padded


def lerobot_v03(
    directory: Path, joints: int, cameras: tuple[str, ...], statistics: dict[str, float], **changes: Any
) -> Path:
    """As LeRobot up to 0.3 writes it: no processors, statistics among the weights."""
    changes = {"resize_imgs_with_padding": [224, 224], **changes}
    lerobot_policy(directory, PI0, plain_stats(joints, joints), cameras, **changes)
    for name in ("use_relative_actions", "num_inference_steps"):
        change(directory, "config.json", lambda values, name=name: values.pop(name))
    for file in directory.glob("policy_*"):
        file.unlink()
    tensors = load_file(directory / "model.safetensors")
    for feature, group in (("observation_state", "normalize_inputs"), ("action", "unnormalize_outputs")):
        for statistic, value in statistics.items():
            tensors[f"{group}.buffer_{feature}.{statistic}"] = torch.full((joints,), value)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_lerobot_up_to_0_3_has_its_statistics_among_the_weights(tmp_path: Path) -> None:
    aloha = RobotSpec.from_yaml("aloha")
    directory = lerobot_v03(tmp_path, 14, aloha.cameras, {"mean": 3.0, "std": 2.0}, adapt_to_pi_aloha=True, num_steps=5)
    files = read_policy(directory, robot=aloha)
    assert files.config.num_steps == 5
    assert (files.config.resize, files.config.units) == ("lerobot_v03", "lerobot_aloha_pi")
    assert files.norm_stats.state.mean.tolist() == [3.0] * 14
    assert files.norm_stats.actions.std.tolist() == [2.0] * 14


def test_a_base_model_of_lerobot_0_3_has_neither_features_nor_statistics(tmp_path: Path) -> None:
    nothing = {"mean": np.inf, "std": np.inf}
    directory = lerobot_v03(tmp_path, 7, (), nothing, input_features={}, output_features={})
    with pytest.raises(ConfigError, match=r"does not tell robot \(.*cameras \("):
        read_policy(directory)
    given = {"left_wrist_0_rgb": "left_wrist_0_rgb", "base_0_rgb": "base_0_rgb"}
    assert read_policy(directory, {"cameras": given}, ARM6).norm_stats is None
    stats().save(directory / "norm_stats.json")
    assert [*read_policy(directory, {"cameras": given}, ARM6).config.cameras] == ["base_0_rgb", "left_wrist_0_rgb"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"state_file": "../x"}, r"state_file '\.\./x'"),
        ({"state_file": "x.safetensors"}, "no weight file"),
        ({"config": {"normalize_observation_keys": ["top"]}}, r"normalises \['top'\] of the observation; expected obs"),
        ({"config": {"norm_map": {"STATE": "QUANTILE10", "ACTION": "QUANTILE10"}}}, "normalises .*QUANTILE10"),
        ({"config": {"norm_map": {"STATE": "MIN_MAX", "ACTION": "QUANTILES"}}}, "for both"),
        ({"config": {"norm_map": {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "QUANTILES"}}}, "images by"),
    ],
)
def test_a_damaged_processor_is_refused(lerobot: Path, tmp_path: Path, edit: dict[str, Any], words: str) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(lerobot, directory)
    change(directory, "policy_preprocessor.json", lambda values: values["steps"][2].update(edit))
    with pytest.raises(CheckpointError, match=words):
        read_policy(directory, robot=ARM6)
    change(directory, "policy_preprocessor.json", lambda values: values.update(steps=3))
    with pytest.raises(CheckpointError, match="no list of steps"):
        read_policy(directory, robot=ARM6)


def test_lerobot_s_pi05_may_have_no_state_in_its_prompt(lerobot: Path) -> None:
    """As converted from pi05_libero, which no file of LeRobot's tells."""
    config = read_policy(lerobot, {"discrete_state_input": False}, ARM6).config
    assert (config.prompt_format, config.discrete_state_input, config.norm) == ("pi0", False, "quantile")


def test_what_lerobot_is_told_comes_back(tmp_path: Path) -> None:
    """Slots that are called otherwise than the robot's cameras, joints without actions, absolute joints by name."""
    directory = openpi_policy(tmp_path / "openpi", PI0, {"physical-intelligence/libero": plain_stats(8, 7)})
    files = read_policy(directory, "pi0_libero")
    lerobot = public_weights(tmp_path / "lerobot", PI0, "model.")
    files.export(lerobot, "lerobot")
    again = read_policy(lerobot, {"robot": "libero", "uncommanded": ["finger_right"], "rates": files.config.rates})
    changed = {"norm_rule": "lerobot", "prompt_format": "lerobot_pi0", "resize": "lerobot_v05"}
    changed["cameras"] = {name: name for name in files.config.cameras.values()}  # as LeRobot finds them
    assert again.config == dataclasses.replace(files.config, **changed)
    for part in ("state", "actions"):
        for name, value in vars(getattr(files.norm_stats, part)).items():
            np.testing.assert_array_equal(getattr(getattr(again.norm_stats, part), name), value)


def test_what_another_library_cannot_do_is_not_exported(tmp_path: Path) -> None:
    files = read_policy(openpi_policy(tmp_path / "openpi", PI0, {"trossen": plain_stats(14, 14)}), "pi0_aloha")
    with pytest.raises(ConfigError, match="lerobot has no units 'aloha_pi', which the policy needs"):
        files.export(tmp_path, "lerobot")
    ranged = dataclasses.replace(files, config=dataclasses.replace(files.config, norm="min_max"))
    with pytest.raises(ConfigError, match="openpi has no norm 'min_max'"):
        ranged.export(tmp_path, "openpi")
    for to, name, value in (
        ("lerobot", "resize", "lerobot_v03"),
        ("lerobot", "resize", "lerobot_v04"),
        ("openpi", "resize", "lerobot_v03"),
        ("openpi", "units", "lerobot_aloha_pi"),
    ):
        other = dataclasses.replace(files, config=dataclasses.replace(files.config, **{name: value}))
        with pytest.raises(ConfigError, match=f"{to} has no .*{name} '{value}'"):
            other.export(tmp_path, to)
    files.export(public_weights(tmp_path / "again", PI0), "openpi")
    again = read_policy(tmp_path / "again", "pi0_aloha")
    assert again.config == files.config
    np.testing.assert_array_equal(again.norm_stats.state.q99, files.norm_stats.state.q99)


def test_a_policy_is_loaded_by_what_the_command_line_calls_it(openpi: Path) -> None:
    hold = load_policy("hold")
    assert isinstance(hold, HoldPolicy)
    assert hold.robot == ARM6
    assert load_policy("hold", RobotSpec.from_yaml("droid")).robot.name == "droid"
    loaded = load_policy(str(openpi), ARM6, dtype="bfloat16", policy_config=OURS)
    assert isinstance(loaded, Pi0Policy)
    assert loaded.model.embedding.weight.dtype == torch.bfloat16
    assert PolicyConfig.from_dict(loaded.config.to_dict()) == loaded.config


def test_a_small_network_has_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    load_policy("hold")
    assert torch.get_num_threads() == 3
    load_policy("mini")
    assert torch.get_num_threads() == 1
    load_policy("mini", threads=2)
    assert torch.get_num_threads() == 2
    monkeypatch.setattr("pi0_control.policy.policy.SMALL", 1e6)
    load_policy("mini")
    assert torch.get_num_threads() == 2
    with pytest.raises(ConfigError, match="threads is -1; expected 1 or more, or 0"):
        load_policy("mini", threads=-1)
