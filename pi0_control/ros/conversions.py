"""Arrays to ROS messages; :mod:`pi0_control.ros.reading` is the way back."""

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped, Vector3
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi0_control.ros.reading import NS


def to_stamp(stamp_ns: int) -> Time:
    """The inverse of :func:`to_ns`."""
    return Time(sec=stamp_ns // NS, nanosec=stamp_ns % NS)


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


def twist_message(twist: ArrayLike, stamp_ns: int, frame_id: str) -> TwistStamped:
    """What MoveIt Servo takes: linear and angular velocity [6] of the hand, in the frame."""
    values = _floats(twist)
    linear, angular = (Vector3(x=x, y=y, z=z) for x, y, z in (values[:3], values[3:]))
    return TwistStamped(header=_header(stamp_ns, frame_id), twist=Twist(linear=linear, angular=angular))


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
