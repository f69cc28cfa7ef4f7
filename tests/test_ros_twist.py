"""A policy that moves a hand by its twist, as MoveIt Servo takes it: the node over DDS, and a hand that is told."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TwistStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_changes import shifted, with_fields
from ros_graph import Probe, ros_context
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from pi0_control.errors import ConfigError, ObservationError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.ros.conversions import image_message, joint_state_message, to_stamp
from pi0_control.ros.parameters import TABLE, NodeConfig
from pi0_control.ros.policy_node import PolicyNode
from pi0_control.ros.reading import NS, hand_pose
from pi0_control.types import ActionChunk, Observation

LIBERO = RobotSpec.from_yaml("libero")
HAND, FINGERS = LIBERO.joint_names[:6], LIBERO.joint_names[6:]
FRAME = "base_link"
TWIST = np.array([0.5, -0.25, 0.125, 1.0, -0.75, 0.5])
PARAMETERS = {"output": "twist", "twist_frame": FRAME, "ee_pose_joints": " ".join(HAND)}
PARAMETERS |= {"prompt": "go", "enabled": True, "safety.max_state_age_s": 0.6}
DEFAULTS = {name: entry.default for name, entry in TABLE.items()}


class TwistPolicy(HoldPolicy):
    """Moves the hand at one twist and the first finger, which is a rate too; remembers what it saw."""

    rates = LIBERO.joint_names[:7]

    def __init__(self) -> None:
        super().__init__(LIBERO, 16, 8)
        self.states: list[np.ndarray] = []

    def infer(self, observation: Observation, **_: Any) -> ActionChunk:
        self.states.append(observation.state)
        chunk = super().infer(observation)
        chunk.actions[:, :7] = [*TWIST, 0.1]
        return chunk


class Hand(Node):
    """Cameras, fingers and the pose of a hand that looks down; what it was told."""

    def __init__(self, context: Any) -> None:
        super().__init__("hand", context=context, start_parameter_services=False)
        self.instead: dict[str, Any] = {}
        self.twists: list[TwistStamped] = []
        self.grippers: list[Float64MultiArray] = []
        self.reason = ""
        self._cameras = [self.create_publisher(Image, f"{name}/image_raw", 1) for name in LIBERO.cameras]
        self._poses = self.create_publisher(PoseStamped, "ee_pose", 1)
        self._fingers = self.create_publisher(JointState, "joint_states", 1)
        self.create_subscription(TwistStamped, "twist_commands", self.twists.append, 100)
        self.create_subscription(Float64MultiArray, "gripper_commands", self.grippers.append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._keep_reason, 100)
        self.create_timer(0.02, self._show)

    def _show(self) -> None:
        now_ns = self.get_clock().now().nanoseconds
        for camera in self._cameras:
            camera.publish(image_message(np.zeros((48, 64, 3), np.uint8), now_ns))
        self._fingers.publish(joint_state_message([0.02, -0.02], FINGERS, now_ns))
        message = self.instead.get("pose", lambda message: message)(pose(now_ns))
        if message is not None:
            self._poses.publish(message)

    def _keep_reason(self, message: DiagnosticArray) -> None:
        self.reason = message.status[0].message


def pose(stamp_ns: int = 0, frame: str = FRAME, **turn: float) -> PoseStamped:
    place = Point(x=0.1, y=0.2, z=0.3)
    orientation = Quaternion(**(turn or {"x": 1.0, "w": 0.0}))  # half a turn about x
    header = Header(stamp=to_stamp(stamp_ns), frame_id=frame)
    return PoseStamped(header=header, pose=Pose(position=place, orientation=orientation))


@pytest.fixture
def flight() -> Iterator[tuple[Probe, Hand, PolicyNode, TwistPolicy]]:
    """The node drives."""
    with ros_context() as context:
        probe, hand, policy = Probe(context), Hand(context), TwistPolicy()
        overrides = [Parameter(name, value=value) for name, value in PARAMETERS.items()]
        node = PolicyNode(lambda config: policy, context=context, parameter_overrides=overrides)
        probe.add(hand)
        probe.add(node)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS, node.error
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        probe.until(lambda: hand.twists and np.allclose(array(hand.twists[-1]), TWIST), "the policy's twist")
        yield probe, hand, node, policy
        node.trigger_shutdown()
        node.destroy_node()
        hand.destroy_node()
        probe.close()


def array(message: TwistStamped) -> np.ndarray:
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def is_zero(message: TwistStamped) -> bool:
    return bool((np.abs(array(message)) < 1e-9).all())


def test_the_hand_is_moved_by_a_twist_that_changes_gently_and_ends_at_zero(flight) -> None:
    probe, hand, node, policy = flight
    assert np.allclose(policy.states[-1], [0.1, 0.2, 0.3, math.pi, 0, 0, 0.02, -0.02])
    assert hand.twists[-1].header.frame_id == FRAME
    probe.until(lambda: hand.grippers and np.allclose(hand.grippers[-1].data, [0.1, -0.02]), "the others")
    node.trigger_deactivate()
    probe.until(lambda: is_zero(hand.twists[-1]), "zero")
    count = len(hand.twists)
    twists = np.array([np.zeros(6), *map(array, hand.twists)])
    most = LIBERO.max_velocity[:6] * LIBERO.dt_s / 0.1  # per period, at the acceleration limit
    assert (np.abs(np.diff(twists, axis=0)) <= 2 * most + 1e-6).all()
    assert (np.abs(twists) <= np.abs(TWIST) + 1e-6).all()
    hand.reason = ""
    probe.until(lambda: hand.reason == "disabled", "diagnostics")
    assert len(hand.twists) == count


FAULTS = {
    "silent": (lambda message: None, "ee_pose has been silent for"),
    "late": (shifted(-NS), "ee_pose comes 1."),
    "no stamp": (lambda message: pose(0), "ee_pose has a stamp of zero"),
    "other frame": (with_fields(header=Header(frame_id="tool0")), "ee_pose"),
}


@pytest.mark.parametrize(("instead", "words"), FAULTS.values(), ids=FAULTS)
def test_a_bad_pose_stops_the_hand_until_it_is_good(flight, instead: Any, words: str) -> None:
    probe, hand, _, _ = flight
    hand.instead["pose"] = instead
    probe.until(lambda: words in hand.reason and is_zero(hand.twists[-1]), words)
    del hand.instead["pose"]
    probe.until(lambda: np.allclose(array(hand.twists[-1]), TWIST), "the policy's twist again")


def test_a_pose_is_refused_that_says_no_place_in_the_frame() -> None:
    assert np.allclose(hand_pose(pose(z=math.sin(0.5), w=math.cos(0.5))), [0.1, 0.2, 0.3, 0, 0, 1.0])
    for message, words in (
        (pose(frame="tool0"), "in frame 'tool0'; expected 'base_link'"),
        (pose(x=0.5, w=0.5), "norm 0.707; expected a unit quaternion"),
        (pose(x=math.nan, w=0.0), "norm nan"),
        (pose(x=0.0, y=0.0, z=0.0, w=0.0), "norm 0;"),
    ):
        with pytest.raises(ObservationError, match=words):
            hand_pose(message, FRAME)
    message = pose()
    message.pose.position.x = 1e300
    with pytest.raises(ObservationError, match="position of the pose is not finite"):
        hand_pose(message)


def test_outputs_and_rates_have_to_fit() -> None:
    def config(**changes: Any) -> NodeConfig:
        return NodeConfig.from_values({**DEFAULTS, **PARAMETERS, **changes})

    config().check_rates(LIBERO, HAND)
    config(output="positions").check_rates(LIBERO, ())
    with pytest.raises(ConfigError, match="output is 'positions'; expected 'twist'"):
        config(output="positions").check_rates(LIBERO, HAND)
    droid = RobotSpec.from_yaml("droid")  # velocities of joints are no twist
    bad = (
        (config(), LIBERO, HAND[:5]),
        (config(twist_frame=""), LIBERO, HAND),
        (config(), droid, droid.joint_names[:7]),
    )
    for output, robot, rates in bad:
        with pytest.raises(ConfigError, match="expected a frame, and the hand's three places"):
            output.check_rates(robot, rates)
    assert config().pose_joints_of(LIBERO) == HAND
    for names in ("eef_x", " ".join((*HAND[:5], "nose")), " ".join((*HAND[:5], HAND[0]))):
        with pytest.raises(ConfigError, match=r"ee_pose_joints has \[.*expected six of robot 'libero'"):
            config(ee_pose_joints=names).pose_joints_of(LIBERO)
