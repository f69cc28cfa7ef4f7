"""How smoothly an arm was commanded: jerk, jumps where one chunk takes over from another, time spent holding still."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pi0_control.robot import RobotSpec
from pi0_control.types import Command


@dataclass(frozen=True)
class Smoothness:
    """Of one episode, in the joints of the arm; the gripper does not count.

    Attributes:
        jerk_rad_s3: third difference of the commanded positions, root mean square over steps and joints [rad/s³]; 0
            where there are too few steps.
        seams_rad: for every chunk that took over from one under way, how far apart their actions for that moment were,
            in the joint where it was most [rad].
        hold_s: time in which the arm was held still for want of an action or for safety [s].
    """

    jerk_rad_s3: float = 0.0
    seams_rad: tuple[float, ...] = ()
    hold_s: float = 0.0


class SmoothnessMeter:
    """Watches one episode, step by step.

    Args:
        robot: whose arm it is.
    """

    def __init__(self, robot: RobotSpec) -> None:
        self._dt_s, self._is_arm = robot.dt_s, ~robot.gripper_mask
        self._actions: list[NDArray[np.float32]] = []
        self._seams: list[float] = []
        self._holds = 0

    def add(
        self, action: NDArray[np.float32], commands: Sequence[Command], seam_jumps: Sequence[NDArray[np.float32] | None]
    ) -> None:
        """One step: what was commanded [D], with the ``commands`` and ``seam_jumps`` of a ``Pi0Agent``."""
        self._actions.append(action[self._is_arm])
        self._seams += [float(jump[self._is_arm].max()) for jump in seam_jumps if jump is not None]
        self._holds += any(command.status != "tracking" for command in commands)

    def result(self) -> Smoothness:
        """What there was since the beginning."""
        jerk = np.diff(np.array(self._actions, np.float64), 3, axis=0) / self._dt_s**3
        rms = float(np.sqrt(np.mean(jerk**2))) if jerk.size else 0.0
        return Smoothness(rms, tuple(self._seams), self._holds * self._dt_s)
