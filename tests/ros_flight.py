"""A Pilot and an arm without ROS: time goes on when the test says so."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from swaying_policy import ARM6, SwayingPolicy

from pi0_control.control import ChunkingConfig, Safety, SafetyConfig
from pi0_control.policy import Policy
from pi0_control.ros.conversions import image_message, joint_state_message
from pi0_control.ros.inputs import STATE, Inputs
from pi0_control.ros.pilot import Pilot
from pi0_control.ros.reading import NS
from pi0_control.types import Command

PICTURE = np.zeros((8, 8, 3), np.uint8)
DT_NS = NS // 20


class Worker(Executor):
    """Runs what it was given when told to."""

    def __init__(self) -> None:
        self.is_fast = True
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._jobs.append((Future(), lambda: fn(*args, **kwargs)))
        future = self._jobs[-1][0]
        if self.is_fast:
            self.finish()
        return future

    def finish(self) -> None:
        for future, job in self._jobs:
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
        self._jobs = []


class Flight:
    """An arm that goes where it is sent, its cameras, and the pilot."""

    def __init__(
        self,
        policy: Policy | None = None,
        chunking: ChunkingConfig | None = None,
        safety: SafetyConfig | None = None,
        is_lock_step: bool = False,
    ) -> None:
        safety = safety or SafetyConfig()
        self.worker = Worker()
        self.inputs = Inputs(ARM6, ARM6.cameras, safety, max_skew_s=0.1)
        self.pilot = Pilot(
            policy or SwayingPolicy(),
            self.inputs,
            chunking or ChunkingConfig("async"),
            Safety(ARM6, safety),
            self.worker,
            is_lock_step,
        )
        self.pilot.prompt = "sway"
        self.pose = ARM6.home.copy()
        self.now_ns = 100 * NS
        self.clock_ns = 1_700_000_000 * NS  # as the ROS clock may be years ahead of the steady one
        self.commands: list[Command] = []

    def message(self, name: str) -> Any:
        if name == STATE:
            return joint_state_message(self.pose, ARM6.joint_names, self.clock_ns)
        return image_message(PICTURE, self.clock_ns)

    def step(self, steps: int = 1, **instead: Any) -> Command | None:
        """Control periods; ``instead`` has what a stream sends: a message, None, or what makes one of the good one."""
        command = None
        for _ in range(steps):
            self.now_ns += DT_NS
            self.clock_ns += DT_NS
            for name in self.inputs.streams:
                message = instead.get(name, self.message(name))
                if callable(message):
                    message = message(self.message(name))
                if message is not None:
                    self.inputs.put(name, message, self.clock_ns, self.now_ns / NS)
            command = self.pilot.step(self.now_ns / NS, self.clock_ns)
            if command is not None:
                self.commands.append(command)
                self.pose = command.positions
        return command

    def check_commands(self) -> None:
        """Nothing outside limits, no jump."""
        positions = np.array([ARM6.home, *(command.positions for command in self.commands)], np.float64)
        assert np.isfinite(positions).all()
        assert (positions >= ARM6.lower).all()
        assert (positions <= ARM6.upper).all()
        assert (np.abs(np.diff(positions, axis=0)) <= ARM6.max_velocity * ARM6.dt_s * 2 + 1e-5).all()
