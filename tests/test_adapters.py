import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from pi0_control.control import adapters
from pi0_control.control.adapters import AxisAngle
from pi0_control.control.mapping import EnvironmentMapping, Layout
from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec

PICTURE, CHW = spaces.Box(0, 255, (4, 6, 3), np.uint8), spaces.Box(0, 255, (3, 4, 6), np.uint8)
WORDS = spaces.Text(30)
ALOHA_CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")


def vector(length: int, bound: float = 10.0, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(-bound, bound, (length,), dtype)


ALOHA_SPACE = spaces.Dict(
    {"state": vector(14), "images": spaces.Dict(dict.fromkeys(ALOHA_CAMERAS, CHW)), "prompt": WORDS}
)
DROID_SPACE = spaces.Dict(
    {
        "observation/exterior_image_1_left": PICTURE,
        "observation/wrist_image_left": PICTURE,
        "observation/joint_position": vector(7),
        "observation/gripper_position": vector(1),
        "prompt": WORDS,
    }
)
LIBERO_SPACE = spaces.Dict(
    {
        "observation": spaces.Dict({"image": PICTURE, "wrist_image": PICTURE, "state": vector(8)}),
        "prompt": WORDS,
    }
)
LIBERO_SIMULATOR_SPACE = spaces.Dict(
    {
        "agentview_image": PICTURE,
        "robot0_eye_in_hand_image": PICTURE,
        "robot0_eef_pos": vector(3, dtype=np.float64),
        "robot0_eef_quat": vector(4, dtype=np.float64),
        "robot0_gripper_qpos": vector(2, dtype=np.float64),
    }
)
UR5_SPACE = spaces.Dict(
    {"base_rgb": PICTURE, "wrist_rgb": PICTURE, "joints": vector(6), "gripper": vector(1), "prompt": WORDS}
)
GYM_ALOHA_SPACE = spaces.Dict({"agent_pos": vector(14, 1000, np.float64), "pixels": spaces.Dict({"top": PICTURE})})
CASES: list[tuple[Layout, str, spaces.Dict, spaces.Box]] = [
    (adapters.aloha(), "aloha", ALOHA_SPACE, vector(14)),
    (adapters.gym_aloha(), "aloha", GYM_ALOHA_SPACE, vector(14, 1)),
    (adapters.droid(), "droid", DROID_SPACE, vector(8, 1)),
    (adapters.droid(control="joint_position"), "droid", DROID_SPACE, vector(8)),
    (adapters.libero(), "libero", LIBERO_SPACE, vector(7, 1)),
    (adapters.libero_simulator("open the drawer"), "libero", LIBERO_SIMULATOR_SPACE, vector(7, 1)),
    (adapters.ur5(), "ur5e", UR5_SPACE, vector(7)),
]


@pytest.mark.parametrize(("layout", "robot", "observations", "actions"), CASES)
def test_each_fits_its_robot_and_maps_what_its_spaces_allow(
    layout: Layout, robot: str, observations: spaces.Dict, actions: spaces.Box
) -> None:
    spec = RobotSpec.from_yaml(robot)
    mapping = EnvironmentMapping(layout, spec, observations, actions)
    observations.seed(0)
    mapped = mapping.observation(observations.sample())
    assert mapped["state"].shape == (len(spec.joints),)
    assert np.isfinite(mapped["state"]).all()
    assert all(image.shape == (4, 6, 3) for image in mapped["images"].values())
    action = mapping.action(spec.home)
    assert action.shape == actions.shape
    assert action.dtype == actions.dtype


def test_rotation_vectors_become_the_quaternions_they_were() -> None:
    values = np.random.default_rng(0).uniform(0.02, 1, (20, 4))
    values = values * [1, -1, 1, 1] / np.linalg.norm(values, axis=-1, keepdims=True)
    values[10:, 3] *= -1  # turns by more than half a revolution
    before = values.copy()
    np.testing.assert_allclose(AxisAngle().to_environment(AxisAngle().to_robot(values)), values, atol=1e-9)
    np.testing.assert_array_equal(values, before)


def test_quaternions_become_rotation_vectors() -> None:
    half = math.sqrt(0.5)
    quaternions = np.array([[0, 0, 0, 1.0], [0, 0, half, half], [1.0, 0, 0, 0]])
    expected = [[0, 0, 0], [0, 0, math.pi / 2], [math.pi, 0, 0]]
    np.testing.assert_allclose(AxisAngle().to_robot(quaternions), expected, atol=1e-12)


def test_libero_s_simulator_hangs_upside_down() -> None:
    observation = LIBERO_SIMULATOR_SPACE.sample()
    mapping = EnvironmentMapping(
        *mapping_parts("libero", adapters.libero_simulator("stack"), LIBERO_SIMULATOR_SPACE, 7)
    )
    images = mapping.observation(observation)["images"]
    np.testing.assert_array_equal(images["agentview"], np.rot90(observation["agentview_image"], 2))
    np.testing.assert_array_equal(images["eye_in_hand"], np.rot90(observation["robot0_eye_in_hand_image"], 2))


def test_droid_clips_velocities_and_opens_or_closes_the_gripper() -> None:
    mapping = EnvironmentMapping(*mapping_parts("droid", adapters.droid(), DROID_SPACE, 8))
    rows: NDArray[np.float32] = np.array([[2, -2, 0.5, 0, 0, 0, 0, grip] for grip in (0.4, 0.5, 0.6)], np.float32)
    actions = mapping.action(rows)
    np.testing.assert_array_equal(actions[0, :3], [1, -1, 0.5])
    assert actions[:, 7].tolist() == [0, 0, 1]


def test_gym_aloha_has_one_camera_and_radians_beyond_its_action_space() -> None:
    mapping = EnvironmentMapping(*mapping_parts("aloha", adapters.gym_aloha(), GYM_ALOHA_SPACE, 14))
    mapped = mapping.observation(GYM_ALOHA_SPACE.sample())
    assert [*mapped["images"]] == ["cam_high"]
    assert mapped["prompt"] == "Transfer cube"
    assert mapping.action(np.full(14, 1.16))[2] == np.float32(1.16)


def test_an_aloha_without_wrists_shows_none() -> None:
    layout = adapters.aloha(cameras=["cam_high"])
    mapping = EnvironmentMapping(*mapping_parts("aloha", layout, ALOHA_SPACE, 14))
    assert [*mapping.observation(ALOHA_SPACE.sample())["images"]] == ["cam_high"]
    with pytest.raises(ConfigError, match=r"\['cam_low'\] are not used"):
        adapters.aloha(cameras=ALOHA_CAMERAS)


def mapping_parts(
    robot: str, layout: Layout, observations: spaces.Dict, width: int
) -> tuple[Layout, RobotSpec, spaces.Dict, spaces.Box]:
    return layout, RobotSpec.from_yaml(robot), observations, vector(width, 1)
