"""Rosbags of a recording, written without ROS."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
SECOND = 1_000_000_000


def header(stamp_ns: int) -> Any:
    stamp = TYPES["builtin_interfaces/msg/Time"](stamp_ns // SECOND, stamp_ns % SECOND)
    return TYPES["std_msgs/msg/Header"](stamp, "")


def joints(stamp_ns: int, names: Sequence[str], positions: np.ndarray) -> Any:
    values, nothing = np.asarray(positions, float), np.zeros(0)
    return TYPES["sensor_msgs/msg/JointState"](header(stamp_ns), list(names), values, nothing, nothing)


def image(stamp_ns: int, picture: np.ndarray, encoding: str = "rgb8") -> Any:
    height, width, channels = picture.shape
    data = np.ascontiguousarray(picture).ravel()
    return TYPES["sensor_msgs/msg/Image"](header(stamp_ns), height, width, encoding, 0, width * channels, data)


def compressed(stamp_ns: int, picture: np.ndarray) -> Any:
    data = cv2.imencode(".png", picture[..., ::-1])[1].ravel()
    return TYPES["sensor_msgs/msg/CompressedImage"](header(stamp_ns), "png", data)


def write_bag(path: Path, messages: Mapping[str, Sequence[Any]], plugin: StoragePlugin = StoragePlugin.MCAP) -> Path:
    """Messages by topic, recorded at their stamps."""
    with Writer(path, version=9, storage_plugin=plugin) as bag:
        ordered = []
        for topic, some in messages.items():
            connection = bag.add_connection(topic, some[0].__msgtype__, typestore=STORE)
            ordered += [(each.header.stamp.sec * SECOND + each.header.stamp.nanosec, connection, each) for each in some]
        for stamp_ns, connection, message in sorted(ordered, key=lambda entry: entry[0]):
            bag.write(connection, stamp_ns, STORE.serialize_cdr(message, message.__msgtype__))
    return path
