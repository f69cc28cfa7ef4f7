"""policy_node: a policy behind the topics, services and life cycle of ROS 2."""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from pi0_control.control import Safety
from pi0_control.errors import ConfigError, Pi0Error
from pi0_control.policy import Policy, load_policy, warm_up
from pi0_control.policy.memory import free_device_memory
from pi0_control.robot import RobotSpec
from pi0_control.ros import parameters
from pi0_control.ros.control_loop import ControlLoop
from pi0_control.ros.diagnostics import Diagnostics, driving
from pi0_control.ros.inputs import POSE, STATE, Inputs
from pi0_control.ros.lock_step import LockStep
from pi0_control.ros.outputs import Output
from pi0_control.ros.parameters import NodeConfig
from pi0_control.ros.pilot import Pilot
from pi0_control.ros.qos import LATCHED
from pi0_control.ros.signals import note_signals

BRAKE_LIMIT_S = 2.0
WARM_UP_IMAGE = (480, 640, 3)
SPIN_S = 0.1  # how soon a signal is heeded
INFERENCE_LIMIT_S = 2.0  # for which cleaning up and the end wait
END_LIMIT_S = 8  # for braking and giving everything back; whole seconds
INFERENCE = "inference"  # its threads are called so
NEVER_S = 1e9
LoadPolicy = Callable[[NodeConfig], Policy]
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def local_policy(config: NodeConfig) -> Policy:
    """The policy that the parameters name.

    Raises:
        ConfigError, CheckpointError: there is none, or it does not fit.
    """
    robot = RobotSpec.from_yaml(config.robot) if config.robot else None
    known = (config.policy_config or None, config.asset or None, config.tokenizer or None)
    return load_policy(
        config.policy, robot, config.device, config.dtype, config.chunking.rtc, *known, threads=config.threads
    )


@dataclass
class _Rig:
    """What configuring makes and cleaning up throws away, ``made``; ``loop`` runs while the node is active."""

    config: NodeConfig
    pilot: Pilot
    output: Output
    lock_step: LockStep | None
    diagnostics: Diagnostics
    made: ExitStack
    loop: ControlLoop | None = None
    is_active: bool = False


class PolicyNode(LifecycleNode):
    """Configure: load, warm up, subscribe. Activate: drive, once enabled. Deactivate: brake. Clean up: free the memory.

    Callbacks keep references to messages; inference has a thread, and so has the control loop, on a steady clock.

    Args:
        load: finds the policy.

    Attributes:
        error: why the last configuration failed.
        is_over: set once the node is shut down, which the life cycle allows once.
    """

    def __init__(self, load: LoadPolicy = local_policy, **options: Any) -> None:
        super().__init__("policy_node", **options)
        self.error: Pi0Error | None = None
        self.is_over = threading.Event()
        self._load = load
        self._rig: _Rig | None = None
        self._lock = threading.Lock()  # of the pilot
        self._stands = threading.Event()  # nothing is commanded
        self._state = self._reason = ""  # as the log has them
        parameters.declare(self, parameters.TABLE)
        self.add_on_set_parameters_callback(self._judge_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._prompt = self.create_publisher(String, "~/current_prompt", LATCHED)
        self.create_subscription(String, "~/prompt", self._on_prompt, 1)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._has_news = self.create_guard_condition(self._tell)
        self.create_timer(1.0, self._tell, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the policy, warm it up, subscribe."""
        self.error = None
        with self._errors_told():
            try:
                self._rig = self._configured()
            except Pi0Error as error:
                self.error = error.with_traceback(None)  # which would keep the policy
                self.get_logger().error(str(error))
                return FAILURE
        self._prompt.publish(String(data=self._rig.pilot.prompt))
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drive, if enabled."""
        rig = self._rig
        assert rig is not None
        super().on_activate(state)
        rig.is_active = True
        if rig.config.enabled:
            rig.pilot.enable()
        if rig.lock_step is None:
            rig.loop = ControlLoop(rig.pilot.period_s, self._tick, self._has_news.trigger)
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake, then be silent."""
        self._brake()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give everything back."""
        rig, self._rig = self._rig, None
        if rig is not None:
            if not (self.is_over.is_set() or rig.pilot.is_at_rest(INFERENCE_LIMIT_S)):
                self.get_logger().warning(
                    "an inference is still under way; until it ends, it keeps the policy in memory"
                )
            rig.made.close()
            del rig
            free_device_memory()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake and give everything back; the process ends."""
        self.is_over.set()
        return self.on_error(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Brake and give everything back; after a transition that went wrong the node is unconfigured."""
        self._brake()
        return self.on_cleanup(state)

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Log what rclpy would swallow."""
        try:
            yield
        except Exception as error:
            self.get_logger().error(f"{type(error).__name__}: {error}")
            raise

    def _configured(self) -> _Rig:
        config = NodeConfig.from_values(parameters.values(self, parameters.TABLE))
        with ExitStack() as made:  # if anything fails, nothing is left
            policy = self._load(config)
            if isinstance(policy, AbstractContextManager):
                made.push(policy)  # such as one of a server, which is left
            config.check_rates(policy.robot, policy.rates)
            cameras = config.cameras_of(policy.robot)
            worker = ThreadPoolExecutor(1, INFERENCE)
            made.callback(worker.shutdown, wait=False, cancel_futures=True)
            pilot = self._pilot(config, policy, cameras, worker)
            worker.submit(warm_up, policy, cameras, WARM_UP_IMAGE, config.chunking.has_prefix).result()
            output = Output(self, config, policy.robot, policy.rates)
            for publisher in output.publishers:
                made.callback(self.destroy_lifecycle_publisher, publisher)
            for subscription in self._subscribe(config, pilot.inputs.streams):
                made.callback(self.destroy_subscription, subscription)
            lock_step = LockStep(pilot) if config.lock_step else None
            diagnostics = Diagnostics(self.get_fully_qualified_name())
            return _Rig(config, pilot, output, lock_step, diagnostics, made.pop_all())

    def _pilot(self, config: NodeConfig, policy: Policy, cameras: tuple[str, ...], worker: ThreadPoolExecutor) -> Pilot:
        limits = config.safety
        if config.dry_run:  # an arm that is told nothing cannot follow
            limits = replace(limits, tracking_fault_s=NEVER_S)
        pose_joints = config.pose_joints_of(policy.robot)
        inputs = Inputs(policy.robot, cameras, limits, config.max_skew_s, pose_joints, config.twist_frame)
        safety = Safety(policy.robot, limits, cameras, policy.rates)
        pilot = Pilot(policy, inputs, config.chunking, safety, worker, config.lock_step)
        pilot.hear(config.prompt, time.monotonic())
        return pilot

    def _subscribe(self, config: NodeConfig, streams: tuple[str, ...]) -> Iterator[Subscription[Any]]:
        is_raw = config.image_transport == "raw"
        kind, topic = (Image, "image_raw") if is_raw else (CompressedImage, "image_raw/compressed")
        reliability = "reliable" if config.lock_step else config.image_reliability
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliability.upper()])
        overridable = QoSOverridingOptions.with_default_policies()
        others: dict[str, tuple[Any, str]] = {STATE: (JointState, "joint_states"), POSE: (PoseStamped, POSE)}
        for name in streams:
            message_type, full_topic = others.get(name, (kind, f"{name}/{topic}"))
            keep = partial(self._on_message, name)
            yield self.create_subscription(message_type, full_topic, keep, qos, qos_overriding_options=overridable)

    def _brake(self) -> None:
        rig = self._rig
        if rig is None or not rig.is_active:
            return
        with self._lock:
            rig.pilot.disable()
            self._stands.clear()
        if rig.loop is not None:
            if (failure := rig.loop.failure) is not None:
                self.get_logger().error(f"the control loop has ended, another one brakes: {failure!r}")
                rig.loop = ControlLoop(rig.pilot.period_s, self._tick, self._has_news.trigger)
            if not self._stands.wait(BRAKE_LIMIT_S):
                self.get_logger().error(f"the arm does not stand {BRAKE_LIMIT_S:g} s after it was to brake; be careful")
            rig.loop.stop()
        rig.pilot.halt()
        rig.loop, rig.is_active = None, False
        self._tell()

    # messages and time

    def _on_message(self, name: str, message: Any) -> None:
        rig = self._rig
        if rig is None:
            return
        if rig.lock_step is None:
            rig.pilot.inputs.put(name, message, self.get_clock().now().nanoseconds, time.monotonic())
        elif rig.is_active and (answer := rig.lock_step.put(name, message)):
            self._send(rig, *answer)
            self._note_state(rig)

    def _tick(self, now_s: float) -> None:
        """One command period, on the loop's thread."""
        rig = self._rig
        assert rig is not None
        clock_ns = self.get_clock().now().nanoseconds
        with self._lock:
            command = rig.pilot.step(now_s, clock_ns)
            if command is None:
                self._stands.set()
            else:
                self._stands.clear()
                self._send(rig, command, clock_ns)
            has_changed = self._note_state(rig)
        if has_changed:
            self._has_news.trigger()  # told on the executor's thread: whatever fails there, commands go on

    def _send(self, rig: _Rig, command: Any, stamp_ns: int) -> None:
        if not rig.config.dry_run:
            rig.output.send(rig.pilot, command, stamp_ns)

    def _note_state(self, rig: _Rig, with_reason: bool = False) -> bool:
        """Whether it drives in another way than before, or for another reason why it does not; the log says so."""
        _, state, reason = driving(rig.pilot)
        kind = "" if state == "tracking" else re.sub(r"[\d.]+", "", reason)  # numbers change all the time
        if state == self._state and not (with_reason and kind != self._reason):
            return False
        self._state, self._reason = state, kind
        words = f"{state}: {reason}" if reason else state
        if state == "fault":
            self.get_logger().error(words)
        elif state == "holding":
            self.get_logger().warning(words)
        else:
            self.get_logger().info(words)
        return True

    def _tell(self) -> None:
        """Publish the diagnostics; an error of the control loop ends the node."""
        rig = self._rig
        if rig is None:
            return
        if rig.loop is not None and rig.loop.failure is not None:
            raise rig.loop.failure
        now_s, clock_ns = time.monotonic(), self.get_clock().now().nanoseconds
        with self._lock:
            if not rig.is_active and rig.lock_step is None:
                rig.pilot.look_on(now_s)
            self._note_state(rig, with_reason=True)
            message = rig.diagnostics.message(rig.pilot, rig.loop, now_s, clock_ns)
        self._diagnostics.publish(message)

    # people

    def _on_prompt(self, message: String) -> None:
        if message.data == self.get_parameter("prompt").value:
            self._hear(message.data)
        else:
            self.set_parameters([Parameter("prompt", value=message.data)])

    def _hear(self, prompt: str) -> None:
        if self._rig is not None:
            with self._lock:
                self._rig.pilot.hear(prompt, time.monotonic())

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        rig = self._rig
        if rig is None or not rig.is_active:
            response.message = "the node is not active"
        elif request.data:
            with self._lock:
                response.message = rig.pilot.enable()
        else:
            with self._lock:
                rig.pilot.disable()
        response.success = not response.message
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        rig = self._rig
        if rig is None:
            response.message = "the node is not configured"
        else:
            seed = self.get_parameter("seed").value
            with self._lock:
                response.message = rig.pilot.reset(None if seed < 0 else seed)
            if rig.lock_step is not None and not response.message:
                rig.lock_step.restart()
        response.success = not response.message
        return response

    def _judge_parameters(self, changes: list[Parameter[Any]]) -> SetParametersResult:
        fixed = [
            change.name
            for change in changes
            if self._rig is not None and (entry := parameters.TABLE.get(change.name)) and not entry.is_live
        ]
        reason = f"{', '.join(fixed)} can be changed only while the node is unconfigured" if fixed else ""
        return SetParametersResult(successful=not fixed, reason=reason)

    def _apply_parameters(self, changes: list[Parameter[Any]]) -> None:
        for change in changes:
            if change.name == "prompt":
                self._hear(change.value)
                self._prompt.publish(String(data=change.value))


def main(args: list[str] | None = None, load: LoadPolicy = local_policy) -> None:
    """Run the node until a signal asks it to end; then the arm brakes first, and nothing that hangs is waited for.

    Raises:
        Pi0Error: a parameter is not as expected, or the node was to start by itself and cannot.
    """
    signals = note_signals()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        _spin(PolicyNode(load), signals)
    finally:
        rclpy.try_shutdown()
        _end_inference()


def _spin(node: PolicyNode, signals: list[int]) -> None:
    """Until there is a signal or the node is shut down."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.get_parameter("autostart").value:
            if node.trigger_configure() != SUCCESS:
                raise node.error or ConfigError("The node could not be configured; its log says why.")
            if node.trigger_activate() != SUCCESS:
                raise ConfigError("The node could not be activated; its log says why.")
        while not (signals or node.is_over.is_set()):
            executor.spin_once(timeout_sec=SPIN_S)
    finally:
        signal.alarm(END_LIMIT_S)
        if not node.is_over.is_set():
            node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        signal.alarm(0)


def _end_inference() -> None:
    """End the process if an inference hangs: Python would wait for it."""
    for thread in threading.enumerate():
        if thread.name.startswith(INFERENCE):
            thread.join(INFERENCE_LIMIT_S)
            if thread.is_alive():
                get_logger("policy_node").error("an inference hangs; the process ends without it")
                if sys.exc_info()[0]:  # why it ends, which would be lost
                    traceback.print_exc()
                os._exit(1)


if __name__ == "__main__":
    main()
