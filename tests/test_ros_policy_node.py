"""The managed node in a process of its own: life cycle, services, parameters, outputs, diagnostics."""

import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_bench import NODE, SCRIPT, Bench
from ros_graph import LIMIT_S, Probe, Process, ros_context
from ros_robot import Robot, check_positions
from std_msgs.msg import Float64MultiArray, String
from swaying_policy import ARM6, SwayingPolicy

from pi0_control.ros import policy_node
from pi0_control.ros.diagnostics import Diagnostics
from pi0_control.ros.outputs import Output
from pi0_control.ros.parameters import TABLE, NodeConfig
from pi0_control.ros.pilot import Pilot
from pi0_control.ros.policy_node import PolicyNode
from pi0_control.types import ActionChunk, Observation


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ros_context() as context:
        bench = Bench(context, tmp_path_factory.mktemp("node") / "log.txt", "prompt:=sway")
        yield bench
        bench.close()


def test_sigterm_while_a_policy_is_being_loaded_ends_the_process(tmp_path: Path) -> None:
    with ros_context() as context:
        probe = Probe(context)
        arguments = ["--ros-args", "-p", "policy:=endless", "-p", "autostart:=true"]
        process = Process([str(SCRIPT), *arguments], tmp_path / "log.txt")
        probe.until(lambda: "loading" in process.output, "the load")
        assert process.end(signal.SIGTERM) == -signal.SIGALRM
        probe.close()


def test_sigterm_while_a_command_is_stuck_ends_the_process(tmp_path: Path) -> None:
    with ros_context() as context:
        parameters = ("prompt:=sway", "policy:=stuck", "autostart:=true", "enabled:=true")
        bench = Bench(context, tmp_path / "log.txt", *parameters)
        bench.probe.until(lambda: len(bench.robot.commands) == 10, "commands")
        assert bench.end(signal.SIGTERM) == -signal.SIGALRM
        bench.close()


@pytest.fixture
def driven() -> Iterator[tuple[PolicyNode, Probe, Robot]]:
    """A node in this process, and the robot in mid-motion."""
    values = {"prompt": "sway", "enabled": True, "use_sim_time": True, "safety.tracking_fault_s": 3000.0}
    parameters = [Parameter(name, value=value) for name, value in values.items()]
    with ros_context() as context:
        probe, robot = Probe(context), Robot(context)
        node = PolicyNode(lambda config: SwayingPolicy(), context=context, parameter_overrides=parameters)
        for each in (robot, node):
            probe.add(each)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        probe.until(lambda: len(robot.commands) > 10 and np.abs(robot.pose - ARM6.home).max() > 0.3, "a motion")
        yield node, probe, robot
        for each in (node, robot):
            each.destroy_node()
        probe.close()


@pytest.mark.parametrize("broken", [Output.send, Diagnostics.message], ids=lambda broken: broken.__qualname__)
def test_an_error_of_ours_ends_the_node_and_the_arm_brakes_before(
    driven: tuple[PolicyNode, Probe, Robot], broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (node, probe, robot), breaks = driven, iter([True])

    def once(*arguments: Any) -> Any:
        if next(breaks, False):
            raise LookupError("a bug")
        return broken(*arguments)

    monkeypatch.setattr(Output if broken is Output.send else Diagnostics, broken.__name__, once)
    with pytest.raises(LookupError, match="a bug"):
        probe.until(lambda: False, "an error")
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
    assert node._stands.is_set()  # before its time was up
    probe.until(lambda beats=robot.beats: robot.beats > beats + 20, "the last commands")
    robot.check_commands()


def test_an_arm_that_still_moves_when_time_is_up_is_told_nothing_more(
    driven: tuple[PolicyNode, Probe, Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, probe, robot = driven
    monkeypatch.setattr(policy_node, "BRAKE_LIMIT_S", 1e-3)
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    probe.until(lambda beats=robot.beats: robot.beats > beats + 20, "the last commands")
    robot.commands.clear()
    robot.pose = ARM6.home.copy()  # moved by hand
    probe.until(lambda beats=robot.beats: robot.beats > beats + 5, "measurements")
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    probe.until(lambda: len(robot.commands) > 5, "commands from where it is")
    assert np.abs(robot.commands[0][1] - ARM6.home).max() < 0.05
    robot.check_commands()


def test_cleaning_up_waits_for_an_inference(
    driven: tuple[PolicyNode, Probe, Robot], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, probe, _ = driven
    begun, may_end, is_at_rest = threading.Event(), threading.Event(), Pilot.is_at_rest

    def slow(*_: Any, **__: Any) -> ActionChunk:
        begun.set()
        may_end.wait(LIMIT_S)
        raise ValueError("too late")

    rig = node._rig
    assert rig is not None
    policy = weakref.ref(rig.pilot.policy)
    rig.pilot.policy.infer = slow  # type: ignore[method-assign]
    del rig
    probe.until(begun.is_set, "an inference")
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    monkeypatch.setattr(Pilot, "is_at_rest", lambda pilot, limit_s: may_end.set() or is_at_rest(pilot, limit_s))
    assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    assert policy() is None


def test_cleaning_up_lets_go_of_the_policy() -> None:
    policies = list[weakref.ref[SwayingPolicy]]()

    def load(config: NodeConfig) -> SwayingPolicy:
        policy = SwayingPolicy()
        policies.append(weakref.ref(policy))
        return policy

    with ros_context() as context:
        node = PolicyNode(load, context=context)
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert policies[0]() is not None
        assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert policies[0]() is None
        node.destroy_node()


def test_real_time_chunking_is_warmed_up_as_it_will_be_used() -> None:
    prefixes = list[Any]()

    class RememberingPolicy(SwayingPolicy):
        def infer(self, observation: Observation, **options: Any) -> ActionChunk:
            prefixes.append(options.get("prefix"))
            return super().infer(observation, **options)

    with ros_context() as context:
        rtc = Parameter("chunking.strategy", value="rtc")
        node = PolicyNode(lambda config: RememberingPolicy(), context=context, parameter_overrides=[rtc])
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert [prefix is None for prefix in prefixes] == [True, False]
        assert node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        node.destroy_node()


@pytest.mark.parametrize(
    ("rates", "cameras", "words"),
    [((), "nose", r"cameras has \['nose'\]"), (("waist",), "", r"moves \['waist'\] by velocities or steps")],
)
def test_a_configuration_that_fails_says_why_and_leaves_nothing(
    rates: tuple[str, ...], cameras: str, words: str
) -> None:
    closed = list[str]()

    class ClosablePolicy(SwayingPolicy):
        def __enter__(self) -> "ClosablePolicy":
            raise AssertionError

        def __exit__(self, *_: object) -> None:
            closed.append("policy")

    policies = list[weakref.ref[SwayingPolicy]]()

    def load(config: NodeConfig) -> SwayingPolicy:
        policy = ClosablePolicy()
        policy.rates = rates
        policies.append(weakref.ref(policy))
        return policy

    with ros_context() as context:
        node = PolicyNode(load, context=context, parameter_overrides=[Parameter("cameras", value=cameras)])
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert re.search(words, str(node.error))
        assert policies[0]() is None
        assert closed == ["policy"]
        node.destroy_node()


def test_it_drives_only_while_active_and_enabled(bench: Bench) -> None:
    robot, probe = bench.robot, bench.probe
    assert bench.enable() == "the node is not active"
    assert bench.change(Transition.TRANSITION_CONFIGURE)
    assert bench.change(Transition.TRANSITION_ACTIVATE)
    bench.until_state("disabled")
    probe.until(lambda: robot.message("inputs") == "fresh", "inputs")
    assert robot.commands == []
    assert bench.enable() == ""
    bench.until_state("tracking")
    probe.until(lambda: np.abs(robot.pose - ARM6.home).max() > 0.3, "a motion")
    assert "disable first" in bench.reset()
    assert bench.enable(False) == ""
    bench.until_told_again("disabled")
    count = len(robot.commands)
    bench.until_told_again("disabled")
    assert len(robot.commands) == count
    assert bench.reset() == ""
    assert bench.enable() == ""
    bench.until_moving()
    robot.check_commands()


def test_deactivating_in_mid_motion_brakes_and_activating_goes_on_from_there(bench: Bench) -> None:
    robot = bench.robot
    assert bench.change(Transition.TRANSITION_DEACTIVATE)
    bench.until_told_again("disabled")
    robot.check_commands()
    robot.pose = found = np.clip(robot.pose + np.float32(0.1), ARM6.lower, ARM6.upper)  # moved by hand
    robot.commands.clear()
    bench.until_told_again("disabled")  # and measured since
    assert bench.change(Transition.TRANSITION_ACTIVATE)
    assert bench.enable() == ""
    bench.until_state("tracking")
    assert np.abs(robot.commands[0][1] - found).max() < 0.05
    bench.probe.until(lambda: len(robot.commands) > 20, "commands")
    robot.check_commands()


def test_the_diagnostics_have_the_whole_budget(bench: Bench) -> None:
    robot, probe = bench.robot, bench.probe
    probe.until(lambda: float(robot.state("inputs").get("base_0_rgb rate_hz", 0)) > 1, "a rate")
    assert {"queued_actions", "seam_jump", "holds", "missed_deadlines", "jitter_p99_ms", "delay_steps"} <= {
        *robot.state()
    }
    assert {"preprocess_ms", "prefix_ms", "denoise_ms", "inference_ms", "peak_memory_mb"} <= {*robot.state("policy")}
    for stream in ("state", *ARM6.cameras):
        age_ms = float(robot.state("inputs")[f"{stream} age_ms"])
        assert abs(age_ms) < 1000  # stamps are ahead of a clock that comes as messages, by one of them
    assert float(robot.state("policy")["peak_memory_mb"]) > 50
    assert robot.diagnostics["control"].name == f"{NODE}: control"
    assert robot.diagnostics["control"].hardware_id == "arm6"


def test_a_prompt_is_a_parameter_and_a_topic_and_is_echoed(bench: Bench) -> None:
    probe = bench.probe
    probe.until(lambda: bench.prompts and bench.prompts[-1].data == "sway", "the prompt of the start")
    probe.publish(f"{NODE}/prompt", String(data="sway more"))
    probe.until(lambda: bench.prompts[-1].data == "sway more", "an echo")
    request = GetParameters.Request(names=["prompt"])
    values = probe.call(GetParameters, f"{NODE}/get_parameters", request).values
    assert values[0].string_value == "sway more"
    assert bench.set("prompt", "") == ""
    probe.until(lambda: bench.robot.message() == "there is no prompt", "a hold")
    assert bench.set("prompt", "sway") == ""
    bench.until_state("tracking")


def test_parameters_are_described_and_change_only_where_it_is_safe(bench: Bench) -> None:
    names = bench.probe.call(ListParameters, f"{NODE}/list_parameters").result.names
    assert {*TABLE} <= {*names}
    request = DescribeParameters.Request(names=list(TABLE))
    descriptors = bench.probe.call(DescribeParameters, f"{NODE}/describe_parameters", request).descriptors
    assert all(descriptor.description for descriptor in descriptors)
    assert bench.set("policy", "mini") == "policy can be changed only while the node is unconfigured"
    assert bench.set("seed", 5) == ""


def test_cleaning_up_lets_everything_be_configured_anew(bench: Bench) -> None:
    robot, probe = bench.robot, bench.probe
    bench.clean_up()
    probe.until(lambda: not robot.cameras["base_0_rgb"].get_subscription_count(), "no subscriber")
    assert bench.set("output", "nonsense") == ""
    assert not bench.change(Transition.TRANSITION_CONFIGURE)
    assert "Parameter output is 'nonsense'; expected one of ['joint_state'" in bench.process.output
    assert bench.set("output", "positions") == ""
    arrays = probe.listen(Float64MultiArray, "commands", 1000)
    bench.start()
    probe.until(lambda: len(arrays) > 3, "arrays")
    assert len(arrays[-1].data) == 7


def test_trajectories_from_compressed_images_move_the_arm_smoothly(bench: Bench) -> None:
    robot = bench.robot
    bench.clean_up()
    assert bench.set("output", "trajectory") == ""
    assert bench.set("image_transport", "compressed") == ""
    bench.start()
    found = robot.pose
    bench.probe.until(lambda: np.abs(robot.pose - found).max() > 0.1, "a motion")
    for positions in robot.trajectories:
        check_positions(positions)


def test_a_dry_run_does_all_but_publish(bench: Bench) -> None:
    robot, probe = bench.robot, bench.probe
    bench.clean_up()
    assert bench.set("output", "joint_state") == ""
    assert bench.set("dry_run", True) == ""
    robot.follow_no_more()
    bench.start()
    probe.until(lambda: float(robot.state()["queued_actions"]) > 0, "chunks")
    for _ in range(3):
        robot.diagnostics.clear()
        bench.until_state("tracking")
    assert robot.commands == []
