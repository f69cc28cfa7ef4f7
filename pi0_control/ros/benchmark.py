"""What the node bears: ``python -m pi0_control.ros.benchmark --minutes 10``.

Three cameras of 640x480 rgb8 at 30 Hz and joint states at 200 Hz, from this process over DDS to a policy_node in
another: how many arrive, how steadily commands come back, what the node takes of the machine. Linux only.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
import tyro
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState

from pi0_control.robot import RobotSpec
from pi0_control.ros.conversions import image_message, joint_state_message, to_stamp
from pi0_control.ros.reading import NS, joint_positions, to_ns

CAMERA_HZ, JOINTS_HZ = 30.0, 200.0
SIZE = (480, 640, 3)
WARM_UP_S = 20.0
END_S = 20.0


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        minutes: how long.
        policy: as the node's parameter: hold costs nothing, mini infers all the time.
        reliability: of the images, best_effort or reliable, at both ends.
    """

    minutes: float = 10.0
    policy: str = "hold"
    reliability: str = "best_effort"


class Load(Node):
    """The robot: sends all the time, goes where it is sent, keeps when commands were made and what the node says."""

    def __init__(self, robot: RobotSpec, reliability: str) -> None:
        super().__init__("load")
        self.stamps_ns: list[int] = []
        self.rates_hz: list[dict[str, float]] = []
        self._robot, self._pose = robot, robot.home
        self._image = image_message(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8), 0)
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
        self._cameras = [self.create_publisher(Image, f"{camera}/image_raw", qos) for camera in robot.cameras]
        self._states = self.create_publisher(JointState, "joint_states", 1)
        self.create_timer(1 / CAMERA_HZ, self._send_images)
        self.create_timer(1 / JOINTS_HZ, self._send_joints)
        self.create_subscription(JointState, "joint_commands", self._on_command, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _send_images(self) -> None:
        for camera in self._cameras:
            self._image.header.stamp = to_stamp(self.get_clock().now().nanoseconds)
            camera.publish(self._image)

    def _send_joints(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        self._states.publish(joint_state_message(self._pose, self._robot.joint_names, now_ns))

    def _on_command(self, message: JointState) -> None:
        self._pose = joint_positions(message, self._robot.joint_names)
        self.stamps_ns.append(to_ns(message.header.stamp))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {pair.key: pair.value for status in message.status for pair in status.values}
        self.rates_hz.append(
            {name.removesuffix(" rate_hz"): float(values[name]) for name in values if name.endswith("rate_hz")}
        )


def measure(options: Options) -> None:
    """Print one line per figure."""
    robot = RobotSpec.from_yaml("arm6")
    parameters = {"policy": options.policy, "prompt": "lift the red block", "autostart": True, "enabled": True}
    parameters |= {"image_reliability": options.reliability}
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    node = subprocess.Popen([sys.executable, "-m", "pi0_control.ros.policy_node", "--ros-args", *words])
    rclpy.init()
    load = Load(robot, options.reliability)
    executor = SingleThreadedExecutor()
    executor.add_node(load)
    try:
        _spin(executor, WARM_UP_S)
        load.stamps_ns.clear()
        load.rates_hz.clear()
        before = _usage(node.pid)
        _spin(executor, 60 * options.minutes)
        _report(load, robot, before, _usage(node.pid))
    finally:
        node.terminate()
        node.wait(END_S)
        executor.shutdown()
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)


def _usage(pid: int) -> tuple[float, float, float]:
    """Time now [s], CPU time [s] and resident memory [MB] of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third field on
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), cpu_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _report(load: Load, robot: RobotSpec, before: tuple[float, ...], after: tuple[float, ...]) -> None:
    elapsed_s = after[0] - before[0]
    intervals_ms = np.diff(load.stamps_ns) / NS * 1000
    p50, p99 = np.percentile(np.abs(intervals_ms - 1000 * robot.dt_s), [50, 99])
    print(f"for {elapsed_s:.0f} s:")
    for name in load.rates_hz[-1]:
        sent_hz = JOINTS_HZ if name == "state" else CAMERA_HZ
        rate_hz = np.mean([rates[name] for rates in load.rates_hz if name in rates])
        print(f"  {name:20} {rate_hz:6.1f} of {sent_hz:g} messages/s received")
    print(f"  commands             {len(load.stamps_ns) / elapsed_s:6.1f} of {robot.control_rate_hz:g} per second")
    print(f"  command jitter       {p50:6.2f} ms median, {p99:.2f} ms 99th percentile")
    print(f"  CPU                  {100 * (after[1] - before[1]) / elapsed_s:6.1f} % of one core")
    print(f"  memory               {after[2]:6.1f} MB, {after[2] - before[2]:+.1f} MB since the warm-up")


if __name__ == "__main__":
    measure(tyro.cli(Options))
