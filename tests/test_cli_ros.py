import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pi0_control import cli

pytest.importorskip("rclpy", reason="no rclpy: on Linux pip install 'pi0-control[ros]' brings it")
from serving_parts import serving

from pi0_control.cli.ros import load_policy
from pi0_control.errors import Pi0Error
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.ros import evaluate, policy_node, sim_node
from pi0_control.ros.parameters import TABLE, NodeConfig
from pi0_control.serving import RemotePolicy

ARM6 = RobotSpec.from_yaml("arm6")

Run = Callable[..., None]


@pytest.fixture
def pi0(monkeypatch) -> Run:
    def run(*arguments: str, entry: Callable[[], None] = cli.main) -> None:
        monkeypatch.setattr(sys, "argv", ["pi0", *arguments])
        entry()

    return run


@pytest.fixture
def given(monkeypatch) -> list[Any]:
    """ROS arguments that a node was started with."""
    seen: list[Any] = []
    monkeypatch.setattr(policy_node, "main", lambda args, load: seen.append(args))
    monkeypatch.setattr(sim_node, "main", lambda simulated, args: seen.append(args))
    return seen


def test_options_become_parameters_and_arguments_of_ros_come_last(pi0, given) -> None:
    pi0("ros", "policy", "--prompt", "yes: touch it", "--enabled", "--ros-args", "-p", "seed:=3")
    pi0("ros", "sim", "--seed", "0", "--ros-args", "-r", "__ns:=/cell")
    policy, sim = given
    assert policy == [
        *("--ros-args", "-p", 'prompt:="yes: touch it"', "-p", "enabled:=true", "-p", "autostart:=true"),
        *("--ros-args", "-p", "seed:=3"),
    ]
    assert sim == ["--ros-args", "-p", "seed:=0", "--ros-args", "-r", "__ns:=/cell"]


def test_the_executables_of_ros2_run_leave_everything_to_their_parameters(pi0, given) -> None:
    arguments = ("--ros-args", "--params-file", "robot.yaml")
    pi0(*arguments, entry=cli.policy_node)
    pi0(*arguments, entry=cli.sim_node)
    assert given == [list(arguments), list(arguments)]


def test_eval_tells_every_episode_and_the_success_even_if_it_is_cut_off(pi0, monkeypatch, capsys) -> None:
    def examine(task: str, seeds: range, limit_s: float, args: list[str]) -> Any:
        for seed in seeds:
            if seed == 11:
                raise Pi0Error("policy_node is gone")
            yield {"seed": seed, "steps": 40, "is_success": seed != 8, "prompt": "pick up the red block"}

    monkeypatch.setattr(evaluate, "examine", examine)
    with pytest.raises(SystemExit):
        pi0("ros", "eval", "--task", "Lift", "--episodes", "20", "--seed", "7")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "8  failure after  40 steps  pick up the red block"
    assert lines[-1] == "Lift: 3 of 4 episodes, 75 %"


def test_without_rclpy_one_sentence_names_the_extra(pi0, monkeypatch, capsys) -> None:
    for module in ("pi0_control.ros.sim_node", "rclpy"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(SystemExit, match="2"):
        pi0("ros", "sim")
    assert "pip install 'pi0-control[ros]'" in capsys.readouterr().err


def test_a_parameter_that_does_not_fit_is_one_sentence() -> None:
    command = [sys.executable, "-m", "pi0_control.cli", "ros", "sim", "--task", "Dance"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "pi0: No task 'Dance'; the tasks are Reach, Lift, PickPlace, Stack.",
    )


def test_the_policy_may_be_on_a_server() -> None:
    defaults = {name: entry.default for name, entry in TABLE.items()}
    with serving(HoldPolicy(ARM6, 5)) as served:
        policy = load_policy(NodeConfig.from_values(defaults | {"policy": served.url, "robot": "arm6"}))
        assert isinstance(policy, RemotePolicy)
        assert (policy.robot, policy.horizon) == (ARM6, 5)
        policy.close()
    assert isinstance(load_policy(NodeConfig.from_values(defaults | {"policy": "hold"})), HoldPolicy)
