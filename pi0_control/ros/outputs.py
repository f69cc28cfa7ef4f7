"""Commands as controllers take them: streamed one by one, or as a trajectory of what is to come."""

from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from pi0_control.robot import RobotSpec
from pi0_control.ros.conversions import joint_state_message, positions_message, trajectory_message
from pi0_control.ros.parameters import OutputKind
from pi0_control.ros.pilot import Pilot
from pi0_control.ros.reading import NS
from pi0_control.types import Command

TOPICS: dict[OutputKind, tuple[type, str]] = {
    "joint_state": (JointState, "joint_commands"),
    "positions": (Float64MultiArray, "commands"),
    "trajectory": (JointTrajectory, "joint_trajectory"),
}


class Output:
    """Publishes the commands of a pilot as one kind of message.

    A trajectory is what the pilot would command if nothing new came, up to standing still. It is sent when there is a
    new chunk, and whenever what is commanded is not what the last one said, so that a controller that plays
    trajectories does what one that is streamed to does.
    """

    def __init__(self, node: LifecycleNode, kind: OutputKind, robot: RobotSpec) -> None:
        message_type, topic = TOPICS[kind]
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        self.publisher: LifecyclePublisher[Any] = node.create_lifecycle_publisher(
            message_type, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._kind, self._robot, self._speed = kind, robot, robot.max_velocity
        self._announced: list[Command] = []

    def send(self, pilot: Pilot, command: Command, stamp_ns: int) -> None:
        """Publish the command of this moment, which the ROS clock calls ``stamp_ns``."""
        message: Any
        if self._kind == "joint_state":
            message = joint_state_message(command.positions, self._robot.joint_names, stamp_ns)
        elif self._kind == "positions":
            message = positions_message(command.positions)
        elif not pilot.has_new_chunk and self._is_announced(pilot, command):
            return
        else:
            message = self._trajectory(pilot, command, stamp_ns)
        self.publisher.publish(message)

    def _is_announced(self, pilot: Pilot, command: Command) -> bool:
        """Whether the last trajectory said this command, or one near it."""
        if not self._announced:
            return False
        index = round((command.stamp_s - self._announced[0].stamp_s) / pilot.period_s)
        said = self._announced[min(index, len(self._announced) - 1)]
        near = pilot.safety.config.near_s * self._speed
        is_same_motion = (said.status == "tracking") == (command.status == "tracking")
        return is_same_motion and bool((np.abs(said.positions - command.positions) <= near).all())

    def _trajectory(self, pilot: Pilot, command: Command, now_ns: int) -> JointTrajectory:
        """Each command is reached at the end of its period; the stamp is that of the chunk's observation."""
        self._announced = pilot.preview(command.stamp_s)
        start_ns = pilot.chunk_stamp_ns if command.status == "tracking" else now_ns
        times_s = (now_ns - start_ns) / NS + pilot.period_s * np.arange(1, len(self._announced) + 1)
        positions = [announced.positions for announced in self._announced]
        return trajectory_message(positions, times_s, self._robot.joint_names, start_ns)
