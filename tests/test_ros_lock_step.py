"""A robot that waits: one answer for every complete set of inputs."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from ros_flight import DT_NS, PICTURE, Flight
from swaying_policy import ARM6, SwayingPolicy

from pi0_control.control import ChunkingConfig, Pi0Agent, SafetyConfig
from pi0_control.ros.lock_step import LockStep
from pi0_control.ros.reading import to_ns
from pi0_control.types import Command


class Sets:
    """What the robot sends, and what it is answered."""

    def __init__(self, chunking: ChunkingConfig | None = None) -> None:
        self.flight = Flight(SwayingPolicy(), chunking, is_lock_step=True)
        self.flight.clock_ns = 4_000_000_000
        self.lock_step = LockStep(self.flight.pilot)

    def send(self) -> list[tuple[Command, int]]:
        """All streams once; the answers."""
        messages = {name: self.flight.message(name) for name in self.flight.inputs.streams}
        return [answer for name, message in messages.items() if (answer := self.lock_step.put(name, message))]


@pytest.mark.parametrize("strategy", ["sync", "ensemble", "rtc"])
def test_it_answers_what_the_agent_does(strategy: str) -> None:
    sets, agent = (
        Sets(ChunkingConfig(strategy)),
        Pi0Agent(  # type: ignore[arg-type]
            SwayingPolicy(),
            chunking=ChunkingConfig(strategy),
            safety=SafetyConfig(),  # type: ignore[arg-type]
        ),
    )
    flight = sets.flight
    for _ in range(2):  # episodes
        flight.pilot.enable()
        agent.reset()
        flight.clock_ns, flight.pose = (flight.clock_ns // 4_000_000_000 + 1) * 4_000_000_000, ARM6.home
        for _ in range(40):
            images = dict.fromkeys(ARM6.cameras, PICTURE)
            expected = agent.get_action({"images": images, "state": flight.pose, "prompt": "sway"})
            ((command, stamp_ns),) = sets.send()
            assert command.positions.tolist() == expected.tolist()
            assert stamp_ns == flight.clock_ns
            flight.pose = command.positions
            flight.clock_ns += DT_NS
        flight.pilot.disable()
        assert sets.send() == []
        assert flight.pilot.reset() == ""
        sets.lock_step.restart()


def test_a_clock_that_went_back_before_the_first_answer_changes_nothing_after_it() -> None:
    straight, back = Sets(), Sets()
    back.flight.pilot.step(0.0, 2 * back.flight.clock_ns)
    for sets in (straight, back):
        sets.flight.pilot.enable()
    assert back.send() == []
    for _ in range(40):
        answers = [sets.send() for sets in (straight, back)]
        ((command, _),), ((again, _),) = answers
        assert (command.stamp_s, command.positions.tolist()) == (again.stamp_s, again.positions.tolist())
        for sets in (straight, back):
            sets.flight.pose = command.positions
            sets.flight.clock_ns += DT_NS


def test_a_set_that_is_repeated_gets_the_same_answer_without_an_inference() -> None:
    sets = Sets()
    sets.flight.pilot.enable()
    (answer,) = sets.send()
    policy = sets.flight.pilot.policy
    asked = len(policy.observations)  # type: ignore[attr-defined]
    assert sets.send() == [answer]
    assert len(policy.observations) == asked  # type: ignore[attr-defined]


def test_streams_of_different_stamps_are_no_set() -> None:
    sets = Sets()
    sets.flight.pilot.enable()
    streams = sets.flight.inputs.streams
    late = sets.flight.message(streams[-1])
    sets.flight.clock_ns += DT_NS
    assert [sets.lock_step.put(name, sets.flight.message(name)) for name in streams[:-1]] == [None] * 3
    assert sets.lock_step.put(streams[-1], late) is None
    answer = sets.lock_step.put(streams[-1], sets.flight.message(streams[-1]))
    assert answer is not None
    assert answer[1] == to_ns(late.header.stamp) + DT_NS
    assert np.isfinite(answer[0].positions).all()
