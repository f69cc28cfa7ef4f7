"""A trajectory as a robot follows it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec
from pi0_control.ros.reading import NS, joint_positions, to_ns


@dataclass(frozen=True)
class Trajectory:
    """Points that joints pass on straight lines.

    Attributes:
        times_s: float64 [N], when each is passed [s].
        positions: float32 [N, D] in the robot's units.
    """

    times_s: NDArray[np.float64]
    positions: NDArray[np.float32]

    @classmethod
    def of(cls, message: JointTrajectory, robot: RobotSpec, now_s: float, set_point: ArrayLike) -> "Trajectory":
        """What a joint trajectory controller makes of a message: from ``set_point`` now to the points still to come.

        A stamp of zero means now. Velocities and accelerations are left aside.

        Raises:
            ConfigError: no points, or points that do not follow one another in time.
            ObservationError: a point lacks a joint or is not finite.
        """
        start_s = to_ns(message.header.stamp) / NS or now_s
        times_s = np.array([start_s + to_ns(point.time_from_start) / NS for point in message.points])
        if not len(times_s) or (np.diff(times_s) <= 0).any():
            raise ConfigError(f"The trajectory has points at {times_s.tolist()} s; expected some, in order of time.")
        names = message.joint_names
        states = [JointState(name=names, position=point.positions) for point in message.points]
        points = np.array([joint_positions(state, robot.joint_names) for state in states])
        to_come = times_s > now_s
        if not to_come.any():
            return cls(times_s[-1:], points[-1:])
        return cls(np.r_[now_s, times_s[to_come]], np.vstack([np.asarray(set_point, np.float32), points[to_come]]))

    def at(self, time_s: float) -> NDArray[np.float32]:
        """Where the joints are to be, float32 [D]; after the last point they stay there."""
        columns = [np.interp(time_s, self.times_s, column) for column in self.positions.T]
        return np.array(columns, np.float32)
