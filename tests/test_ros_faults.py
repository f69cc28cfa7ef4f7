"""Fault injection over DDS: each fault ends in a hold that says why, and the arm goes on when it is over.

One node in a process of its own lives through all of them; what it commanded is judged after each.
"""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from ros_bench import NODE, Bench
from ros_changes import joints, shifted, stamped, with_fields
from ros_graph import ros_context
from std_msgs.msg import String
from swaying_policy import ARM6

from pi0_control.ros.inputs import STATE
from pi0_control.ros.reading import NS

CAMERA = ARM6.cameras[0]
PARAMETERS = ("prompt:=sway", "autostart:=true", "enabled:=true")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ros_context() as context:
        bench = Bench(context, tmp_path_factory.mktemp("faults") / "log.txt", *PARAMETERS)
        yield bench
        bench.close()


@pytest.fixture(autouse=True)
def arm(bench: Bench) -> Iterator[None]:
    """In the middle of a motion before, and after; never a jump in between."""
    bench.until_moving()
    yield
    bench.until_moving()
    bench.robot.check_commands()


BAD_INPUTS: dict[str, tuple[str, Any, str]] = {
    "camera dropped": (CAMERA, None, f"{CAMERA} has been silent for"),
    "camera of the wrong size": (CAMERA, with_fields(height=24, data=bytes(24 * 192)), "'64x48 rgb8' to '64x24 rgb8'"),
    "encoding swapped": (CAMERA, with_fields(encoding="bgr8"), "has changed from '64x48 rgb8' to '64x48 bgr8'"),
    "encoding unknown": (CAMERA, with_fields(encoding="16UC1"), "has encoding '16UC1'; supported"),
    "joint missing": (STATE, joints(ARM6.joint_names[1:], ARM6.home[1:]), "lacks ['waist']"),
    "NaN in joint state": (STATE, joints(ARM6.joint_names, ARM6.home * np.nan), "is not finite"),
    "joints silent": (STATE, None, "state has been silent for"),
    "stamp zero": (CAMERA, stamped(lambda stamp_ns: 0), f"{CAMERA} has a stamp of zero"),
    "stamp in the future": (CAMERA, shifted(NS), "s in the future"),
    "stamp late": (STATE, shifted(-NS), "state comes 1."),
    "cameras skewed": (CAMERA, shifted(-(NS // 3)), "s behind the other cameras"),
}


@pytest.mark.parametrize(("stream", "instead", "words"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_a_bad_input_holds_the_arm(bench: Bench, stream: str, instead: Any, words: str) -> None:
    bench.robot.instead[stream] = instead
    bench.until_holding(words)
    del bench.robot.instead[stream]


def test_a_frozen_camera_holds_the_arm(bench: Bench) -> None:
    frozen: list[Any] = []

    def repeat(message: Any) -> Any:
        frozen.append(message)
        return frozen[0]

    bench.robot.instead[CAMERA] = repeat
    bench.until_holding(f"{CAMERA} is frozen: it has repeated one stamp")
    del bench.robot.instead[CAMERA]


def test_shuffled_joints_change_nothing(bench: Bench) -> None:
    def shuffle(message: Any) -> Any:
        pairs = sorted(zip(message.name, message.position, strict=True))
        return with_fields(name=[name for name, _ in pairs], position=[value for _, value in pairs])(message)

    bench.robot.instead[STATE] = shuffle
    bench.until_moving()
    bench.robot.check_commands()
    del bench.robot.instead[STATE]


def test_joints_without_names_hold_the_arm(bench: Bench) -> None:
    bench.robot.instead[STATE] = with_fields(name=[])
    bench.until_holding("0 names and 7 positions")
    del bench.robot.instead[STATE]


def test_a_clock_that_jumps_back_holds_the_arm_until_all_inputs_are_of_the_new_time(bench: Bench) -> None:
    bench.robot.instead = dict.fromkeys([STATE, *ARM6.cameras])
    bench.until_holding("has been silent for")  # so that nothing of the former time comes after it
    bench.robot.offset_ns -= 20 * NS
    bench.until_holding("since the clock went back by")
    bench.robot.instead = {}


def test_a_clock_that_stands_still_disarms_nothing(bench: Bench) -> None:
    bench.robot.is_clock_running = False
    bench.robot.instead[STATE] = None
    bench.until_holding("state has been silent for")
    bench.robot.instead.clear()
    bench.robot.is_clock_running = True


def test_a_publisher_that_restarts_is_found_again(bench: Bench) -> None:
    bench.robot.destroy_cameras()
    bench.until_holding("has been silent for")
    bench.robot.publish_cameras()


def test_an_inference_that_is_five_seconds_late_is_given_up(bench: Bench) -> None:
    assert bench.set("prompt", "be late") == ""
    bench.until_holding("inference has been running for")
    assert bench.set("prompt", "sway") == ""


def test_an_inference_that_raises_holds_then_is_a_fault_until_reset(bench: Bench) -> None:
    assert bench.set("prompt", "raise") == ""
    bench.until_holding("RuntimeError: out of memory")
    bench.probe.until(lambda: bench.robot.message("policy") == "RuntimeError: out of memory", "the policy's status")
    assert bench.robot.diagnostics["policy"].level == DiagnosticStatus.WARN
    bench.probe.until(lambda: "RuntimeError: out of memory" in bench.process.output, "the log")
    bench.until_state("fault")
    bench.until_standing()
    assert bench.set("prompt", "sway") == ""
    assert "the policy has failed for" in bench.enable()
    assert bench.reset() == ""


def test_actions_that_are_not_finite_are_never_played(bench: Bench) -> None:
    assert bench.set("prompt", "lose count") == ""
    bench.until_holding("not all its actions are finite")
    assert bench.set("prompt", "sway") == ""


def test_a_flood_of_prompts_ends_with_the_last_one(bench: Bench) -> None:
    robot, probe = bench.robot, bench.probe
    robot.sentences.clear()
    for index in range(6000):
        probe.publish(f"{NODE}/prompt", String(data=f"sway {index}"))
        if index % 10 == 0:
            count = len(robot.commands)
            probe.until(lambda count=count: len(robot.commands) > count, "a command")
        if index >= 300 and any("former prompt" in sentence for sentence in robot.sentences):
            break
    assert any("former prompt" in sentence for sentence in robot.sentences)
    probe.publish(f"{NODE}/prompt", String(data="sway"))
    probe.until(lambda: bench.prompts[-1].data == "sway", "the last prompt")


def test_deactivating_in_mid_motion_brakes(bench: Bench) -> None:
    assert bench.change(Transition.TRANSITION_DEACTIVATE)
    bench.until_state("disabled")
    assert "holding: disabled" in bench.process.output
    bench.robot.instead = dict.fromkeys([STATE, *ARM6.cameras])
    bench.probe.until(lambda: "has been silent for" in bench.robot.message("inputs"), "the truth about the inputs")
    bench.robot.instead = {}
    bench.probe.until(lambda: bench.robot.message("inputs") == "fresh", "the truth about the inputs")
    assert bench.change(Transition.TRANSITION_ACTIVATE)


def test_a_node_that_is_killed_comes_back_from_where_the_arm_is(bench: Bench) -> None:
    robot = bench.robot
    assert bench.end(signal.SIGKILL) != 0
    robot.check_commands()
    robot.commands.clear()
    found = robot.pose
    bench.restart()
    bench.until_moving()
    assert np.abs(robot.commands[0][1] - found).max() < 0.05


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda how: how.name)
def test_a_signal_in_mid_motion_brakes_and_ends_the_process(bench: Bench, how: signal.Signals) -> None:
    robot = bench.robot
    assert bench.end(how) == 0
    robot.check_commands()
    assert "holding: disabled" in bench.process.output
    assert "the arm does not stand" not in bench.process.output
    bench.restart()


def test_sigterm_during_an_inference_that_hangs_brakes_and_ends_the_process(bench: Bench) -> None:
    assert bench.set("prompt", "hang") == ""
    bench.until_holding("inference has been running for")
    assert bench.end(signal.SIGTERM) == 1
    assert "disabled" in bench.process.output
    assert "an inference hangs; the process ends without it" in bench.process.output
    bench.restart()
