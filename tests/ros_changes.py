"""What makes a bad message of a good one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pi0_control.ros.conversions import joint_state_message, to_stamp
from pi0_control.ros.reading import to_ns

Change = Callable[[Any], Any]


def stamped(change_ns: Callable[[int], int]) -> Change:
    def change(message: Any) -> Any:
        message.header.stamp = to_stamp(change_ns(to_ns(message.header.stamp)))
        return message

    return change


def shifted(by_ns: int) -> Change:
    return stamped(lambda stamp_ns: stamp_ns + by_ns)


def with_fields(**fields: Any) -> Change:
    def change(message: Any) -> Any:
        for name, value in fields.items():
            setattr(message, name, value)
        return message

    return change


def joints(names: tuple[str, ...], positions: np.ndarray) -> Change:
    return lambda message: joint_state_message(positions, names, to_ns(message.header.stamp))
