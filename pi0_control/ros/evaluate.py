"""Plays episodes through both nodes, policy_node and sim_node, and counts the successes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import rclpy
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from pi0_control.errors import ConfigError, Pi0Error
from pi0_control.ros.qos import LATCHED

POLICY, SIM = "policy_node", "sim_node"
ANSWER_S = 120.0  # a node that loads its policy is slow to answer
BRAKE_S = 5.0  # an arm that was disabled brakes before it can be reset


class Examiner(Node):
    """Takes the two nodes of its namespace through episodes: new scene, prompt, enable, wait for the end, disable.

    Raises:
        Pi0Error: a node is not there, refuses, or an episode does not end in time.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("examiner", **options)
        self._spinner = SingleThreadedExecutor(context=self.context)
        self._spinner.add_node(self)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._policy, self._sim = AsyncParameterClient(self, POLICY), AsyncParameterClient(self, SIM)
        self._enable: Client = self.create_client(SetBool, f"{POLICY}/enable")
        self._reset: Client = self.create_client(Trigger, f"{POLICY}/reset")
        self._begin: Client = self.create_client(Trigger, f"{SIM}/reset_episode")
        self._prompts = self.create_publisher(String, f"{POLICY}/prompt", QoSProfile(depth=1))
        self._latest: dict[str, str] = {}
        for name in (f"{SIM}/episode", f"{POLICY}/current_prompt"):
            self.create_subscription(String, name, self._keep(name), LATCHED)

    def play(self, task: str, seed: int, limit_s: float) -> dict[str, Any]:
        """One episode; what sim_node told of it in the end.

        Args:
            task: a task of the sim.
            seed: of the scene and of the policy's noise.
            limit_s: how long it may take [s].
        """
        self.enable(False)
        self._set(self._sim, SIM, seed=seed, task=task)
        self._latest.pop(f"{SIM}/episode", None)  # so that the end of this one is not that of another
        begun = json.loads(self._call(self._begin, Trigger.Request()))
        self.prepare(seed, begun["prompt"])
        try:
            self.enable(True)
            self.wait(lambda: self._is_over(seed), f"the end of the episode with seed {seed}", limit_s)
        finally:
            self.enable(False)
        episode: dict[str, Any] = json.loads(self._latest[f"{SIM}/episode"])
        return episode

    def prepare(self, seed: int, prompt: str) -> None:
        """Have the policy, which is disabled, forget all it knows and take its noise from ``seed``."""
        self._set(self._policy, POLICY, seed=seed)
        self._call(self._reset, Trigger.Request(), BRAKE_S)
        timer = self.create_timer(0.1, lambda: self._prompts.publish(String(data=prompt)), clock=self._steady)
        self.wait(lambda: self._latest.get(f"{POLICY}/current_prompt") == prompt, f"{POLICY} to take the prompt")
        self.destroy_timer(timer)

    def enable(self, on: bool) -> None:
        """Let the policy drive, or not."""
        self._call(self._enable, SetBool.Request(data=on))

    def wait(self, condition: Callable[[], bool], what: str, limit_s: float = ANSWER_S) -> None:
        """Let this node work until the condition holds; a Pi0Error names ``what`` did not come in ``limit_s``."""
        end_ns = self._steady.now().nanoseconds + round(limit_s * 1e9)
        while not condition():
            if self._steady.now().nanoseconds > end_ns:
                raise Pi0Error(f"Waited {limit_s:g} s for {what}; are {POLICY} and {SIM} running in this ROS domain?")
            self._spinner.spin_once(timeout_sec=0.1)

    def _is_over(self, seed: int) -> bool:
        episode = json.loads(self._latest.get(f"{SIM}/episode", "{}"))
        return episode.get("seed") == seed and episode["is_over"]

    def _set(self, client: AsyncParameterClient, node: str, **values: Any) -> None:
        self.wait(client.services_are_ready, f"the parameters of {node}")
        parameters = [Parameter(name, value=value) for name, value in values.items()]
        for result in self._result(client.set_parameters(parameters), f"{node} to take {values}").results:
            if not result.successful:
                raise ConfigError(f"{node} refuses {values}: {result.reason}")

    def _call(self, client: Client, request: Any, patience_s: float = 0.0) -> str:
        """The message of the response; what is refused is asked again for ``patience_s``."""
        self.wait(client.service_is_ready, f"service {client.srv_name}")
        end_ns = self._steady.now().nanoseconds + round(patience_s * 1e9)
        while True:
            response = self._result(client.call_async(request), f"an answer of {client.srv_name}")
            if response.success:
                return str(response.message)
            if self._steady.now().nanoseconds > end_ns:
                raise Pi0Error(f"{client.srv_name} refuses: {response.message}")

    def _result(self, future: Future[Any], what: str) -> Any:
        self.wait(future.done, what)
        return future.result()

    def _keep(self, name: str) -> Callable[[String], None]:
        return lambda message: self._latest.update({name: message.data})


def examine(task: str, seeds: range, limit_s: float, args: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Play an episode for each seed with the nodes that are running; yields what became of each.

    Raises:
        Pi0Error: as :class:`Examiner`.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)  # when interrupted, disable the policy first
    try:
        examiner = Examiner()
        for seed in seeds:
            yield examiner.play(task, seed, limit_s)
    finally:
        rclpy.try_shutdown()
