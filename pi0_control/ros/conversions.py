"""ROS messages to arrays and back. What a message does not say is refused, never guessed or filled in."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi0_control.errors import ObservationError

TO_RGB: dict[str, tuple[int, int | None]] = {  # channels, OpenCV's conversion
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
NS = 1_000_000_000


def to_ns(stamp: Time) -> int:
    """A stamp in nanoseconds: whole numbers, since seconds of today as a float are off by a tenth of a microsecond."""
    return stamp.sec * NS + stamp.nanosec


def to_stamp(stamp_ns: int) -> Time:
    """The inverse of :func:`to_ns`."""
    return Time(sec=stamp_ns // NS, nanosec=stamp_ns % NS)


def image_format(message: Image | CompressedImage) -> str:
    """Size and encoding in words, such as ``640x480 rgb8``; looks at no pixel.

    Raises:
        ObservationError: an encoding that is not supported, no pixels, or other than ``height * step`` bytes of them.
    """
    if isinstance(message, CompressedImage):
        if not len(message.data):
            raise ObservationError("The compressed image is empty.")
        return message.format
    if message.encoding not in TO_RGB:
        raise ObservationError(f"The image has encoding {message.encoding!r}; supported: {list(TO_RGB)}.")
    height, width, step = message.height, message.width, message.step
    row = width * TO_RGB[message.encoding][0]
    if not (height and width and step >= row and len(message.data) == height * step):
        raise ObservationError(
            f"The image says {width}x{height} {message.encoding} in rows of {step} bytes and has {len(message.data)} "
            f"bytes; expected rows of at least {row} and height times so many."
        )
    return f"{width}x{height} {message.encoding}"


def rgb_image(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """The pixels, uint8 RGB [H, W, 3]; a view into the message where that is possible.

    Raises:
        ObservationError: as :func:`image_format`, or compressed data that cannot be decoded.
    """
    image_format(message)
    data = np.frombuffer(message.data, np.uint8)
    if isinstance(message, CompressedImage):
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if decoded is None:
            raise ObservationError(f"The compressed image ({message.format!r}) cannot be decoded.")
        return _converted(decoded, cv2.COLOR_BGR2RGB)
    channels, conversion = TO_RGB[message.encoding]
    rows = data.reshape(message.height, message.step)[:, : message.width * channels]
    pixels = rows.reshape(message.height, message.width, channels)
    return pixels if conversion is None else _converted(pixels, conversion)


def _converted(pixels: Any, conversion: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def joint_positions(message: JointState, names: Sequence[str]) -> NDArray[np.float32]:
    """Positions by name, float32 [D] in the order of ``names``; joints that are not asked for are ignored.

    Raises:
        ObservationError: a joint is missing, there twice or without a finite position.
    """
    given = list(message.name)
    if len(message.position) != len(given):
        raise ObservationError(f"The joint state has {len(given)} names and {len(message.position)} positions.")
    position = dict(zip(given, message.position, strict=True))
    if len(position) != len(given):
        twice = sorted(name for name in position if given.count(name) > 1)
        raise ObservationError(f"The joint state has {twice} more than once.")
    if missing := [name for name in names if name not in position]:
        raise ObservationError(f"The joint state has {given} and lacks {missing}.")
    positions = np.array([position[name] for name in names], np.float32)
    if not np.isfinite(positions).all():
        bad = [name for name, value in zip(names, positions, strict=True) if not np.isfinite(value)]
        raise ObservationError(f"The position of {bad} is not finite.")
    return positions


def image_message(image: NDArray[np.uint8], stamp_ns: int, frame_id: str = "") -> Image:
    """An rgb8 Image of uint8 RGB [H, W, 3]."""
    height, width, channels = image.shape
    message = Image(header=_header(stamp_ns, frame_id), height=height, width=width, encoding="rgb8")
    message.step = width * channels
    message.data.frombytes(np.ascontiguousarray(image).data)  # the setter would look at every byte
    return message


def joint_state_message(positions: ArrayLike, names: Sequence[str], stamp_ns: int) -> JointState:
    """A JointState of positions [D], as measured or as commanded."""
    return JointState(header=_header(stamp_ns), name=list(names), position=_floats(positions))


def positions_message(positions: ArrayLike) -> Float64MultiArray:
    """What ros2_controllers' forward_command_controller takes: positions [D] in the order of its joints."""
    return Float64MultiArray(data=_floats(positions))


def trajectory_message(
    positions: ArrayLike, times_s: ArrayLike, names: Sequence[str], stamp_ns: int
) -> JointTrajectory:
    """What ros2_controllers' joint_trajectory_controller takes; it stands still at the end.

    Args:
        positions: [K, D].
        times_s: [K], when each is reached, counted from the stamp [s].
        names: of the joints, D of them.
        stamp_ns: of the header.
    """
    points, times = np.asarray(positions, np.float64), np.asarray(times_s, np.float64)
    velocities = np.gradient(points, times, axis=0) if len(points) > 1 else np.zeros_like(points)
    velocities[-1] = 0.0
    message = JointTrajectory(header=_header(stamp_ns), joint_names=list(names))
    for position, velocity, time_s in zip(points, velocities, times, strict=True):
        point = JointTrajectoryPoint(positions=_floats(position), velocities=_floats(velocity))
        elapsed = to_stamp(round(time_s * NS))
        point.time_from_start.sec, point.time_from_start.nanosec = elapsed.sec, elapsed.nanosec
        message.points.append(point)
    return message


def _header(stamp_ns: int, frame_id: str = "") -> Header:
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame_id)


def _floats(values: ArrayLike) -> list[float]:
    return [float(value) for value in np.asarray(values).ravel()]
