"""Layouts of well-known environments: ALOHA, DROID, LIBERO and UR5, as openpi's clients send them and as simulators do.

Each goes with a bundled robot file, and from there the joints have their names. The gripper conventions are those of
the public checkpoints and differ from robot to robot; the robot files say which.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pi0_control.control.mapping import Entries, Layout, Picture
from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec

DROID_GRIPPER_THRESHOLD = 0.5


@dataclass(frozen=True)
class DroidAction:
    """DROID's gripper, the last entry of [..., 8], is either opened or closed."""

    def to_robot(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Unchanged."""
        return values

    def to_environment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """1 (closed) above the threshold, else 0."""
        return np.concatenate([values[..., :-1], values[..., -1:] > DROID_GRIPPER_THRESHOLD], axis=-1)


@dataclass(frozen=True)
class AxisAngle:
    """Quaternions (x, y, z, w) there, rotation vectors [rad] here, of 0 to 2π as robosuite and openpi have them."""

    def to_robot(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., 4] to [..., 3]."""
        if values.shape[-1] != 4:
            raise ValueError(f"quaternions of {values.shape[-1]} entries")
        cosine = np.clip(values[..., 3:], -1, 1)
        sine = np.sqrt(1 - cosine**2)
        return values[..., :3] * np.where(sine > 1e-9, 2 * np.arccos(cosine) / np.maximum(sine, 1e-9), 0)

    def to_environment(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[..., 3] to [..., 4]."""
        angle = np.linalg.norm(values, axis=-1, keepdims=True)
        return np.concatenate([values * np.sinc(angle / (2 * np.pi)) / 2, np.cos(angle / 2)], axis=-1)


def aloha(cameras: Collection[str] = ("cam_high", "cam_left_wrist", "cam_right_wrist")) -> Layout:
    """A real ALOHA: ``state`` [14], ``images/cam_high`` and wrists uint8 [3, H, W], ``prompt``; an action [14].

    Goes with robot ``aloha``; a policy that was trained in other units says so itself. A camera that the station lacks
    is left out of ``cameras``; others, such as cam_low, are not looked at.

    Raises:
        ConfigError: a camera that the robot file does not have.
    """
    robot = RobotSpec.from_yaml("aloha")
    unknown = sorted({*cameras} - {*robot.cameras})
    if unknown:
        raise ConfigError(f"ALOHA's cameras {unknown} are not used; expected some of {list(robot.cameras)}.")
    return Layout(
        pictures={name: Picture(f"images/{name}", "chw") if name in cameras else None for name in robot.cameras},
        state=[Entries(robot.joint_names, "state")],
        action=[Entries(robot.joint_names)],
        prompt_key="prompt",
        is_clipped=False,  # gym-aloha declares -1 .. 1 and takes radians; stations declare nothing
    )


def gym_aloha(prompt: str = "Transfer cube") -> Layout:
    """gym-aloha with ``obs_type="pixels_agent_pos"``: ``agent_pos`` [14] and one camera ``pixels/top`` [H, W, 3]."""
    station = aloha(cameras=())
    return replace(
        station,
        pictures={**station.pictures, "cam_high": Picture("pixels/top")},
        state=[replace(entries, key="agent_pos") for entries in station.state],
        prompt=prompt,
        prompt_key=None,
    )


def droid(*, control: Literal["joint_velocity", "joint_position"] = "joint_velocity") -> Layout:
    """DROID: two cameras, ``observation/joint_position`` [7], ``observation/gripper_position`` [1], ``prompt``.

    The action [8] is as the policy's makers say: velocities of the joints (-1 to 1), or their positions; then the
    gripper, which is opened or closed entirely. Goes with robot ``droid``.
    """
    robot = RobotSpec.from_yaml("droid")
    return Layout(
        pictures={name: Picture(f"observation/{name}") for name in robot.cameras},
        state=[
            Entries(robot.joint_names[:7], "observation/joint_position"),
            Entries(robot.joint_names[7:], "observation/gripper_position"),
        ],
        action=[Entries(robot.joint_names, "", DroidAction())],
        prompt_key="prompt",
        rates=robot.joint_names[:7] if control == "joint_velocity" else (),
    )


def libero() -> Layout:
    """LIBERO as openpi's client sends it: upright images, ``observation/state`` [8], ``prompt``; an action [7].

    The action is a step of the hand and the gripper, so commands are no positions. Goes with robot ``libero``. LIBERO
    drops its objects at first: give it ten actions of zeros and an open gripper (-1) before the policy plays.
    """
    robot = RobotSpec.from_yaml("libero")
    return Layout(
        pictures={"agentview": Picture("observation/image"), "eye_in_hand": Picture("observation/wrist_image")},
        state=[Entries(robot.joint_names, "observation/state")],
        action=[Entries(robot.joint_names[:7])],
        prompt_key="prompt",
        uncommanded=robot.joint_names[7:],
        rates=robot.joint_names[:7],
    )


def libero_simulator(prompt: str) -> Layout:
    """LIBERO's simulator itself, with robosuite's names: its images hang upside down and its hand has a quaternion."""
    names = RobotSpec.from_yaml("libero").joint_names
    return replace(
        libero(),
        pictures={
            "agentview": Picture("agentview_image", is_rotated=True),
            "eye_in_hand": Picture("robot0_eye_in_hand_image", is_rotated=True),
        },
        state=[
            Entries(names[:3], "robot0_eef_pos"),
            Entries(names[3:6], "robot0_eef_quat", AxisAngle()),
            Entries(names[6:], "robot0_gripper_qpos"),
        ],
        prompt=prompt,
        prompt_key=None,
    )


def ur5() -> Layout:
    """openpi's example of a UR5: ``base_rgb``, ``wrist_rgb``, ``joints`` [6], ``gripper`` [1], ``prompt``; action [7].

    Goes with robot ``ur5e``.
    """
    robot = RobotSpec.from_yaml("ur5e")
    return Layout(
        pictures={name: Picture(name) for name in robot.cameras},
        state=[Entries(robot.joint_names[:6], "joints"), Entries(robot.joint_names[6:], "gripper")],
        action=[Entries(robot.joint_names)],
        prompt_key="prompt",
    )
