"""Messages to arrays and back, with refusals that name what is wrong."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from sensor_msgs.msg import CompressedImage, Image, JointState

from pi0_control.errors import ObservationError
from pi0_control.ros.conversions import (
    image_message,
    joint_state_message,
    positions_message,
    to_stamp,
    trajectory_message,
)
from pi0_control.ros.reading import image_format, joint_positions, rgb_image, to_ns

NAMES = ("a", "b", "c")
PICTURES = nps.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))


def encoded(picture: np.ndarray, encoding: str, padding: int = 0) -> Image:
    """The picture as a driver would send it, with so many bytes after each row."""
    alpha = np.full((*picture.shape[:2], 1), 7, np.uint8)
    pixels = {
        "rgb8": picture,
        "bgr8": picture[..., ::-1],
        "rgba8": np.concatenate([picture, alpha], axis=-1),
        "bgra8": np.concatenate([picture[..., ::-1], alpha], axis=-1),
        "mono8": picture[..., :1],
    }[encoding]
    height, width = picture.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), [(0, 0), (0, padding)], constant_values=99)
    message = Image(height=height, width=width, encoding=encoding, step=rows.shape[1])
    message.data = rows.tobytes()
    return message


@given(PICTURES, st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "mono8"]), st.integers(0, 4))
def test_every_encoding_and_step_gives_the_same_picture(picture: np.ndarray, encoding: str, padding: int) -> None:
    expected = np.repeat(picture[..., :1], 3, axis=-1) if encoding == "mono8" else picture
    message = encoded(picture, encoding, padding)
    assert np.array_equal(rgb_image(message), expected)
    assert image_format(message) == f"{picture.shape[1]}x{picture.shape[0]} {encoding}"


@given(PICTURES, st.integers(0, 2**62))
def test_an_image_message_keeps_picture_and_stamp(picture: np.ndarray, stamp_ns: int) -> None:
    stamp_ns %= 2**31 * 10**9
    message = image_message(picture, stamp_ns, "wrist")
    assert np.array_equal(rgb_image(message), picture)
    assert (to_ns(message.header.stamp), message.header.frame_id) == (stamp_ns, "wrist")


def test_compressed_images_are_decoded() -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[..., 0] = 200  # red
    data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    assert np.array_equal(rgb_image(CompressedImage(format="png", data=data)), picture)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1'; supported: .*'bgr8'"),
        ({"height": 0}, "says 4x0"),
        ({"height": 3}, "4x3 rgb8 in rows of 12 bytes and has 24 bytes"),
        ({"step": 11}, "rows of at least 12"),
    ],
)
def test_an_image_that_contradicts_itself_is_refused(change: dict[str, object], words: str) -> None:
    message = encoded(np.zeros((2, 4, 3), np.uint8), "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=words):
        rgb_image(message)


@pytest.mark.parametrize(("data", "words"), [(b"", "empty"), (b"no picture", "cannot be decoded")])
def test_a_broken_compressed_image_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        rgb_image(CompressedImage(format="jpeg", data=data))


@given(st.permutations([("a", 1.0), ("b", 2.0), ("c", 3.0), ("mimic", np.nan)]))
def test_joints_are_found_by_name(joints: list[tuple[str, float]]) -> None:
    names, positions = zip(*joints, strict=True)
    message = JointState(name=names, position=positions, velocity=[np.nan] * 4)
    assert joint_positions(message, NAMES).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("names", "positions", "words"),
    [
        (["a", "c"], [1.0, 2.0], r"lacks \['b'\]"),
        (["a", "b", "c", "b"], [1.0] * 4, r"\['b'\] more than once"),
        (["a", "b", "c"], [1.0, 2.0], "3 names and 2 positions"),
        (["a", "b", "c"], [1.0, np.nan, np.inf], r"\['b', 'c'\] is not finite"),
    ],
)
def test_a_joint_state_that_is_not_whole_is_refused(names: list[str], positions: list[float], words: str) -> None:
    with pytest.raises(ObservationError, match=words):
        joint_positions(JointState(name=names, position=positions), NAMES)


def test_commands_become_messages() -> None:
    message = joint_state_message(np.float32([0.5, 1, 2]), NAMES, 3_000_000_001)
    assert (list(message.name), list(message.position)) == (["a", "b", "c"], [0.5, 1.0, 2.0])
    assert message.header.stamp == to_stamp(3_000_000_001)
    assert list(positions_message([0.5, 1, 2]).data) == [0.5, 1.0, 2.0]


def test_a_trajectory_has_times_and_velocities_and_ends_standing() -> None:
    message = trajectory_message([[0.0], [1.0], [3.0]], [0.5, 1.0, 1.5], ["a"], 7_000_000_000)
    assert message.header.stamp == to_stamp(7_000_000_000)
    assert [(p.time_from_start.sec, p.time_from_start.nanosec) for p in message.points] == [
        (0, 500_000_000),
        (1, 0),
        (1, 500_000_000),
    ]
    assert [list(point.positions) for point in message.points] == [[0.0], [1.0], [3.0]]
    assert [list(point.velocities) for point in message.points] == [[2.0], [3.0], [0.0]]
    (hold,) = trajectory_message([[1.0, 2.0]], [0.05], ["a", "b"], 0).points
    assert list(hold.velocities) == [0.0, 0.0]
