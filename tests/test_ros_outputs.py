"""Commands as controllers take them; a trajectory controller does what one that is streamed to does."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from ros_flight import DT_NS, Flight
from swaying_policy import ARM6

from pi0_control.control import ChunkingConfig
from pi0_control.ros.outputs import Output
from pi0_control.ros.parameters import TABLE, Grippers, NodeConfig, OutputKind
from pi0_control.ros.reading import NS, to_ns

DEFAULTS = {name: entry.default for name, entry in TABLE.items()}


class Node:
    """Makes recorders for publishers."""

    def create_lifecycle_publisher(self, kind: type, topic: str, qos: Any, **options: Any) -> "Recorder":
        return Recorder(kind, topic)


class Recorder:
    """Stands for a publisher."""

    def __init__(self, kind: type, topic: str) -> None:
        self.kind, self.topic = kind, topic
        self.messages: list[Any] = []

    def publish(self, message: Any) -> None:
        assert isinstance(message, self.kind)
        self.messages.append(message)


class TrajectoryController:
    """Goes straight from where it is to the points to come of the newest trajectory, as its sampling goes."""

    def __init__(self) -> None:
        self.times_ns, self.points = np.array([0.0]), ARM6.home[None].astype(np.float64)

    def take(self, message: Any, now_ns: int) -> None:
        start_ns = to_ns(message.header.stamp)
        times_ns = [start_ns + to_ns(point.time_from_start) for point in message.points]
        assert all(time_ns > now_ns for time_ns in times_ns)  # none of them is over
        assert sorted(times_ns) == times_ns
        assert not any(message.points[-1].velocities)
        here = self.at(now_ns)
        self.times_ns = np.array([now_ns, *times_ns], np.float64)
        self.points = np.array([here, *(point.positions for point in message.points)])

    def at(self, now_ns: int) -> np.ndarray:
        return np.array([np.interp(now_ns, self.times_ns, column) for column in self.points.T])


def flown(kind: OutputKind, grippers: Grippers = "with_arm") -> tuple[Any, ...]:
    """The recorders and the output."""
    config = NodeConfig.from_values(DEFAULTS | {"output": kind, "grippers": grippers})
    output = Output(Node(), config, ARM6)  # type: ignore[arg-type]
    return *output.publishers, output


def test_streamed_commands_have_the_robots_order_and_the_time() -> None:
    flight = Flight()
    flight.pilot.enable()
    (states, state_output), (arrays, array_output) = flown("joint_state"), flown("positions")
    for _ in range(30):
        command = flight.step()
        assert command is not None
        state_output.send(flight.pilot, command, flight.clock_ns)
        array_output.send(flight.pilot, command, flight.clock_ns)
    assert (states.topic, arrays.topic) == ("joint_commands", "commands")
    assert list(states.messages[-1].name) == list(ARM6.joint_names)
    assert to_ns(states.messages[-1].header.stamp) == flight.clock_ns
    expected = [command.positions.tolist() for command in flight.commands]
    assert [np.float32(message.position).tolist() for message in states.messages] == expected
    assert [np.float32(message.data).tolist() for message in arrays.messages] == expected


@pytest.mark.parametrize("kind", ["joint_state", "positions", "trajectory"])
def test_grippers_may_be_apart(kind: OutputKind) -> None:
    flight = Flight()
    flight.pilot.enable()
    arm, gripper, output = flown(kind, "apart")
    for _ in range(30):
        output.send(flight.pilot, flight.step(), flight.clock_ns)
    (index,) = np.flatnonzero(ARM6.gripper_mask)
    expected = np.array([command.positions for command in flight.commands])
    assert gripper.topic == "gripper_commands"
    assert np.array_equal([message.data for message in gripper.messages], expected[:, [index]])
    message = arm.messages[-1]
    names = [name for name in ARM6.joint_names if name != ARM6.joint_names[index]]
    if kind == "trajectory":
        assert list(message.joint_names) == names
        assert len(message.points[-1].positions) == len(message.points[-1].velocities) == 6
        return
    sent = message.position if kind == "joint_state" else message.data
    assert np.array_equal(np.float32(sent), np.delete(expected[-1], index))
    assert kind == "positions" or list(message.name) == names


@pytest.mark.parametrize("strategy", ["sync", "async", "ensemble"])
def test_trajectories_lead_where_streamed_commands_would(strategy: Any) -> None:
    flight = Flight(chunking=ChunkingConfig(strategy))
    recorder, output = flown("trajectory")
    controller = TrajectoryController()
    flight.pilot.enable()
    wanted, went = [], []
    for step in range(120):
        if step == 60:
            flight.pilot.prompt = ""  # a hold in mid-motion
        elif step == 70:
            flight.pilot.prompt = "sway"
        elif step == 110:
            flight.pilot.disable()
        command, count = flight.step(), len(recorder.messages)
        if command is not None:
            output.send(flight.pilot, command, flight.clock_ns)
            wanted.append(command.positions)
        else:
            wanted.append(wanted[-1])
        for message in recorder.messages[count:]:
            controller.take(message, flight.clock_ns)
        went.append(controller.at(flight.clock_ns + DT_NS))
    assert np.allclose(went, wanted, atol=1e-5)
    limit = 120 if strategy == "ensemble" else 30  # as many as there are chunks
    assert 3 < len(recorder.messages) < limit
    assert recorder.topic == "joint_trajectory"


def test_a_trajectory_is_stamped_as_the_observation_it_came_from() -> None:
    flight = Flight()
    recorder, output = flown("trajectory")
    flight.pilot.enable()
    flight.step(10)
    flight.worker.is_fast = False
    asked_ns = 0
    while not asked_ns:  # until an inference is under way
        command = flight.step()
        asked_ns = flight.clock_ns if flight.pilot._inference else 0
    flight.step(2)
    flight.worker.finish()
    command = flight.step()
    assert command is not None
    output.send(flight.pilot, command, flight.clock_ns)
    (message,) = recorder.messages
    assert to_ns(message.header.stamp) == asked_ns
    assert to_ns(message.points[0].time_from_start) == 4 * DT_NS  # of the points of the three periods since, none
    assert DT_NS == NS // 20
