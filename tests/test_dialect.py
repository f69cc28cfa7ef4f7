from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pi0_control.control import adapters
from pi0_control.control.dialect import Dialect
from pi0_control.control.mapping import Layout
from pi0_control.errors import ConfigError, ObservationError
from pi0_control.robot import RobotSpec

IMAGE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
LIBERO: dict[str, Any] = {
    "observation/image": IMAGE,
    "observation/wrist_image": IMAGE,
    "observation/state": np.arange(8, dtype=np.float32),
    "prompt": "open the drawer",
}


def dialect(layout: Layout, robot: str) -> Dialect:
    return Dialect(layout, RobotSpec.from_yaml(robot), layout.rates)


def test_openpi_s_libero_client_is_understood_and_gets_its_seven_entries() -> None:
    libero = dialect(adapters.libero(), "libero")
    read = libero.read(LIBERO)
    assert sorted(read["images"]) == ["agentview", "eye_in_hand"]
    assert (read["prompt"], read["state"].tolist()) == ("open the drawer", [*range(8)])
    actions = libero.actions(np.arange(16).reshape(2, 8))
    assert actions.dtype == np.float32
    assert actions.tolist() == [[*range(7)], [*range(8, 15)]]


def test_openpi_s_aloha_client_sends_channels_first_and_may_lack_wrists() -> None:
    message = {"state": np.zeros(14), "images": {"cam_high": IMAGE.transpose(2, 0, 1), "cam_low": None}, "prompt": "x"}
    images = dialect(adapters.aloha(), "aloha").read(message)["images"]
    np.testing.assert_array_equal(images["cam_high"], IMAGE)
    assert [*images] == ["cam_high"]


def test_openpi_s_droid_client_gets_an_open_or_a_closed_gripper() -> None:
    droid = dialect(adapters.droid(), "droid")
    chunk = np.full((2, 8), 3.0) * [[0.1], [1]]
    np.testing.assert_allclose(droid.actions(chunk), [[*[0.3] * 7, 0], [*[3.0] * 7, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"observation/state": np.zeros(3)},
        {"observation/state": np.zeros((2, 3, 8))[..., :5]},
        {"observation/state": "left"},
        {"observation/state": {"a": 1}},
        {"observation/image": np.zeros(3)},
        {"observation/image": "cat"},
        {"observation/image": np.full((4, 6, 3), np.nan)},
    ],
)
def test_what_is_no_observation_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ObservationError):
        dialect(adapters.libero(), "libero").read({**LIBERO, **change})
    for missing in ("observation/state", "prompt"):
        with pytest.raises(ObservationError, match=missing):
            dialect(adapters.libero(), "libero").read({key: LIBERO[key] for key in LIBERO if key != missing})


def test_a_layout_of_another_robot_is_refused() -> None:
    with pytest.raises(ConfigError, match="robot 'droid' has cameras"):
        dialect(adapters.libero(), "droid")


@pytest.mark.parametrize("control", ["joint_velocity", "joint_position"])
def test_positions_do_not_go_to_clients_that_take_velocities_nor_the_other_way_round(control: Any) -> None:
    layout, robot = adapters.droid(control=control), RobotSpec.from_yaml("droid")
    others = () if layout.rates else robot.joint_names[:7]
    for wrong in (others, robot.joint_names):
        with pytest.raises(ConfigError, match="by velocities or steps, and clients of the layout take"):
            Dialect(layout, robot, wrong)


@pytest.mark.parametrize("where", ["state", "action", "uncommanded"])
def test_a_joint_that_is_listed_twice_is_refused(where: str) -> None:
    layout = adapters.ur5()
    twice = [*getattr(layout, where), "gripper" if where == "uncommanded" else layout.action[0]]
    with pytest.raises(ConfigError, match="expected once each"):
        dialect(replace(layout, **{where: twice}), "ur5e")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message", "seen"),
    [
        ({"prompt_key": "meta/task"}, {}, "fold"),
        ({"prompt_key": "meta/task"}, {"meta": {"task": "pour"}}, "pour"),
        ({"prompt_key": None, "prompt": "stack"}, {}, "fold"),
        ({"prompt_key": None, "prompt": "stack"}, {"prompt": "pour"}, "fold"),
    ],
)
def test_a_message_without_an_instruction_gets_the_servers(
    given: dict[str, Any], message: dict[str, Any], seen: str
) -> None:
    layout, robot = replace(adapters.ur5(), **given), RobotSpec.from_yaml("ur5e")
    message = {"joints": np.zeros(6), "gripper": np.zeros(1), **message}
    assert Dialect(layout, robot, prompt="fold").read(message)["prompt"] == seen
    if given.get("prompt"):
        assert Dialect(layout, robot).read(message)["prompt"] == "stack"
