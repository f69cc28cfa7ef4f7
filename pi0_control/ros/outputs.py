"""Commands as controllers take them: streamed one by one, or as a trajectory of what is to come."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from pi0_control.robot import RobotSpec
from pi0_control.ros.conversions import joint_state_message, positions_message, trajectory_message, twist_message
from pi0_control.ros.parameters import NodeConfig, OutputKind
from pi0_control.ros.pilot import Pilot
from pi0_control.ros.reading import NS
from pi0_control.types import Command

TOPICS: dict[OutputKind, tuple[type, str]] = {
    "joint_state": (JointState, "joint_commands"),
    "positions": (Float64MultiArray, "commands"),
    "trajectory": (JointTrajectory, "joint_trajectory"),
    "twist": (TwistStamped, "twist_commands"),
}
GRIPPERS = (Float64MultiArray, "gripper_commands")


class Output:
    """Publishes the commands of a pilot as one kind of message.

    A trajectory is what the pilot would command if nothing new came, up to standing still. It is sent when there is a
    new chunk, and whenever what is commanded is not what the last one said, so that a controller that plays
    trajectories does what one that is streamed to does. Grippers that have a controller of their own are streamed to,
    as is what goes along with a twist.

    Args:
        node: that publishes.
        config: says what.
        robot: whose commands they are.
        rates: joints of the policy's rates; the first six are the twist.

    Attributes:
        publishers: to be destroyed by whoever made this.
    """

    def __init__(self, node: LifecycleNode, config: NodeConfig, robot: RobotSpec, rates: Sequence[str] = ()) -> None:
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        overridable = QoSOverridingOptions.with_default_policies()
        names, kind = np.array(robot.joint_names), config.output
        is_apart = ~np.isin(names, rates[:6]) if kind == "twist" else robot.gripper_mask & (config.grippers == "apart")
        topics = [TOPICS[kind], GRIPPERS] if is_apart.any() else [TOPICS[kind]]
        self.publishers: list[LifecyclePublisher[Any]] = [
            node.create_lifecycle_publisher(message_type, topic, qos, qos_overriding_options=overridable)
            for message_type, topic in topics
        ]
        self._kind, self._frame, self._speed = kind, config.twist_frame, robot.max_velocity
        self._arm, self._grippers = np.flatnonzero(~is_apart), np.flatnonzero(is_apart)
        self._names = names[self._arm].tolist()
        self._announced: list[Command] = []

    def send(self, pilot: Pilot, command: Command, stamp_ns: int) -> None:
        """Publish the command of this moment, which the ROS clock calls ``stamp_ns``."""
        arm, *apart = self.publishers
        for gripper in apart:
            gripper.publish(positions_message(command.positions[self._grippers]))
        if self._kind == "joint_state":
            arm.publish(joint_state_message(command.positions[self._arm], self._names, stamp_ns))
        elif self._kind == "positions":
            arm.publish(positions_message(command.positions[self._arm]))
        elif self._kind == "twist":
            arm.publish(twist_message(command.positions[self._arm], stamp_ns, self._frame))
        elif pilot.has_new_chunk or not self._is_announced(pilot, command):
            arm.publish(self._trajectory(pilot, command, stamp_ns))

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
        positions = [announced.positions[self._arm] for announced in self._announced]
        return trajectory_message(positions, times_s, self._names, start_ns)
