"""policy_node in a process of its own, a robot that it drives, and what a person does with it."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_graph import Probe, Process
from ros_robot import Robot
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from pi0_control.ros.qos import LATCHED

NODE = "/policy_node"
SCRIPT = Path(__file__).with_name("ros_policy_process.py")
EVERY = ("use_sim_time:=true", "qos_overrides./joint_commands.publisher.depth:=1000")  # no command is lost
EVERY += ("safety.tracking_fault_s:=3000.0",)  # this process, and the robot in it, may be slow


class Bench:
    """A robot, a probe and the node in another process."""

    def __init__(self, context: Any, log: Path, *parameters: str, command: Sequence[str] = (str(SCRIPT),)) -> None:
        self.probe = Probe(context)
        self.robot = Robot(context)
        self.probe.add(self.robot)
        self.prompts = self.probe.listen(String, f"{NODE}/current_prompt", LATCHED)
        given = [word for parameter in (*EVERY, *parameters) for word in ("-p", parameter)]
        self._start = lambda: Process([*command, "--ros-args", *given], log)
        self.process = self._start()

    def restart(self) -> None:
        """Another process, after the one before has ended."""
        self.robot.diagnostics.clear()
        self.process = self._start()

    def change(self, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.probe.call(ChangeState, f"{NODE}/change_state", request).success

    def start(self) -> None:
        """From unconfigured to tracking."""
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)
        assert self.enable() == ""
        self.until_state("tracking")

    def clean_up(self) -> None:
        """From active to unconfigured."""
        assert self.change(Transition.TRANSITION_DEACTIVATE)
        assert self.change(Transition.TRANSITION_CLEANUP)

    def enable(self, is_enabled: bool = True) -> str:
        return self.probe.call(SetBool, f"{NODE}/enable", SetBool.Request(data=is_enabled)).message

    def reset(self) -> str:
        return self.probe.call(Trigger, f"{NODE}/reset").message

    def set(self, name: str, value: Any) -> str:
        kind, field = {
            bool: (ParameterType.PARAMETER_BOOL, "bool_value"),
            str: (ParameterType.PARAMETER_STRING, "string_value"),
            int: (ParameterType.PARAMETER_INTEGER, "integer_value"),
        }[type(value)]
        parameter = Parameter(name=name, value=ParameterValue(**{"type": kind, field: value}))
        request = SetParameters.Request(parameters=[parameter])
        return self.probe.call(SetParameters, f"{NODE}/set_parameters", request).results[0].reason

    def until_state(self, state: str) -> None:
        self.probe.until(lambda: self.robot.state().get("state") == state, f"{state}; it is {self.robot.message()}")

    def until_holding(self, words: str) -> None:
        """The arm holds for this reason, and stands."""
        robot = self.robot
        self.probe.until(
            lambda: robot.state().get("state") == "holding" and words in robot.message(),
            f"holding, {words!r}; it is {robot.state().get('state')}, {robot.message()!r}",
        )
        self.until_standing()

    def until_standing(self) -> None:
        """Some commands that say the same."""
        count = len(self.robot.commands)
        self._until_commands(count + 2, lambda span: not span[-5:].any(), "commands to stand")

    def until_told_again(self, state: str) -> None:
        """The node says that it is in this state; what it had sent before has come."""
        for _ in range(2):  # the first may have been under way
            self.robot.diagnostics.clear()
            self.until_state(state)

    def until_moving(self) -> None:
        """The policy drives, and the arm goes on."""
        self.until_state("tracking")
        count = len(self.robot.commands)
        self._until_commands(count, lambda span: span[count:].sum() > 0.02, "commands to move")

    def _until_commands(self, count: int, condition: Callable[[np.ndarray], object], what: str) -> None:
        """At least five more; the condition is on the largest step of each command."""

        def is_so() -> bool:
            positions = np.array([positions for _, positions in self.robot.commands])
            return len(positions) > count + 5 and bool(condition(np.abs(np.diff(positions, axis=0)).max(axis=1)))

        self.probe.until(is_so, f"{what}; it says {self.robot.message()!r}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal; meanwhile the robot goes on, and it has got all that was sent to it."""
        self.process.send(how)
        self.probe.until(lambda: not self.process.is_running, "the end of the process")
        beats = self.robot.beats
        self.probe.until(lambda: self.robot.beats > beats + 20, "the last commands")
        return self.process.end(how)

    def close(self) -> None:
        self.process.end(signal.SIGTERM)
        self.robot.destroy_node()
        self.probe.close()
