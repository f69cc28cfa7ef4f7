"""The loop without ROS: holds with a reason, recovers, and never lets the arm jump."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from ros_changes import joints, shifted, stamped, with_fields
from ros_flight import Flight
from swaying_policy import ARM6
from tiny_policy import tiny_policy

from pi0_control.control import ChunkingConfig, SafetyConfig
from pi0_control.errors import ConfigError
from pi0_control.policy import RtcConfig
from pi0_control.ros.inputs import STATE
from pi0_control.ros.reading import NS

CAMERA = ARM6.cameras[0]


def flying(**options: Any) -> Flight:
    """In the middle of a motion."""
    flight = Flight(**options)
    assert flight.pilot.enable() == ""
    command = flight.step(40)
    assert command is not None
    assert (command.status, command.reason) == ("tracking", "")
    assert np.abs(command.positions - ARM6.home).max() > 0.1
    return flight


FAULTS: dict[str, tuple[str, Any, str]] = {
    "camera dropped": (CAMERA, None, f"{CAMERA} has been silent for"),
    "camera wrong size": (CAMERA, with_fields(height=4, data=bytes(96)), "changed from '8x8 rgb8' to '8x4 rgb8'"),
    "camera torn": (CAMERA, with_fields(data=bytes(5)), f"{CAMERA}: The image says 8x8 .* has 5 bytes"),
    "encoding swapped": (CAMERA, with_fields(encoding="bgr8"), "changed from '8x8 rgb8' to '8x8 bgr8'"),
    "encoding unknown": (CAMERA, with_fields(encoding="16UC1"), "encoding '16UC1'; supported"),
    "stamp zero": (CAMERA, stamped(lambda stamp_ns: 0), f"{CAMERA} has a stamp of zero"),
    "stamp in the future": (CAMERA, shifted(NS), f"{CAMERA} is stamped 1.00 s in the future"),
    "stamp old": (CAMERA, shifted(-NS), f"{CAMERA} comes 1.00 s late"),
    "cameras skewed": (CAMERA, shifted(-NS // 5), f"{CAMERA} is 0.20 s behind the other cameras"),
    "state dropped": (STATE, None, "state has been silent for"),
    "state stamp zero": (STATE, stamped(lambda stamp_ns: 0), "state has a stamp of zero"),
    "joint missing": (STATE, joints(ARM6.joint_names[1:], ARM6.home[1:]), r"state: The joint .* lacks \['waist'\]"),
    "joint not finite": (STATE, joints(ARM6.joint_names, ARM6.home * np.nan), "state: The position of .* not finite"),
    "joints without names": (STATE, with_fields(name=[]), "state: The joint state has 0 names"),
}


@pytest.mark.parametrize(("stream", "instead", "words"), FAULTS.values(), ids=FAULTS)
def test_every_bad_input_makes_the_arm_hold_and_say_why_until_it_is_over(stream: str, instead: Any, words: str) -> None:
    flight = flying()
    command = flight.step(20, **{stream: instead})
    assert command is not None
    assert command.status == "holding"
    assert re.search(words, command.reason), command.reason
    assert np.array_equal(command.positions, flight.commands[-2].positions)  # stands
    flight.step(3)
    command = flight.step()
    assert command is not None
    assert command.status == "tracking"
    assert flight.pilot.holds == 1
    flight.check_commands()


def test_a_frozen_camera_is_told_from_a_silent_one() -> None:
    flight = flying()
    last = flight.message(CAMERA)
    command = flight.step(11, **{CAMERA: last})
    assert command is not None
    assert command.status == "holding"
    assert command.reason.startswith(f"{CAMERA} is frozen: it has repeated one stamp for 0.55 s")


@pytest.mark.parametrize("stream", [CAMERA, STATE, "all"])
def test_a_stamp_in_the_future_gets_no_better_by_waiting(stream: str) -> None:
    flight = flying()
    streams = flight.inputs.streams if stream == "all" else [stream]
    flight.step(10, **dict.fromkeys(streams, shifted(3 * NS)))
    flight.commands.clear()
    flight.step(90, **dict.fromkeys(streams))  # until its time has come, and beyond
    assert {command.status for command in flight.commands} == {"holding"}
    assert {*flight.pilot.look.troubles} >= {*streams}
    flight.step(4)
    assert flight.commands[-1].status == "tracking"


def test_what_comes_after_a_tick_has_read_its_clock_is_not_from_the_future() -> None:
    flight = Flight()
    late_ns, began_s = 40_000, flight.now_ns / NS
    for name in flight.inputs.streams:
        flight.inputs.put(name, flight.message(name), flight.clock_ns + late_ns, began_s + 1e-4)
    assert {*flight.inputs.look(began_s).ages_s.values()} == {late_ns / NS}


def test_a_camera_may_have_an_age_limit_of_its_own() -> None:
    flight = flying(safety=SafetyConfig(camera_ages_s={CAMERA: 0.2}))
    flight.step(5, **{ARM6.cameras[1]: None})
    assert "behind the other cameras" in flight.commands[-1].reason
    flight.step()
    flight.step(5, **{CAMERA: None})
    assert flight.commands[-1].reason == f"{CAMERA} has been silent for 0.25 s; the limit is 0.2 s"


def test_a_prompt_of_limited_age_has_to_come_again() -> None:
    flight = flying(safety=SafetyConfig(max_prompt_age_s=500.0))
    flight.pilot.hear("sway", flight.now_ns / NS - 499.9)
    command = flight.step(20)
    assert command is not None
    assert (command.status, command.reason) == ("holding", "the newest of prompt is 500.90 s old; the limit is 500 s")
    flight.pilot.hear("sway", flight.now_ns / NS)
    command = flight.step(4)
    assert command is not None
    assert command.status == "tracking"
    flight.check_commands()


def test_shuffled_joints_are_put_in_order() -> None:
    def shuffled(message: Any) -> Any:
        order = np.random.default_rng(0).permutation(7)
        return with_fields(name=[message.name[i] for i in order], position=[message.position[i] for i in order])(
            message
        )

    straight, mixed = flying(), flying()
    straight.step(20)
    mixed.step(20, **{STATE: shuffled})
    assert [c.positions.tolist() for c in mixed.commands] == [c.positions.tolist() for c in straight.commands]


def test_a_clock_that_goes_back_makes_it_wait_for_inputs_of_the_new_time() -> None:
    flight = flying()
    flight.clock_ns -= 5 * NS
    nothing = dict.fromkeys(flight.inputs.streams)
    command = flight.step(**nothing)
    assert command is not None
    assert (command.status, command.reason) == (
        "holding",
        "nothing has come from state since the clock went back by 4.95 s",
    )
    command = flight.step(4)
    assert command is not None
    assert command.status == "tracking"
    flight.check_commands()


def test_a_clock_that_jumps_ahead_makes_it_wait_for_stamps_of_the_new_time() -> None:
    flight = flying()
    flight.clock_ns += 5 * NS
    command = flight.step(**dict.fromkeys(flight.inputs.streams, shifted(-5 * NS)))
    assert command is not None
    assert (command.status, command.reason) == ("holding", "state comes 5.00 s late; the limit is 0.2 s")
    flight.step(4)
    assert flight.commands[-1].status == "tracking"
    flight.check_commands()


def test_a_clock_that_stands_still_does_not_keep_inputs_fresh() -> None:
    flight = flying()
    nothing = dict.fromkeys(flight.inputs.streams)
    for _ in range(12):
        flight.clock_ns -= 50_000_000  # step() moves it on
        flight.step(**nothing)
    assert flight.commands[-1].status == "holding"
    assert "silent" in flight.commands[-1].reason


def test_a_late_inference_is_given_up_and_its_chunk_refused() -> None:
    flight = flying()
    flight.worker.is_fast = False
    command = flight.step(50)
    assert command is not None
    assert command.status == "holding"
    assert "inference has been running for 2." in command.reason
    inferred = len(flight.pilot.policy.observations)  # type: ignore[attr-defined]
    flight.worker.finish()
    flight.worker.is_fast = True
    command = flight.step(2)
    assert command is not None
    assert command.status == "tracking"
    assert len(flight.pilot.policy.observations) == inferred + 2  # type: ignore[attr-defined]
    assert not flight.pilot.safety.fault
    flight.check_commands()


def test_a_chunk_of_another_observation_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    flight = flying()
    policy = flight.pilot.policy
    infer = policy.infer
    monkeypatch.setattr(policy, "infer", lambda *seen, **options: replace(infer(*seen, **options), start_s=0.0))
    command = flight.step(40)
    assert command is not None
    assert command.status == "holding"
    assert not flight.pilot.has_new_chunk
    monkeypatch.undo()
    command = flight.step(3)
    assert command is not None
    assert command.status == "tracking"
    flight.check_commands()


def test_a_policy_that_raises_holds_then_latches_and_a_reset_clears_it() -> None:
    flight = flying()
    flight.pilot.prompt = "raise"
    command = flight.step(20)
    assert command is not None
    assert (command.status, command.reason) == ("holding", "RuntimeError: out of memory")
    flight.pilot.prompt = "sway"
    command = flight.step(2)
    assert command is not None
    assert command.status == "tracking"
    flight.pilot.prompt = "raise"
    command = flight.step(120)
    assert command is not None
    assert command.status == "fault"
    flight.pilot.prompt = "sway"
    flight.step(20)
    assert "fault is latched: the policy has failed for 5.0 s: RuntimeError" in flight.pilot.enable()
    assert flight.commands[-1].status == "fault"
    assert flight.pilot.reset(seed=3) == ""
    command = flight.step(2)
    assert command is not None
    assert command.status == "tracking"
    assert flight.pilot.policy.seeds == [3]  # type: ignore[attr-defined]
    flight.check_commands()


def test_a_policy_that_is_not_asked_does_not_fail() -> None:
    flight = flying()
    flight.pilot.prompt = "raise"
    flight.step(20)
    flight.pilot.prompt = ""
    command = flight.step(200)
    assert command is not None
    assert (command.status, command.reason) == ("holding", "there is no prompt")
    flight.pilot.prompt = "sway"
    flight.step(2)
    assert flight.commands[-1].status == "tracking"
    flight.check_commands()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("refuse", "the prompt is too long"), ("lose count", "not all its actions are finite"), ("", "no prompt")],
)
def test_what_the_policy_cannot_answer_holds_and_never_latches(prompt: str, words: str) -> None:
    flight = flying()
    flight.pilot.prompt = prompt
    command = flight.step(200)
    assert command is not None
    assert command.status == "holding"
    assert words in command.reason
    flight.pilot.prompt = "sway"
    command = flight.step(2)
    assert command is not None
    assert command.status == "tracking"
    flight.check_commands()


def test_a_flood_of_prompts_ends_with_the_last_one() -> None:
    flight = flying()
    flight.worker.is_fast = False
    for index in range(30):
        flight.pilot.prompt = f"prompt {index}"
        flight.worker.finish()
        flight.step()
    assert flight.commands[-1].status == "holding"
    assert "former prompt" in flight.commands[-1].reason
    flight.worker.is_fast = True
    flight.worker.finish()
    flight.step(3)
    assert flight.commands[-1].status == "tracking"
    assert flight.pilot.policy.observations[-1].prompt == "prompt 29"  # type: ignore[attr-defined]
    flight.check_commands()


def test_it_commands_nothing_until_enabled_and_once_a_disabled_arm_stands() -> None:
    flight = Flight()
    assert flight.step(5) is None
    flight.pilot.enable()
    flight.step(40)
    flight.pilot.disable()
    brake = [flight.step() for _ in range(10)]
    assert [command.reason for command in brake if command] == ["disabled"] * (10 - brake.count(None))
    assert brake[0] is not None
    assert brake[-1] is None
    flight.pose = flight.pose + np.float32(0.2)  # moved by hand
    flight.commands = []
    flight.pilot.enable()
    command = flight.step()
    assert command is not None
    assert np.abs(command.positions - flight.pose).max() < 0.02
    assert "disable first" in flight.pilot.reset()


def test_an_arm_that_was_halted_in_mid_motion_is_commanded_from_where_it_is() -> None:
    flight = flying()
    flight.pilot.halt()
    flight.pose = found = flight.pose + np.float32([1, 0, 0, 0, 0, 0, 0])  # moved by hand
    assert flight.step(5) is None
    assert flight.pilot.enable() == ""
    command = flight.step()
    assert command is not None
    assert np.abs(command.positions - found).max() < 0.05


def test_inputs_are_seen_without_steps_and_without_keeping_them_to_their_format() -> None:
    flight = Flight()
    other = with_fields(height=4, data=bytes(96))
    for name in flight.inputs.streams:
        message = flight.message(name)
        flight.inputs.put(name, other(message) if name == CAMERA else message, flight.clock_ns, flight.now_ns / NS)
    flight.pilot.look_on(flight.now_ns / NS)
    assert not flight.pilot.look.troubles
    flight.pilot.look_on(flight.now_ns / NS + 1)
    assert set(flight.pilot.look.troubles) == {*flight.inputs.streams}
    flight.pilot.enable()
    flight.step(2)
    assert not flight.pilot.look.troubles


def test_a_message_that_comes_while_the_inputs_are_cleared_is_forgotten_too() -> None:
    flight = Flight()
    message = flight.message(CAMERA)

    class Header:
        """Looked at in the midst of :meth:`Inputs.put`."""

        @property
        def stamp(self) -> Any:
            flight.inputs.clear("since then")
            return message.header.stamp

    flight.inputs.put(CAMERA, SimpleNamespace(header=Header()), flight.clock_ns, flight.now_ns / NS)
    assert flight.inputs.look(flight.now_ns / NS).troubles[CAMERA] == f"nothing has come from {CAMERA} since then"


def test_enabling_again_changes_nothing_and_enabling_while_it_brakes_goes_on() -> None:
    once, twice = flying(), flying()
    assert twice.pilot.enable() == ""
    once.step(20)
    twice.step(20)
    assert [c.positions.tolist() for c in twice.commands] == [c.positions.tolist() for c in once.commands]
    twice.pilot.disable()
    command = twice.step()
    assert command is not None
    assert command.reason == "disabled"
    assert twice.pilot.enable() == ""
    twice.step(10)
    assert twice.commands[-1].status == "tracking"
    twice.check_commands()


def test_nothing_is_commanded_before_the_arm_was_measured() -> None:
    flight = Flight()
    flight.pilot.enable()
    assert flight.step(5, **{STATE: None}) is None
    assert flight.step() is not None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*FAULTS, "late", "prompt", "disable", "reset"]), st.integers(1, 15)), max_size=8
    )
)
def test_whatever_happens_no_command_jumps(story: list[tuple[str, int]]) -> None:
    flight = Flight()
    for event, steps in story:
        flight.pilot.enable()
        flight.worker.is_fast = event != "late"
        if event in FAULTS:
            stream, instead, _ = FAULTS[event]
            flight.step(steps, **{stream: instead})
        elif event == "prompt":
            flight.pilot.prompt = "raise" if flight.pilot.prompt == "sway" else "sway"
        elif event == "disable":
            flight.pilot.disable()
            flight.step(steps)
        elif event == "reset":
            flight.pilot.reset()
        flight.worker.finish()
        flight.step(steps)
    flight.check_commands()


def test_a_preview_is_what_will_be_commanded_and_ends_standing() -> None:
    flight = flying()
    while not flight.pilot.has_new_chunk:
        flight.step()
    preview = flight.pilot.preview(flight.now_ns / NS)
    flight.worker.is_fast = False  # nothing new comes
    for command in preview[1:]:
        following = flight.step()
        assert following is not None
        assert np.allclose(following.positions, command.positions, atol=1e-5)
    assert len(preview) >= flight.pilot.player.config.for_policy(16, 8).execution_horizon or 0
    standing = flight.step()
    assert standing is not None
    assert np.array_equal(standing.positions, preview[-1].positions)
    assert flight.pilot.preview(flight.now_ns / NS)[1:] == []


def test_a_policy_is_continued_only_as_it_was_trained_to() -> None:
    trained = tiny_policy(rtc=RtcConfig("trained"), rtc_max_delay=2)
    assert Flight(trained, ChunkingConfig("rtc_trained")).pilot.player.config.max_delay == 2
    with pytest.raises(ConfigError, match="got 'rtc', available: "):
        Flight(trained, ChunkingConfig("rtc"))
