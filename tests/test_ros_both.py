"""Both nodes as processes of their own over DDS, in lock-step: nothing depends on how fast the machine is."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_graph import Process, ros_context

pytest.importorskip("rclpy")
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image, JointState

from pi0_control.control import ChunkingConfig, Pi0Agent, SafetyConfig
from pi0_control.policy import Pi0Policy
from pi0_control.robot import RobotSpec
from pi0_control.ros.evaluate import Examiner
from pi0_control.ros.reading import to_ns
from pi0_control.ros.sim_node import REPEAT_S
from sims.tabletop_env import TabletopEnv

ARM6 = RobotSpec.from_yaml("arm6")
TASK, SEEDS = "Lift", (100_000, 100_001)
SENSORS = {"joint_states": JointState, **{f"{camera}/image_raw": Image for camera in ARM6.cameras}}
LIMIT_S = 300.0
ALL = 1000  # messages: none is lost, however slow this process is
Episode = list[np.ndarray]


@pytest.fixture(scope="module")
def examiner(tmp_path_factory) -> Iterator[Examiner]:
    """A client of both nodes, which run."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch, ros_context() as context:
        patch.setenv("OMP_NUM_THREADS", "1")  # sums in one order, here and there
        cli = ("-m", "pi0_control.cli", "ros")
        sim = Process([*cli, "sim", "--lock-step"], logs / "sim.txt")
        policy = Process(
            [*cli, "policy", "--lock-step", "--ros-args", "-p", "chunking.strategy:=sync"], logs / "policy.txt"
        )
        examiner = Examiner(context=context)
        yield examiner
        examiner.destroy_node()
        assert [policy.end(), sim.end()] == [0, 0], policy.output + sim.output


class Commands:
    """The commands of the policy by stamp [ns], as long as it is open."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self.by_stamp: dict[int, np.ndarray] = {}

    def __enter__(self) -> dict[int, np.ndarray]:
        self._subscription = self._examiner.create_subscription(JointState, "joint_commands", self._keep, ALL)
        return self.by_stamp

    def __exit__(self, *_: object) -> None:
        self._examiner.destroy_subscription(self._subscription)

    def _keep(self, message: JointState) -> None:
        self.by_stamp[to_ns(message.header.stamp)] = np.float32(message.position)


def over_ros(examiner: Examiner, seed: int) -> tuple[Episode, Mapping[str, Any]]:
    """The commands of an episode over DDS, and what sim_node said in the end."""
    with Commands(examiner) as commands:
        episode = examiner.play(TASK, seed, LIMIT_S)
        examiner.wait(lambda: len(commands) == episode["steps"], "the last command")
    return [commands[stamp] for stamp in sorted(commands)], episode


def in_gymnasium(agent: Pi0Agent, env: TabletopEnv, seed: int) -> tuple[Episode, bool]:
    observation, info = env.reset(seed=seed)
    agent.reset(seed)
    commands: Episode = []
    ended = False
    while not ended:
        commands.append(agent.get_action(observation))
        observation, _, ended, _, info = env.step(commands[-1])
    return commands, info["is_success"]


def test_the_same_seeds_give_the_same_commands_as_the_agent_in_gymnasium(examiner, one_thread) -> None:
    agent = Pi0Agent(Pi0Policy.from_pretrained("mini"), chunking=ChunkingConfig("sync"), safety=SafetyConfig())
    env = TabletopEnv(TASK)
    for seed in SEEDS:
        commands, episode = over_ros(examiner, seed)
        expected, is_success = in_gymnasium(agent, env, seed)
        assert len(commands) == len(expected) == episode["steps"]
        assert np.array_equal(commands, expected)
        assert is_success == episode["is_success"] is True
    env.close()


def test_a_rosbag_of_the_sensors_replays_to_the_same_commands(examiner, tmp_path) -> None:
    publishers = {topic: examiner.create_publisher(kind, topic, 10) for topic, kind in SENSORS.items()}
    with Commands(examiner) as commands, Sensors(examiner) as seen:
        episode = examiner.play(TASK, SEEDS[0], LIMIT_S)
        examiner.wait(lambda: len(commands) == episode["steps"], "the last command")
        played = dict(commands)
        examiner.wait(lambda: {*product(SENSORS, played)} <= {*seen}, "what the sensors saw")
        write_bag(tmp_path / "bag", seen)
        commands.clear()
        examiner.prepare(SEEDS[0], episode["prompt"])
        examiner.enable(True)
        with Reader(tmp_path / "bag") as bag:
            for stamp_ns in sorted(played):
                moment = [
                    (publishers[connection.topic], deserialize_message(data, SENSORS[connection.topic]))
                    for connection, _, data in bag.messages(start=stamp_ns, stop=stamp_ns + 1)
                ]
                show(moment)  # and again without an answer, as sim_node does: at first the policy sees time go back
                repeat = examiner.create_timer(REPEAT_S, partial(show, moment))
                examiner.wait(lambda: stamp_ns in commands, f"the answer to {stamp_ns}")  # noqa: B023
                examiner.destroy_timer(repeat)
        examiner.enable(False)
    assert list(commands) == sorted(played)
    assert all(np.array_equal(commands[stamp_ns], played[stamp_ns]) for stamp_ns in played)


def show(moment: list[tuple[Any, Any]]) -> None:
    for publisher, message in moment:
        publisher.publish(message)


class Sensors:
    """What the simulated robot shows by topic and stamp [ns], as long as it is open."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self.seen: dict[tuple[str, int], Any] = {}  # an observation without an answer was repeated

    def __enter__(self) -> dict[tuple[str, int], Any]:
        make = self._examiner.create_subscription
        self._subscriptions = [make(kind, topic, partial(self._keep, topic), ALL) for topic, kind in SENSORS.items()]
        return self.seen

    def __exit__(self, *_: object) -> None:
        for subscription in self._subscriptions:
            self._examiner.destroy_subscription(subscription)

    def _keep(self, topic: str, message: Any) -> None:
        self.seen[topic, to_ns(message.header.stamp)] = message


def write_bag(path: Path, seen: Mapping[tuple[str, int], Any]) -> None:
    typestore = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {
            topic: bag.add_connection(topic, f"sensor_msgs/msg/{kind.__name__}", typestore=typestore)
            for topic, kind in SENSORS.items()
        }
        for (topic, stamp_ns), message in sorted(seen.items(), key=lambda entry: entry[0][1]):
            bag.write(connections[topic], stamp_ns, serialize_message(message))
