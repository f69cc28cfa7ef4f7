"""sim_node: a simulated robot on the topics of a real one.

It knows no simulator: what it drives is a :class:`SimulatedRobot`, such as ``sims.live.LiveTabletop``.

In real time the world goes on whether commands come or not. Where the machine is too slow, camera images are left out
first; then simulated time falls behind, and a warning says so. In lock-step it stands still until the observation of
the moment, joint states and images of one stamp, is answered by a ``joint_commands`` with that stamp; then one control
period is simulated. An observation without an answer is repeated, for images may be lost and nodes may come later.
"""

import json
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import rclpy
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from pi0_control.errors import ConfigError, Pi0Error
from pi0_control.robot import RobotSpec
from pi0_control.ros import parameters
from pi0_control.ros.conversions import image_message, joint_state_message, to_stamp
from pi0_control.ros.parameters import Entry
from pi0_control.ros.qos import LATCHED
from pi0_control.ros.reading import NS, joint_positions, to_ns
from pi0_control.ros.signals import note_signals
from pi0_control.ros.trajectory import Trajectory

MAX_LAG_NS = NS // 5  # of the world behind real time, before time is let go
SPIN_S = 0.1  # how soon a signal is heeded
REPEAT_S = 0.5  # of an observation without an answer, in lock-step
PROMPT_PERIOD_S = 1.0


class SimulatedRobot(Protocol):
    """A robot in a simulated world, advanced a servo period at a time."""

    @property
    def robot(self) -> RobotSpec:
        """Its joints and cameras."""

    @property
    def servo_period_s(self) -> float:
        """What one :meth:`advance` simulates [s]; the control period is a multiple of it."""

    @property
    def state(self) -> NDArray[np.float32]:
        """Measured joint positions, float32 [D]."""

    @property
    def set_point(self) -> NDArray[np.float32]:
        """Where the servos drive the joints to now, float32 [D]."""

    @property
    def episode(self) -> Mapping[str, Any]:
        """What is played and how it stands, plain values; has at least ``prompt``, ``is_success`` and ``is_over``."""

    def check(self, task: str, perturb: str) -> None:
        """Raise ConfigError if there is no such task or suite."""

    def reset(self, task: str, perturb: str, seed: int) -> None:
        """Begin an episode."""

    def images(self) -> Mapping[str, NDArray[np.uint8]]:
        """What the cameras see now, RGB uint8 [H, W, 3] by name."""

    def aim(self, positions: NDArray[np.floating], duration_s: float | None = None) -> None:
        """Lead the servos to joint targets [D] in ``duration_s``, a control period if None."""

    def advance(self) -> None:
        """Simulate one period of the servos."""

    def close(self) -> None:
        """Free what it holds."""


TABLE = {
    "task": Entry("Lift", "of the next episode", is_live=True),
    "perturb": Entry("none", "what varies in the scene of the next episode, as for pi0 eval", is_live=True),
    "seed": Entry(0, "scene of the next episode; every episode counts it up", (0, 2**31), is_live=True),
    "lock_step": Entry(False, "time stands still until a joint_commands answers the observation", is_read_only=True),
    "publish_clock": Entry(False, "publish /clock and stamp with simulated time, not system time", is_read_only=True),
    "camera_rate_hz": Entry(30.0, "images per second and camera [Hz]", (1.0, 100.0), is_read_only=True),
}


class SimNode(Node):
    """Publishes a simulated robot and follows its commands; further options are those of every node.

    Raises:
        ConfigError: a parameter that does not fit.
    """

    def __init__(self, simulated: SimulatedRobot, **options: Any) -> None:
        super().__init__("sim_node", **options)
        self._simulated, self._robot = simulated, simulated.robot
        self._names = list(self._robot.joint_names)
        parameters.declare(self, TABLE)
        values = parameters.values(self, TABLE)
        simulated.check(values["task"], values["perturb"])
        self._is_stepped, is_clock = values["lock_step"], values["publish_clock"]
        self._is_simulated_time = self._is_stepped or is_clock
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._open_topics(publish_clock=is_clock)
        self._trajectory: Trajectory | None = None
        self._time_ns = 0  # simulated since the node began; never goes back, not even for a new episode
        self._begin_episode()
        self.add_on_set_parameters_callback(self._judge_parameters)
        self._steps_per_command = round(self._robot.dt_s / simulated.servo_period_s)
        self._servo_ns = round(simulated.servo_period_s * NS)
        self._frame_ns, self._next_frame_ns = round(NS / values["camera_rate_hz"]), 0
        self._due_ns = self._steady.now().nanoseconds  # when the servo period under way is over, on the steady clock
        self._stamp_ns = self.get_clock().now().nanoseconds
        if self._is_stepped:
            self._next_moment()
            self.create_timer(REPEAT_S, self._show_moment, clock=self._steady)
        else:
            self.create_timer(simulated.servo_period_s, self._keep_pace, clock=self._steady)
        self.create_timer(PROMPT_PERIOD_S, self._tell_prompt, clock=self._steady)

    def _open_topics(self, *, publish_clock: bool) -> None:
        overridable = QoSOverridingOptions.with_default_policies()
        self._cameras = {
            name: self.create_publisher(
                Image, f"{name}/image_raw", QoSProfile(depth=5), qos_overriding_options=overridable
            )
            for name in self._robot.cameras
        }
        self._joints = self.create_publisher(JointState, "joint_states", QoSProfile(depth=10))
        self._clock_topic = (
            self.create_publisher(ClockMessage, "/clock", QoSProfile(depth=1)) if publish_clock else None
        )
        self._episode = self.create_publisher(String, "~/episode", LATCHED)
        self._prompt = self.create_publisher(String, "~/prompt", QoSProfile(depth=1))
        self.create_service(Trigger, "~/reset_episode", self._reset_episode)
        self._listen(JointState, "joint_commands", self._answer if self._is_stepped else self._follow_joint_state)
        if not self._is_stepped:  # an answer needs a stamp
            self._listen(Float64MultiArray, "commands", self._follow_array)
            self._listen(JointTrajectory, "joint_trajectory", self._follow_trajectory)

    def _listen(self, kind: type, topic: str, follow: Callable[[Any], None]) -> None:
        """Subscribe to commands; one that cannot be understood changes nothing and is told."""

        def on_command(message: Any) -> None:
            try:
                follow(message)
            except Pi0Error as error:
                self.get_logger().warning(f"{topic} refused: {error}", throttle_duration_sec=1.0)

        self.create_subscription(kind, topic, on_command, QoSProfile(depth=1))

    # Episodes

    def _judge_parameters(self, changes: list[Parameter[Any]]) -> SetParametersResult:
        asked = {name: self.get_parameter(name).value for name in ("task", "perturb")}
        asked |= {change.name: change.value for change in changes if change.name in asked}
        try:
            self._simulated.check(**asked)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _reset_episode(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._begin_episode()
        response.success, response.message = True, json.dumps(dict(self._simulated.episode))
        self._due_ns = self._steady.now().nanoseconds  # a new scene takes a moment
        if self._is_stepped:
            self._next_moment()
        return response

    def _begin_episode(self) -> None:
        task, perturb, seed = (self.get_parameter(name).value for name in ("task", "perturb", "seed"))
        self._simulated.reset(task, perturb, seed)
        self.set_parameters([Parameter("seed", value=seed + 1)])
        self._trajectory = None
        self._told = (False, False)
        self._tell_episode()
        self._tell_prompt()

    def _tell_episode(self) -> None:
        self._episode.publish(String(data=json.dumps(dict(self._simulated.episode))))

    def _tell_prompt(self) -> None:
        self._prompt.publish(String(data=self._simulated.episode["prompt"]))

    # Real time

    def _keep_pace(self) -> None:
        """Simulate the servo periods that are over, then show the newest moment if an image is due."""
        now_ns = self._steady.now().nanoseconds
        if now_ns - self._due_ns > MAX_LAG_NS:
            lost_s = (now_ns - self._due_ns) / NS
            self.get_logger().warning(f"too slow for real time: {lost_s:.1f} s are lost", throttle_duration_sec=5.0)
            self._due_ns = now_ns
        system_ns = self.get_clock().now().nanoseconds
        while self._due_ns <= now_ns:
            self._advance(system_ns - (now_ns - self._due_ns))
            self._joints.publish(joint_state_message(self._simulated.state, self._names, self._stamp_ns))
            self._due_ns += self._servo_ns
        if self._time_ns >= self._next_frame_ns:
            self._show()
            self._next_frame_ns = max(self._next_frame_ns + self._frame_ns, self._time_ns + self._frame_ns // 2)

    def _follow_joint_state(self, message: JointState) -> None:
        self._follow(joint_positions(message, self._names))

    def _follow_array(self, message: Float64MultiArray) -> None:
        self._follow(joint_positions(JointState(name=self._names, position=message.data), self._names))

    def _follow(self, targets: NDArray[np.float32]) -> None:
        self._trajectory = None
        self._simulated.aim(targets)

    def _follow_trajectory(self, message: JointTrajectory) -> None:
        now_s = self._stamp_ns / NS
        self._trajectory = Trajectory.of(message, self._robot, now_s, self._simulated.set_point)

    # Lock-step

    def _answer(self, message: JointState) -> None:
        """One control period for the answer to the observation of the moment; other answers are late and ignored."""
        if to_ns(message.header.stamp) != self._time_ns or self._simulated.episode["is_over"]:
            return
        self._simulated.aim(joint_positions(message, self._names))
        for _ in range(self._steps_per_command):
            self._advance(0)
        self._show_moment()

    def _next_moment(self) -> None:
        """An episode begins at a time of its own."""
        self._time_ns += self._servo_ns
        self._show_moment()

    def _show_moment(self) -> None:
        """Publish the observation of the moment, unless the episode is over."""
        if not self._simulated.episode["is_over"]:
            self._stamp_ns = self._time_ns
            self._joints.publish(joint_state_message(self._simulated.state, self._names, self._stamp_ns))
            self._show()

    # Both

    def _advance(self, system_ns: int) -> None:
        """Simulate one servo period, which ends at ``system_ns`` on the system clock."""
        self._time_ns += self._servo_ns
        self._stamp_ns = self._time_ns if self._is_simulated_time else system_ns
        if self._trajectory is not None:
            self._simulated.aim(self._trajectory.at(self._stamp_ns / NS), self._simulated.servo_period_s)
        self._simulated.advance()
        if self._clock_topic is not None:
            self._clock_topic.publish(ClockMessage(clock=to_stamp(self._time_ns)))
        episode = self._simulated.episode
        if self._told != (told := (episode["is_success"], episode["is_over"])):
            self._told = told
            self._tell_episode()

    def _show(self) -> None:
        """Publish what the cameras see, where anyone looks."""
        if any(publisher.get_subscription_count() for publisher in self._cameras.values()):
            for name, image in self._simulated.images().items():
                self._cameras[name].publish(image_message(image, self._stamp_ns, name))


def main(simulated: SimulatedRobot, args: list[str] | None = None) -> None:
    """Run sim_node until it is interrupted or terminated; ``args`` are ROS arguments, those of the process if None.

    Raises:
        ConfigError: a parameter that does not fit.
    """
    signals = note_signals()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = SimNode(simulated)
        node.get_logger().info(f"episode: {simulated.episode['prompt']}")
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not signals:
            executor.spin_once(timeout_sec=SPIN_S)
        signal.alarm(0)
        executor.shutdown()
        node.destroy_node()
    finally:
        simulated.close()
        rclpy.try_shutdown()
