"""Parameters: declared once, checked by name."""

from dataclasses import fields
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from swaying_policy import ARM6

from pi0_control.control import ChunkingConfig, SafetyConfig
from pi0_control.errors import ConfigError
from pi0_control.ros.parameters import TABLE, NodeConfig

DEFAULTS = {name: entry.default for name, entry in TABLE.items()}


def configured(**changes: Any) -> NodeConfig:
    return NodeConfig.from_values(DEFAULTS | {name.replace("__", "."): value for name, value in changes.items()})


def test_the_defaults_are_those_of_the_configurations_they_make() -> None:
    config = configured()
    assert config.chunking == ChunkingConfig("async")
    assert config.safety == SafetyConfig()
    assert config.cameras_of(ARM6) == ARM6.cameras


def test_every_setting_has_a_parameter() -> None:
    settings = {f"chunking.{entry.name}" for entry in fields(ChunkingConfig)}
    settings |= {f"safety.{entry.name}" for entry in fields(SafetyConfig)}
    settings |= {entry.name for entry in fields(NodeConfig)} - {"chunking", "safety"}
    assert {*TABLE} == settings


def test_every_parameter_says_what_it_is_and_numbers_have_bounds() -> None:
    for name, entry in TABLE.items():
        descriptor = entry.descriptor()
        assert descriptor.description, name
        if isinstance(entry.default, int | float) and not isinstance(entry.default, bool):
            assert descriptor.floating_point_range or descriptor.integer_range, name
        if name.endswith("_s"):
            assert "[s]" in descriptor.description, name
        assert not entry.choices or entry.default in entry.choices, name


def test_values_that_stand_for_none() -> None:
    config = configured(chunking__execution_horizon=4, chunking__max_delay=0, chunking__first_delay=-1)
    assert (config.chunking.execution_horizon, config.chunking.max_delay) == (4, 0)
    assert config.chunking.first_delay is None
    assert configured(safety__max_prompt_age_s=2.0).safety.max_prompt_age_s == 2.0


def test_ages_of_single_cameras_are_given_by_name() -> None:
    config = configured(safety__camera_ages_s="left_wrist_0_rgb=0.2 base_0_rgb=1")
    assert config.safety.camera_ages_s == {"left_wrist_0_rgb": 0.2, "base_0_rgb": 1.0}


def test_cameras_are_in_the_robots_order() -> None:
    assert configured(cameras="left_wrist_0_rgb base_0_rgb").cameras_of(ARM6) == ("base_0_rgb", "left_wrist_0_rgb")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "wings"}, "Parameter output is 'wings'; expected one of .*'trajectory'"),
        ({"chunking__strategy": "luck"}, "Parameter chunking.strategy is 'luck'; expected one of .*'rtc'"),
        ({"safety__max_jump_s": 0.0}, r"Parameters safety.\*: max_jump_s is 0.0; expected a finite number above zero"),
        ({"safety__near_s": 0.4}, r"Parameters safety.\*: near_s is 0.4; expected less than max_jump_s"),
        ({"safety__camera_ages_s": "base_0_rgb"}, "safety.camera_ages_s is 'base_0_rgb'; expected such as"),
        ({"safety__camera_ages_s": "base_0_rgb=0"}, r"Parameters safety.\*: camera_ages_s\['base_0_rgb'\] is 0.0"),
        ({"lock_step": True, "output": "positions"}, "output is 'positions'; expected 'joint_state' with lock_step"),
        ({"lock_step": True, "grippers": "apart"}, "grippers is 'apart'; expected 'with_arm' with lock_step"),
        ({"lock_step": True, "chunking__interpolation": 2}, "chunking.interpolation is 2; expected 1 with lock_step"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(**changes)


def test_a_camera_that_the_robot_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cameras has \['nose'\]; robot 'arm6' has \['base_0_rgb'"):
        configured(cameras="nose base_0_rgb").cameras_of(ARM6)
