import numpy as np
import pytest
import yaml

from pi0_control.errors import ConfigError
from pi0_control.robot import ROBOTS_DIR, RobotSpec


def test_bundled_robot_is_six_joints_and_a_gripper() -> None:
    robot = RobotSpec.from_yaml("arm6")
    assert [joint.kind for joint in robot.joints] == ["revolute"] * 6 + ["gripper"]
    assert (robot.lower < robot.upper).all()
    assert robot.gripper_mask.tolist() == [False] * 6 + [True]
    assert robot.dt_s == pytest.approx(0.05)


def test_dict_round_trip() -> None:
    robot = RobotSpec.from_yaml("arm6")
    assert RobotSpec.from_dict(robot.to_dict()) == robot


def test_a_joints_acceleration_may_be_left_out() -> None:
    values = RobotSpec.from_yaml("arm6").to_dict()
    assert "max_acceleration" not in values["joints"][0]
    values["joints"][0]["max_acceleration"] = 20.0
    robot = RobotSpec.from_dict(values)
    assert [joint.max_acceleration for joint in robot.joints[:2]] == [20.0, None]
    assert RobotSpec.from_dict(robot.to_dict()) == robot


def test_unknown_robot_names_the_bundled_ones() -> None:
    with pytest.raises(ConfigError, match=r"No robot file 'nobody'.*'arm6'"):
        RobotSpec.from_yaml("nobody")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": []}, "joints with distinct names"),
        ({"cameras": ["a", "a"]}, "cameras with distinct names"),
        ({"control_rate_hz": 0}, "control_rate_hz 0"),
        ({"colour": "red"}, "expected exactly the keys"),
        ({1: "red"}, "expected exactly the keys"),
        ({"name": 6}, "name is 6; expected text"),
        ({"joints": None}, "joints is None; expected a list"),
        ({"joints": [None]}, "joint 0 has NoneType; expected exactly the keys"),
        ({"cameras": "top"}, "cameras is 'top'; expected a list"),
        ({"cameras": ["top", 2]}, r"cameras\[1\] is 2; expected text"),
        ({"control_rate_hz": "fast"}, "control_rate_hz is 'fast'; expected a finite number"),
        ({"control_rate_hz": float("inf")}, "control_rate_hz is inf; expected a finite number"),
        ({"control_rate_hz": True}, "control_rate_hz is True; expected a finite number"),
    ],
)
def test_wrong_values_are_refused(tmp_path, change, message) -> None:
    values = yaml.safe_load((ROBOTS_DIR / "arm6.yaml").read_text()) | change
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        RobotSpec.from_yaml(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ball"}, "kind 'ball'"),
        ({"lower": 9.0}, "expected lower < upper"),
        ({"home": 9.0}, "home 9.0 outside"),
        ({"max_effort": 0}, "above zero"),
        ({"max_acceleration": 0}, "max_acceleration 0; expected above zero"),
        ({"max_acceleration": "fast"}, "joint 0: max_acceleration is 'fast'; expected a finite number"),
        ({"name": None}, "joint 0: name is None; expected text"),
        ({"lower": "low"}, "joint 0: lower is 'low'; expected a finite number"),
        ({"home": False}, "joint 0: home is False; expected a finite number"),
        ({"upper": float("nan")}, "joint 0: upper is nan; expected a finite number"),
    ],
)
def test_wrong_joints_are_refused(change, message) -> None:
    values = RobotSpec.from_yaml("arm6").to_dict()
    values["joints"][0] |= change
    with pytest.raises(ConfigError, match=message):
        RobotSpec.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x80", "not text in UTF-8; expected YAML"), (b"a: [", "not YAML"), (b"", "NoneType")],
)
def test_a_file_that_is_not_a_robot_is_refused(tmp_path, content, message) -> None:
    file = tmp_path / "robot.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RobotSpec.from_yaml(file)


def test_columns_follow_command_order() -> None:
    robot = RobotSpec.from_yaml("arm6")
    np.testing.assert_array_equal(robot.home, np.array([joint.home for joint in robot.joints], np.float32))
