"""ROS messages to arrays. What a message does not say is refused, never guessed or filled in.

No ROS is imported: messages are those of rclpy or of a bag's reader, which have the same fields.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pi0_control.control.adapters import AxisAngle
from pi0_control.errors import ObservationError

TO_RGB: dict[str, tuple[int, int | None]] = {  # channels, OpenCV's conversion
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}
NS = 1_000_000_000
UNIT_TOLERANCE = 1e-3  # of a quaternion's norm


def to_ns(stamp: Any) -> int:
    """A stamp in nanoseconds: whole numbers, since seconds of today as a float are off by a tenth of a microsecond."""
    return stamp.sec * NS + stamp.nanosec


def is_compressed(message: Any) -> bool:
    """A CompressedImage; otherwise an Image."""
    return hasattr(message, "format")


def image_format(message: Any) -> str:
    """Size and encoding in words, such as ``640x480 rgb8``; looks at no pixel.

    Raises:
        ObservationError: an encoding that is not supported, no pixels, or other than ``height * step`` bytes of them.
    """
    if is_compressed(message):
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


def rgb_image(message: Any) -> NDArray[np.uint8]:
    """The pixels, uint8 RGB [H, W, 3]; a view into the message where that is possible.

    Raises:
        ObservationError: as :func:`image_format`, or compressed data that cannot be decoded.
    """
    image_format(message)
    data = np.frombuffer(message.data, np.uint8)
    if is_compressed(message):
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


def joint_positions(message: Any, names: Sequence[str]) -> NDArray[np.float32]:
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


def hand_pose(message: Any, frame: str = "") -> NDArray[np.float32]:
    """Position [m] and axis-angle [rad] of a PoseStamped, float32 [6]; angles from 0 to 2π, by the quaternion's sign.

    Raises:
        ObservationError: not in ``frame``, where one is given, not finite, or turned by no unit quaternion.
    """
    if frame and message.header.frame_id != frame:
        raise ObservationError(f"The pose is in frame {message.header.frame_id!r}; expected {frame!r}.")
    place, turn = message.pose.position, message.pose.orientation
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    norm = np.linalg.norm(quaternion)
    if not abs(norm - 1) <= UNIT_TOLERANCE:
        raise ObservationError(f"The orientation of the pose has norm {norm:.3g}; expected a unit quaternion.")
    pose = np.array([place.x, place.y, place.z, *AxisAngle().to_robot(quaternion / norm)])
    if not (np.abs(pose) < np.finfo(np.float32).max).all():
        raise ObservationError("The position of the pose is not finite.")
    return pose.astype(np.float32)
