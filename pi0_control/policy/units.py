"""Units of training data that are not the robot's: those that π0's makers know ALOHA in.

``aloha_pi`` is openpi's ``adapt_to_pi``, and ``lerobot_aloha_pi`` the ``adapt_to_pi_aloha`` of LeRobot up to 0.3, which
has other angles.

States and actions are converted before anything else is done to them, and actions back at last, so what comes in and
what goes out are the robot's own units.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

UnitsName = Literal["robot", "aloha_pi", "lerobot_aloha_pi"]

GRIPPERS = [6, 13]
FLIPS = np.tile([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0], 2)
"""Shoulders and elbows turn the other way in the data of π0's makers."""
HORN_M, ROD_M = 0.022, 0.036
"""The motor's horn and the rod from it to a finger of ALOHA's gripper; with the finger's way they form a triangle."""
OPENING_M = (0.01844, 0.05800)  # the finger's position at opening 0 and 1
ASKED_RAD = (-0.6213, 1.4910)  # the motor's angle at 0 and 1 of a command


class Units(Protocol):
    """Between the robot's units and those of the policy's training data, for vectors [..., D]."""

    def state(self, values: ArrayLike) -> NDArray[np.float32]:
        """A state of the robot as the policy knows it."""

    def action(self, values: ArrayLike) -> NDArray[np.float32]:
        """An action of the robot as the policy predicts it."""

    def to_robot(self, values: ArrayLike) -> NDArray[np.float32]:
        """An action as the policy predicts it, for the robot: the inverse of :meth:`action`."""


class RobotUnits:
    """The robot's own: nothing changes."""

    def state(self, values: ArrayLike) -> NDArray[np.float32]:
        """[..., D] to float32 [..., D]."""
        return np.asarray(values, np.float32)

    action = to_robot = state


@dataclass(frozen=True)
class AlohaPi:
    """ALOHA's [..., 14] as policies of real stations have it.

    Some joints turn the other way. Grippers are linear openings (0 closed .. 1 open) on the robot, and here angles of
    the motor, each scaled.

    Attributes:
        seen_rad: the angle at 0 and 1 of a state.
        predicted_rad: the angle at 0 and 1 of an action.
    """

    seen_rad: tuple[float, float]
    predicted_rad: tuple[float, float]

    def state(self, values: ArrayLike) -> NDArray[np.float32]:
        """Law of cosines in the triangle of horn, rod and finger."""
        adapted = np.asarray(values, np.float64) * FLIPS
        way = _from_unit(adapted[..., GRIPPERS], OPENING_M)
        with np.errstate(divide="ignore"):  # no way at all: beyond closed by far
            sine = (HORN_M**2 + way**2 - ROD_M**2) / (2 * HORN_M * way)
        adapted[..., GRIPPERS] = _to_unit(np.arcsin(np.clip(sine, -1, 1)), self.seen_rad)
        return adapted.astype(np.float32)

    def action(self, values: ArrayLike) -> NDArray[np.float32]:
        """As training takes it."""
        adapted = np.asarray(values, np.float64) * FLIPS
        adapted[..., GRIPPERS] = _to_unit(_from_unit(adapted[..., GRIPPERS], ASKED_RAD), self.predicted_rad)
        return adapted.astype(np.float32)

    def to_robot(self, values: ArrayLike) -> NDArray[np.float32]:
        """As the station takes it."""
        adapted = np.asarray(values, np.float64) * FLIPS
        adapted[..., GRIPPERS] = _to_unit(_from_unit(adapted[..., GRIPPERS], self.predicted_rad), ASKED_RAD)
        return adapted.astype(np.float32)


UNITS: dict[UnitsName, Units] = {
    "robot": RobotUnits(),
    "aloha_pi": AlohaPi((0.5476, 1.6296), (0.5476, 1.5476)),  # an action is an angle from the state's zero [rad]
    "lerobot_aloha_pi": AlohaPi((0.4, 1.5), (0.4, 1.5)),
}


def units_joints(name: UnitsName) -> int | None:
    """How many joints a robot must have for these units; None for any number."""
    return None if name == "robot" else len(FLIPS)


def _from_unit(values: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.float64]:
    return values * (span[1] - span[0]) + span[0]


def _to_unit(values: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.float64]:
    return (values - span[0]) / (span[1] - span[0])
