"""A rosbag as the doctor looks at it; needs no ROS."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from pi0_control.doctor import Recording
from pi0_control.errors import DatasetError, ObservationError, Pi0Error
from pi0_control.robot import RobotSpec
from pi0_control.ros.reading import NS, joint_positions, rgb_image, to_ns

MOMENTS = 30  # images per camera
EPISODE_GAP = 5  # usual times between two commands, after which another episode begins
WHOLE = 0.05  # how far from a whole number of commands per action
JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


def read_bag(
    path: Path, robot: RobotSpec, cameras: Mapping[str, str], joint_states: str = "joint_states", commands: str = ""
) -> Recording:
    """Joint states, commands and some images of a rosbag.

    Where there are commands, a moment is a command with the newest joint state before it, and their rate is the
    control rate, or N times as much where they were interpolated; otherwise every joint state is a moment.

    Args:
        path: of the folder of a rosbag2.
        robot: whose joints are looked for by name.
        cameras: topic of a camera of the robot, where that is not ``<camera>/image_raw`` or ``.../compressed``.
        joint_states: topic of the joints; a topic is found in any namespace where it is not at the root.
        commands: topic of the commands, as JointState.

    Raises:
        DatasetError: no readable bag, no joint states in it, or a topic is not what it should be.
    """
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.LATEST)) as bag:
            return _read(bag, path, robot, cameras, joint_states, commands)
    except Pi0Error:
        raise
    except Exception as error:  # a damaged bag makes the libraries that read it raise anything
        reason = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{path} is neither a LeRobotDataset nor a rosbag that can be read ({reason}).") from error


def _read(
    bag: AnyReader, path: Path, robot: RobotSpec, cameras: Mapping[str, str], joint_states: str, commands: str
) -> Recording:
    seen = _find(bag, joint_states, (JOINT_STATE,))
    if not seen:
        raise DatasetError(f"{path} has no {JOINT_STATE} on {joint_states!r}; its topics are {sorted(bag.topics)}.")
    times, states = _joints(bag, seen, robot)
    commanded = _find(bag, commands, (JOINT_STATE,))
    due, targets = _joints(bag, commanded, robot) if commanded else (times[:0], states[:0])
    is_after = due >= times[0]
    every = _interpolation(due[is_after], robot)
    due, targets = due[is_after][::every], targets[is_after][::every]
    has_commands = len(due) > 1
    steps = np.diff(due if has_commands else times)
    usual = _usual(steps)
    images: dict[str, list[NDArray[np.uint8]]] = {}
    for name in robot.cameras:
        topics = [cameras[name]] if name in cameras else [f"{name}/image_raw", f"{name}/image_raw/compressed"]
        found = next((found for topic in topics if (found := _find(bag, topic, IMAGES))), None)
        images |= {name: _images(bag, found)} if found else {}
    return Recording(
        source=f"{path}: {len(times)} joint states, {len(due)} commands, {bag.duration / NS:.1f} s",
        states=states[np.searchsorted(times, due, side="right") - 1] if has_commands else states,
        actions=targets if has_commands else None,
        episode=np.concatenate([[0], np.cumsum(steps > EPISODE_GAP * usual)]).astype(np.int64),
        rate_hz=NS / usual if has_commands else None,
        state_names=robot.joint_names,
        action_names=robot.joint_names,
        images=images,
    )


def _usual(steps: NDArray[np.int64]) -> float:
    """Usual time between two moments [ns]."""
    return float(np.median(steps)) if len(steps) else float("nan")


def _interpolation(due: NDArray[np.int64], robot: RobotSpec) -> int:
    """Commands per action: N where they come N times as often as the robot's policies act, as policy_node can send."""
    times = NS * robot.dt_s / _usual(np.diff(due)) if len(due) > 1 else 1.0
    whole = max(1, round(times))
    return whole if abs(times / whole - 1) < WHOLE else 1


def _find(bag: AnyReader, topic: str, types: Sequence[str]) -> Connection | None:
    """The topic of that name, or in whatever namespace; DatasetError when there are several or it has another type."""
    name = f"/{topic.strip('/')}"
    found = [each for each in bag.connections if topic and f"/{each.topic.strip('/')}".endswith(name)]
    found = [each for each in found if f"/{each.topic.strip('/')}" == name] or found
    topics = sorted({each.topic for each in found})
    if len(topics) > 1:
        raise DatasetError(f"Topic {topic!r} could be any of {topics}; give one of them in full.")
    if found and found[0].msgtype not in types:
        raise DatasetError(f"Topic {topics[0]} has {found[0].msgtype}; expected {' or '.join(types)}.")
    return found[0] if found else None


def _messages(bag: AnyReader, connection: Connection) -> Any:
    """Every message with its stamp [ns]; with the time it was recorded where the stamp is zero."""
    connections = [each for each in bag.connections if each.topic == connection.topic]
    for each, recorded_ns, data in bag.messages(connections):
        message: Any = bag.deserialize(data, each.msgtype)
        yield to_ns(message.header.stamp) or recorded_ns, message


def _joints(bag: AnyReader, connection: Connection, robot: RobotSpec) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Stamps [N] in order, and positions [N, D] in the robot's order; NaN where a message does not have them all."""
    rows: dict[int, NDArray[np.float32]] = {}
    trouble = "it is empty"
    for stamp_ns, message in _messages(bag, connection):
        try:
            rows[stamp_ns] = joint_positions(message, robot.joint_names)
        except ObservationError as error:
            rows[stamp_ns], trouble = np.full(len(robot.joints), np.nan, np.float32), str(error)
    times = np.array(sorted(rows), np.int64)
    positions = np.array([rows[stamp] for stamp in times.tolist()], np.float32).reshape(-1, len(robot.joints))
    if not np.isfinite(positions).any():
        raise DatasetError(f"Topic {connection.topic} never has the joints of robot {robot.name!r}: {trouble}")
    return times, positions


def _images(bag: AnyReader, connection: Connection) -> list[NDArray[np.uint8]]:
    """Some images, spread over the whole bag."""
    connections = [each for each in bag.connections if each.topic == connection.topic]
    images: dict[int, NDArray[np.uint8]] = {}
    for start_ns in np.linspace(bag.start_time, bag.end_time, MOMENTS + 1)[:-1].astype(np.int64).tolist():
        for each, recorded_ns, data in bag.messages(connections, start=start_ns):
            try:
                images[recorded_ns] = rgb_image(bag.deserialize(data, each.msgtype))
            except ObservationError as error:
                raise DatasetError(f"Topic {connection.topic}: {error}") from error
            break
    return list(images.values())
