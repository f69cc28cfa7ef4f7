"""A robot on topics: goes where it is sent, looks at nothing, and fails as it is told."""

import time
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from swaying_policy import ARM6
from trajectory_msgs.msg import JointTrajectory

from pi0_control.ros.conversions import image_message, joint_state_message, to_stamp
from pi0_control.ros.inputs import STATE
from pi0_control.ros.reading import NS, joint_positions, to_ns

PICTURE = np.zeros((48, 64, 3), np.uint8)
JPEG = cv2.imencode(".jpg", PICTURE)[1].tobytes()


def check_positions(positions: np.ndarray) -> None:
    """Nothing outside limits, no jump: no command [K, 7] further from the one before than two periods at top speed."""
    assert (positions >= ARM6.lower).all()
    assert (positions <= ARM6.upper).all()
    assert (np.abs(np.diff(positions, axis=0)) <= ARM6.max_velocity * 2 * ARM6.dt_s + 1e-5).all()


class Robot(Node):
    """Three cameras at 20 Hz, joint states and the clock at 100 Hz, on a steady clock that the test may set.

    Attributes:
        instead: what a stream sends: None, a message, or what makes one of the good one.
        commands: every one that came, positions [7] by stamp [ns].
        trajectories: the positions [K, 7] of every one that came.
        diagnostics: the newest status of each part of the policy node, and every sentence it has ever said.
        beats: how often it has sent its joints.
    """

    def __init__(self, context: Context) -> None:
        super().__init__("robot", context=context, start_parameter_services=False)
        self.instead: dict[str, Any] = {}
        self.pose = ARM6.home.copy()
        self.offset_ns = 1000 * NS - time.monotonic_ns()
        self.is_clock_running = True
        self.beats = 0
        self.commands: list[tuple[int, np.ndarray]] = []
        self.trajectories: list[np.ndarray] = []
        self.diagnostics: dict[str, Any] = {}
        self.sentences: set[str] = set()
        self._time = self.create_publisher(Clock, "/clock", 1)
        self.publish_cameras()
        self._joint_states = self.create_publisher(JointState, "joint_states", 1)
        self.create_subscription(JointState, "joint_commands", self._on_command, 1000)
        self.create_subscription(JointTrajectory, "joint_trajectory", self._on_trajectory, 1000)
        self._trajectory: tuple[np.ndarray, np.ndarray] | None = None  # times [ns], positions
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 1000)
        self.create_timer(0.01, self._send_joints)
        self.create_timer(0.05, self._send_images)

    def publish_cameras(self) -> None:
        """Anew, if they were destroyed."""
        self.cameras = {name: self.create_publisher(Image, f"{name}/image_raw", 1) for name in ARM6.cameras}
        self._compressed = {
            name: self.create_publisher(CompressedImage, f"{name}/image_raw/compressed", 1) for name in ARM6.cameras
        }

    def destroy_cameras(self) -> None:
        """As a driver that has died."""
        for publisher in self.cameras.values():
            self.destroy_publisher(publisher)
        self.cameras = {}

    def follow_no_more(self) -> None:
        """Stay, and forget what was commanded."""
        self._trajectory = None
        self.commands.clear()

    @property
    def now_ns(self) -> int:
        """The robot's time."""
        return time.monotonic_ns() + self.offset_ns

    def state(self, part: str = "control") -> dict[str, str]:
        """What the node says of itself."""
        status = self.diagnostics.get(part)
        return {} if status is None else {pair.key: pair.value for pair in status.values}

    def message(self, part: str = "control") -> str:
        """In one sentence."""
        return self.diagnostics[part].message if part in self.diagnostics else ""

    def check_commands(self) -> None:
        """Of all that came."""
        assert len(self.commands) > 5
        check_positions(np.array([positions for _, positions in self.commands]))

    def _send_joints(self) -> None:
        stamp_ns = self.now_ns
        self.beats += 1
        if self._trajectory is not None:
            times_ns, positions = self._trajectory
            self.pose = np.array([np.interp(stamp_ns, times_ns, column) for column in positions.T], np.float32)
        if self.is_clock_running:
            self._time.publish(Clock(clock=to_stamp(stamp_ns)))
        self._send(STATE, self._joint_states, joint_state_message(self.pose, ARM6.joint_names, stamp_ns))

    def _send_images(self) -> None:
        for name, publisher in self.cameras.items():
            good = image_message(PICTURE, self.now_ns)
            self._send(name, publisher, good)
            self._compressed[name].publish(CompressedImage(header=good.header, format="jpeg", data=JPEG))

    def _send(self, name: str, publisher: Any, good: Any) -> None:
        message = self.instead.get(name, good)
        message = message(good) if callable(message) else message
        if message is not None:
            publisher.publish(message)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        assert tuple(message.joint_names) == ARM6.joint_names
        now_ns, start_ns = self.now_ns, to_ns(message.header.stamp)
        points = [(start_ns + to_ns(point.time_from_start), point.positions) for point in message.points]
        times_ns, positions = zip(*[point for point in points if point[0] > now_ns] or points[-1:], strict=True)
        self._trajectory = np.array([now_ns, *times_ns], np.float64), np.array([self.pose, *positions])
        self.trajectories.append(np.array([point.positions for point in message.points]))

    def _on_command(self, message: JointState) -> None:
        self.pose = joint_positions(message, ARM6.joint_names)
        self.commands.append((to_ns(message.header.stamp), self.pose))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics[status.name.split(": ")[-1]] = status
            self.sentences.add(status.message)
