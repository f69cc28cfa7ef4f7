from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from pi0_control.control.mapping import INVERTED_GRIPPER, Affine, Entries, EnvironmentMapping, Layout, Picture
from pi0_control.errors import ConfigError, ObservationError
from pi0_control.robot import RobotSpec

ARM6 = RobotSpec.from_yaml("arm6")
BASE, LEFT, RIGHT = ARM6.cameras
JOINTS = ARM6.joint_names
DEGREES = Affine(float(np.pi / 180))
OBSERVATIONS = spaces.Dict(
    {
        "pixels": spaces.Dict(
            {"front": spaces.Box(0, 255, (4, 6, 3), np.uint8), "hand": spaces.Box(0, 1, (3, 5, 2), np.float32)}
        ),
        "arm/deg": spaces.Box(-200, 200, (7,), np.float64),  # the joints in another order, and a pressure
        "gripper": spaces.Box(0, 1, (1,), np.float32),  # 1 is closed
        "task": spaces.Text(20),
    }
)
ACTIONS = spaces.Dict(
    {"arm": spaces.Box(-160, 160, (6,), np.float32), "hand": spaces.Dict({"grip": spaces.Box(0, 1, (1,), np.float32)})}
)
LAYOUT = Layout(
    pictures={BASE: Picture("pixels/front", is_rotated=True), LEFT: Picture("pixels/hand", "chw"), RIGHT: None},
    state=[Entries((*JOINTS[5::-1], None), "arm/deg", DEGREES), Entries(JOINTS[6:], "gripper", INVERTED_GRIPPER)],
    action=[Entries(JOINTS[:6], "arm", DEGREES), Entries(JOINTS[6:], "hand/grip", INVERTED_GRIPPER)],
    prompt_key="task",
)


def mapping(**changes: Any) -> EnvironmentMapping:
    return EnvironmentMapping(replace(LAYOUT, **changes), ARM6, OBSERVATIONS, ACTIONS)


def observe(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "pixels": {
            "front": rng.integers(0, 256, (4, 6, 3), np.uint8),
            "hand": (rng.integers(0, 256, (3, 5, 2)) / 255).astype(np.float32),
        },
        "arm/deg": np.array([60.0, 50, 40, 30, 20, 10, 99]),
        "gripper": np.array([0.25], np.float32),
        "task": "push the button",
    }


def test_an_observation_in_robot_terms() -> None:
    seen = observe()
    mapped = mapping().observation(seen)
    np.testing.assert_allclose(mapped["state"], [*np.deg2rad([10, 20, 30, 40, 50, 60]), 0.75], rtol=1e-6)
    assert mapped["state"].dtype == np.float32
    assert mapped["images"].keys() == {BASE, LEFT}
    np.testing.assert_array_equal(mapped["images"][BASE][0, 0], seen["pixels"]["front"][3, 5])
    np.testing.assert_array_equal(mapped["images"][LEFT] / np.float32(255), np.moveaxis(seen["pixels"]["hand"], 0, -1))
    assert mapped["images"][LEFT].shape == (5, 2, 3)
    assert mapped["prompt"] == "push the button"
    assert mapping(prompt="wave", prompt_key=None).observation(seen)["prompt"] == "wave"


def test_an_action_in_the_environment_s_terms_within_its_bounds() -> None:
    action = mapping().action(np.array([0.1, 0.2, 0.3, -0.4, 0.5, 9.0, 0.25], np.float32))
    np.testing.assert_allclose(action["arm"], [*np.rad2deg([0.1, 0.2, 0.3, -0.4, 0.5]), 160], rtol=1e-6)
    np.testing.assert_allclose(action["hand"]["grip"], [0.75])
    assert ACTIONS.contains(action)
    assert mapping(is_clipped=False).action(np.full(7, 9.0))["arm"][0] == pytest.approx(np.rad2deg(9.0))


class EchoEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    observation_space = OBSERVATIONS
    action_space = ACTIONS

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {**observe(seed or 0), "task": "push"}, {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        degrees = np.array([*action["arm"][::-1], 99.0])
        return {**observe(), "arm/deg": degrees, "gripper": action["hand"]["grip"], "task": "push"}, 0, False, False, {}


def test_a_vector_environment_is_mapped_row_by_row_and_closes_the_loop() -> None:
    envs = gym.vector.SyncVectorEnv([EchoEnv] * 3)
    many = EnvironmentMapping(LAYOUT, ARM6, envs.single_observation_space, envs.single_action_space)
    together = many.observation(envs.reset(seed=4)[0])
    for row in range(3):
        alone = many.observation(EchoEnv().reset(seed=4 + row)[0])
        np.testing.assert_array_equal(together["state"][row], alone["state"])
        for name in alone["images"]:
            np.testing.assert_array_equal(together["images"][name][row], alone["images"][name])
    assert list(together["prompt"]) == ["push"] * 3
    targets = np.random.default_rng(0).uniform(0, 1, (3, 7)).astype(np.float32)
    after = many.observation(envs.step(many.action(targets))[0])
    np.testing.assert_allclose(after["state"], targets, atol=1e-6)
    constant = EnvironmentMapping(replace(LAYOUT, prompt="go", prompt_key=None), ARM6, OBSERVATIONS, ACTIONS)
    assert constant.observation(envs.reset()[0])["prompt"] == ["go"] * 3
    envs.close()


def test_a_flat_action_space_takes_a_vector() -> None:
    flat = spaces.Box(-4, 4, (8,), np.float32)
    entries = [Entries((None, *JOINTS[::-1]))]
    action = EnvironmentMapping(replace(LAYOUT, action=entries), ARM6, OBSERVATIONS, flat).action(np.arange(7) / 10)
    np.testing.assert_allclose(action, [0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


def test_every_difference_is_listed_at_once() -> None:
    wrong = Layout(
        pictures={BASE: Picture("pixels/top"), LEFT: Picture("pixels/hand"), "cam_low": None},
        state=[Entries(JOINTS[:5], "arm/deg"), Entries((*JOINTS[4:6], "thumb"), "grip")],
        action=[Entries(JOINTS[:5], "arm"), Entries(JOINTS[5:], "hand")],
        prompt_key="gripper",
        rates=("wheel",),
    )
    with pytest.raises(ConfigError) as refused:
        EnvironmentMapping(wrong, ARM6, OBSERVATIONS, ACTIONS)
    for words in (
        "camera 'cam_low' is none of the robot's",
        f"camera {RIGHT!r} is not mapped, expected a picture, or None",
        f"camera {BASE!r} is at 'pixels/top', which does not exist",
        f"camera {LEFT!r} is Box(0.0, 1.0, (3, 5, 2), float32) at 'pixels/hand', expected [H, W, 3]",
        "joint 'wrist' is 2 times in the state",
        "joint 'gripper' is 0 times in the state",
        "joint 'thumb' of the state is none of the robot's",
        "reads 'arm/deg' of shape [7], which gives shape [7], expected 5",
        "reads 'grip', which is missing, expected a Box",
        "the prompt is at 'gripper', which is Box(",
        "rate 'wheel' is no joint of the robot",
        "the action gives nothing for 'hand/grip'",
        "the action gives shape [5] for ['waist', 'shoulder', 'elbow', 'forearm', 'wrist'], expected [6] of 'arm'",
        "the action goes to 'hand', which is Dict(",
        "Available: observation {'arm/deg': '[7] float64', 'gripper'",
    ):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": [replace(LAYOUT.action[0], conversion=Affine(0.001)), LAYOUT.action[1]]}, "'elbow' rests at 1750"),
        ({"state": [replace(LAYOUT.state[0], conversion=Affine((1.0, 2.0))), LAYOUT.state[1]]}, "does not take"),
        ({"prompt": "wave"}, "expected one of the two"),
        ({"prompt_key": None}, "expected one of the two"),
    ],
)
def test_wrong_units_widths_and_prompts_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mapping(**change)


def test_a_conversion_has_to_be_invertible() -> None:
    for scale in (0.0, (1.0, 0.0), float("nan")):
        with pytest.raises(ConfigError, match="cannot be inverted"):
            Affine(scale)


def image(value: float, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    return {**observe()["pixels"], "hand": np.full((3, 5, 2), value, dtype)}


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({"pixels": {}}, r"The observation is \[\]; expected 'arm/deg' in it"),
        (None, "is NoneType"),
        ({**observe(), "arm/deg": np.zeros(4)}, r"'arm/deg' of the observation is array\(\[0., 0., 0., 0.\]\)"),
        ({**observe(), "arm/deg": "far"}, "expected numbers"),
        ({**observe(), "pixels": image(1.5)}, "leaves 0 to 1"),
        ({**observe(), "pixels": image(np.nan)}, "leaves 0 to 1"),
        ({**observe(), "pixels": image(1, np.int64)}, "expected an RGB image"),
    ],
)
def test_an_observation_that_is_not_as_its_space_is_refused(observation: Any, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        mapping().observation(observation)
