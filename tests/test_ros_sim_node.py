import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ros_graph import Probe, rclpy, ros_context

from pi0_control.errors import ConfigError
from pi0_control.robot import RobotSpec

pytest.importorskip("rclpy")
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from pi0_control.ros.conversions import joint_state_message, trajectory_message
from pi0_control.ros.reading import rgb_image, to_ns
from pi0_control.ros.sim_node import SimNode
from pi0_control.ros.trajectory import Trajectory

ARM6 = RobotSpec.from_yaml("arm6")
CAMERA = ARM6.cameras[0]


class FakeRobot:
    """Servos that are where they are sent at the end of the time asked for; images that count the advances."""

    servo_period_s = 0.01
    robot = ARM6

    def __init__(self, steps: int = 1000) -> None:
        self._limit = steps
        self.aims: list[tuple[np.ndarray, float | None]] = []

    def check(self, task: str, perturb: str) -> None:
        if task not in ("Lift", "Stack"):
            raise ConfigError(f"No task {task!r}; available: Lift, Stack.")

    def reset(self, task: str, perturb: str, seed: int) -> None:
        self.begun = {"task": task, "perturb": perturb, "seed": seed, "prompt": f"do {task} {seed}"}
        self.state = self.set_point = ARM6.home
        self.advances = 0

    @property
    def episode(self) -> dict[str, Any]:
        return {**self.begun, "is_success": False, "is_over": self.advances >= 5 * self._limit}

    def images(self) -> dict[str, np.ndarray]:
        return dict.fromkeys(ARM6.cameras, np.full((2, 3, 3), self.advances % 256, np.uint8))

    def aim(self, positions: np.ndarray, duration_s: float | None = None) -> None:
        self.aims.append((positions, duration_s))
        self.state = self.set_point = positions

    def advance(self) -> None:
        self.advances += 1

    def close(self) -> None:
        pass


@pytest.fixture
def probe() -> Iterator[Probe]:
    with ros_context() as context:
        probe = Probe(context)
        yield probe
        probe.close()


def start(probe: Probe, robot: FakeRobot, **parameters: Any) -> SimNode:
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    node = SimNode(robot, context=probe.node.context, parameter_overrides=overrides)
    probe.add(node)
    return node


def latched() -> QoSProfile:
    return QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_in_real_time_it_publishes_every_servo_period_and_images_at_their_rate(probe) -> None:
    joints, images, clock = (probe.listen(*topic, 1000) for topic in TOPICS)  # many at once, after a pause
    robot = FakeRobot()
    start(probe, robot, publish_clock=True)
    probe.until(lambda: len(images) >= 10 and len(clock) >= 50, "images and clock")
    stamps = [to_ns(message.header.stamp) for message in joints]
    assert set(np.diff(stamps)) == {10_000_000}  # simulated time, whatever the machine does
    assert joints[0].name == list(ARM6.joint_names)
    assert np.allclose(joints[0].position, ARM6.home)
    frames = np.diff([to_ns(message.header.stamp) for message in images])
    assert frames.min() >= 1e9 / 30 / 2
    assert images[0].encoding == "rgb8"
    assert images[0].header.frame_id == CAMERA
    assert (rgb_image(images[0]) == to_ns(images[0].header.stamp) // 10_000_000 % 256).all()  # of the moment it says


TOPICS = ((JointState, "joint_states"), (Image, f"{CAMERA}/image_raw"), (Clock, "/clock"))


def test_stamps_are_system_time_without_a_simulated_clock(probe) -> None:
    joints = probe.listen(JointState, "joint_states")
    start(probe, FakeRobot())
    before_ns = probe.node.get_clock().now().nanoseconds
    probe.until(lambda: len(joints) > 20, "joint states")
    after_ns = probe.node.get_clock().now().nanoseconds
    assert before_ns < to_ns(joints[-1].header.stamp) <= after_ns


def test_it_follows_every_kind_of_command_and_refuses_what_it_cannot_understand(probe) -> None:
    robot = FakeRobot()
    start(probe, robot)
    target = ARM6.home + np.float32(0.1)
    shuffled = joint_state_message(target[::-1], ARM6.joint_names[::-1], 0)
    short = joint_state_message(target[:-1], ARM6.joint_names[:-1], 0)
    for message in (short, Float64MultiArray(data=[np.nan] * 7), Float64MultiArray(data=[0.0] * 6)):
        probe.publish("commands" if isinstance(message, Float64MultiArray) else "joint_commands", message)
    for topic, message in (
        ("joint_commands", shuffled),
        ("commands", Float64MultiArray(data=target.tolist())),
        ("joint_trajectory", trajectory_message([target], [0.01], ARM6.joint_names, 0)),
    ):
        robot.aims.clear()
        probe.publish(topic, message)
        probe.until(lambda: any(np.allclose(aim, target) for aim, _ in robot.aims), topic)
    assert all(np.isfinite(aim).all() for aim, _ in robot.aims)


def test_a_trajectory_is_followed_from_where_the_servos_are_to_its_points_to_come() -> None:
    points = np.array([[0.0], [1.0], [2.0]]) * np.ones(7)
    message = trajectory_message(points, [0.1, 0.2, 0.3], ARM6.joint_names, 10_000_000_000)
    trajectory = Trajectory.of(message, ARM6, now_s=10.1, set_point=np.full(7, 0.5))
    for time_s, place in ((10.1, 0.5), (10.15, 0.75), (10.2, 1.0), (10.25, 1.5), (11.0, 2.0)):
        assert np.allclose(trajectory.at(time_s), place, atol=1e-6)
    assert np.allclose(Trajectory.of(message, ARM6, 12.0, np.zeros(7)).at(12.0), 2.0)  # all is past: its end
    message.header.stamp.sec = 0
    assert np.allclose(Trajectory.of(message, ARM6, 20.0, np.zeros(7)).at(20.2), 1.0)  # no stamp: from now on
    message.points[1].time_from_start.nanosec = 0
    with pytest.raises(ConfigError, match="in order of time"):
        Trajectory.of(message, ARM6, 10.0, np.zeros(7))
    with pytest.raises(ConfigError, match="expected some"):
        Trajectory.of(JointTrajectory(points=list[JointTrajectoryPoint]()), ARM6, 10.0, np.zeros(7))


def test_in_lock_step_the_world_waits_for_the_answer_to_this_moment(probe) -> None:
    robot = FakeRobot(steps=3)
    joints, images = (probe.listen(*topic) for topic in TOPICS[:2])
    start(probe, robot, lock_step=True)
    probe.until(lambda: len(joints) >= 2 and len(images) >= 2, "an observation and its repetition")
    first = joints[-1].header.stamp
    assert {to_ns(message.header.stamp) for message in (*joints, *images)} == {to_ns(first)}
    probe.publish("joint_commands", joint_state_message(ARM6.home, ARM6.joint_names, to_ns(first) + 1))  # of another
    for step in range(3):
        stamp_ns = to_ns(joints[-1].header.stamp)
        assert robot.advances == 5 * step
        probe.publish("joint_commands", joint_state_message(ARM6.home + step, ARM6.joint_names, stamp_ns))
        if step < 2:
            moment = lambda: {to_ns(topic[-1].header.stamp) for topic in (joints, images)}  # noqa: E731
            probe.until(lambda: moment() == {stamp_ns + 50_000_000}, "the next moment")  # noqa: B023
    episodes = probe.listen(String, "/sim_node/episode", latched())
    probe.until(lambda: episodes and json.loads(episodes[-1].data)["is_over"], "the end of the episode")
    assert robot.advances == 15
    assert [float(aim[0] - ARM6.home[0]) for aim, _ in robot.aims] == [0, 1, 2]


def test_episodes_follow_parameters_and_count_the_seed_up(probe) -> None:
    node = start(probe, FakeRobot(), seed=7, lock_step=True)
    episodes = probe.listen(String, "/sim_node/episode", latched())
    prompts = probe.listen(String, "/sim_node/prompt")
    probe.until(lambda: episodes, "the first episode")
    (refused,) = node.set_parameters([Parameter("task", value="Dance")])
    assert not refused.successful
    assert "available: Lift, Stack" in refused.reason
    node.set_parameters([Parameter("task", value="Stack")])
    response = probe.call(Trigger, "/sim_node/reset_episode")
    begun = json.loads(response.message)
    assert (begun["task"], begun["seed"], begun["prompt"]) == ("Stack", 8, "do Stack 8")
    probe.until(lambda: json.loads(episodes[-1].data) == begun, "the episode")
    probe.until(lambda: prompts and prompts[-1].data == begun["prompt"], "the prompt")


def test_parameters_that_do_not_fit_are_refused_by_name(probe) -> None:
    for parameters in ({"task": "Dance"}, {"camera_rate_hz": 0.5}, {"seed": "seven"}):
        with pytest.raises(ConfigError, match=next(iter(map(str, parameters)))):
            start(probe, FakeRobot(), **parameters)


def test_rclpy_is_the_real_one() -> None:
    assert rclpy.get_rmw_implementation_identifier() == "rmw_fastrtps_cpp"
