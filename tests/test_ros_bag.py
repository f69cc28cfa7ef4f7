"""What was put into a bag comes out of it, without ROS."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bags import SECOND, compressed, image, joints, write_bag
from recordings import ROBOT
from rosbags.rosbag2 import StoragePlugin

from pi0_control.errors import DatasetError
from pi0_control.ros.bag import MOMENTS, read_bag

START, MS = 100 * SECOND, SECOND // 1000
STATES = np.linspace((-1, 0), (1, 1), 100).astype(np.float32)  # at 100 Hz
TARGETS = STATES[5::5]  # at 20 Hz, from 50 ms on
NAMES = ("grip", "swing", "another")


def states(names=NAMES) -> list:
    order = [1, 0, 0]
    return [joints(START + 10 * MS * index, names, state[order]) for index, state in enumerate(STATES)]


def targets(shift_ms: int = 0) -> list:
    stamps = START + (50 * np.arange(1, 1 + len(TARGETS)) + shift_ms) * MS
    return [joints(stamp, ("swing", "grip"), each) for stamp, each in zip(stamps.tolist(), TARGETS, strict=True)]


def picture(index: int) -> np.ndarray:
    return np.full((16, 24, 3), (2 * index, 100, 255 - 2 * index), np.uint8)


def pictures(make, every_ms: int = 33) -> list:
    return [make(START + every_ms * MS * index, picture(index)) for index in range(1000 // every_ms)]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    messages = {
        "/arm/joint_states": states(),
        "/joint_commands": targets(),
        "/top/image_raw": pictures(lambda stamp, seen: image(stamp, seen[..., ::-1], "bgr8")),
        "/wrist/image_raw/compressed": pictures(compressed, 100),
    }
    return write_bag(tmp_path / "bag", messages)


def test_states_commands_and_images_come_out(sound: Path) -> None:
    recording = read_bag(sound, ROBOT, {}, commands="joint_commands")
    assert recording.rate_hz == pytest.approx(20)
    assert recording.state_names == recording.action_names == ROBOT.joint_names
    np.testing.assert_allclose(recording.actions, TARGETS)
    np.testing.assert_allclose(recording.states, TARGETS)  # the state of the same moment
    assert {*recording.images} == {"top", "wrist"}
    for camera, count in (("top", MOMENTS), ("wrist", 10)):
        assert len(recording.images[camera]) == count
        assert all(
            np.array_equal(seen[0, 0], picture(int(seen[0, 0, 0]) // 2)[0, 0]) for seen in recording.images[camera]
        )


def test_without_commands_every_joint_state_is_a_moment(sound: Path) -> None:
    recording = read_bag(sound, ROBOT, {})
    assert recording.actions is None
    assert recording.rate_hz is None
    np.testing.assert_allclose(recording.states, STATES)


def test_a_pause_of_the_commands_begins_another_episode(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", {"joint_states": states(), "c": targets()[:5] + targets(400)[5:9]})
    recording = read_bag(path, ROBOT, {}, commands="c")
    assert recording.episode.tolist() == [0] * 5 + [1] * 4


@pytest.mark.parametrize(("every_ms", "rate_hz"), [(10, 20), (25, 20), (40, 25), (100, 10)])
def test_commands_may_be_interpolated_by_a_whole_number(tmp_path: Path, every_ms: int, rate_hz: float) -> None:
    commands = [joints(START + every_ms * MS * i, ("swing", "grip"), state) for i, state in enumerate(STATES)]
    recording = read_bag(
        write_bag(tmp_path / "bag", {"joint_states": states(), "c": commands}), ROBOT, {}, commands="c"
    )
    assert recording.rate_hz == pytest.approx(rate_hz)
    np.testing.assert_allclose(recording.actions, STATES[:: round(1000 / rate_hz / every_ms)])


def test_cameras_may_have_any_topic_and_bags_any_storage(tmp_path: Path) -> None:
    messages = {"/joint_states": states(), "/realsense/color": pictures(image)}
    path = write_bag(tmp_path / "bag", messages, StoragePlugin.SQLITE3)
    assert {*read_bag(path, ROBOT, {"wrist": "realsense/color"}).images} == {"wrist"}


def test_a_topic_at_the_root_goes_before_one_in_a_namespace(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", {"/joint_states": states()[:50], "/arm/joint_states": states()})
    for topic, count in (("joint_states", 50), ("/joint_states", 50), ("/arm/joint_states", 100)):
        assert len(read_bag(bag, ROBOT, {}, topic).states) == count


def test_moments_without_every_joint_are_left_as_not_a_number(tmp_path: Path) -> None:
    alone = [joints(START + 5 * MS + 10 * MS * index, ["grip"], np.ones(1)) for index in range(100)]
    recording = read_bag(write_bag(tmp_path / "bag", {"joint_states": states() + alone}), ROBOT, {})
    assert np.isnan(recording.states).all(1).tolist() == [False, True] * 100


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ({"joints": states()}, {}, "has no sensor_msgs/msg/JointState on 'joint_states'; its topics are ['/joints']"),
        ({"a/joint_states": states(), "b/joint_states": states()}, {}, "could be any of ['/a/joint_states', '/b/"),
        ({"joint_states": pictures(image)}, {}, "joint_states has sensor_msgs/msg/Image; expected sensor_msgs/msg/Joi"),
        ({"joint_states": states(("a", "b", "c"))}, {}, "never has the joints of robot 'two_joints': The joint state"),
        (
            {"joint_states": states(), "top/image_raw": [image(START, picture(0), "16UC1")]},
            {},
            "top/image_raw: The image has encoding '16UC1'; supported",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, messages, options, message) -> None:
    path = write_bag(tmp_path / "bag", {f"/{topic}": some for topic, some in messages.items()})
    with pytest.raises(DatasetError) as caught:
        read_bag(path, ROBOT, {}, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_a_damaged_bag_is_one_error(sound: Path, keep: int) -> None:
    (file,) = sound.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DatasetError, match="is neither a LeRobotDataset nor a rosbag that can be read"):
        read_bag(sound, ROBOT, {})


@pytest.mark.filterwarnings("ignore")  # of the libraries, about what they read
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_whatever_is_damaged_in_a_bag_is_one_error_or_none(storage: str, tmp_path: Path) -> None:
    messages = {"/joint_states": states(), "/top/image_raw": pictures(image)}
    bag = write_bag(tmp_path / "bag", messages, StoragePlugin[storage.upper()])
    random, seen = np.random.default_rng(0), set()
    files = sorted(path for path in bag.rglob("*") if path.is_file())
    for _ in range(60):
        path = files[random.integers(len(files))]
        content = path.read_bytes()
        damaged = bytearray(content)
        for place in random.integers(len(content), size=random.integers(1, 30)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_bag(bag, ROBOT, {})
            seen.add("read")
        except DatasetError:
            seen.add("refused")
        path.write_bytes(content)
    assert seen == {"read", "refused"}


def test_no_ros_is_needed(sound: Path) -> None:
    blocked = "import sys; sys.modules |= dict.fromkeys(('rclpy', 'sensor_msgs', 'builtin_interfaces', 'std_msgs'));"
    read = "from pathlib import Path; from recordings import ROBOT; from pi0_control.ros.bag import read_bag; "
    read += f"print(len(read_bag(Path({str(sound)!r}), ROBOT, {{}}).states))"
    command = [sys.executable, "-c", blocked + read]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.stdout == "100\n", done.stderr
