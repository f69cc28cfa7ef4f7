"""A ROS graph of its own for tests: on the loopback, in a free domain; nothing here sleeps."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

rclpy = pytest.importorskip("rclpy", reason="no rclpy: on Linux pip install 'pi0-control[ros]' brings it")

from rclpy.context import Context  # noqa: E402  only where rclpy is
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402

LIMIT_S = 120  # a hang is a failure; machines may be slow
LOOPBACK = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()  # however we end


@contextmanager
def ros_context() -> Iterator[Context]:
    """A context in a domain that no other process of this machine is in."""
    os.environ.update(LOOPBACK)
    with free_domain() as domain:
        os.environ["ROS_DOMAIN_ID"] = str(domain)  # for processes to come
        context = Context()
        rclpy.init(context=context, domain_id=domain)
        try:
            yield context
        finally:
            context.try_shutdown()


@contextmanager
def free_domain() -> Iterator[int]:
    """The number of a domain, kept from other tests for so long."""
    for domain in range(50, 100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
            try:
                mark.bind(("127.0.0.1", 7400 + 250 * domain + 249))  # within the ports of the domain, used by no one
            except OSError:
                continue
            yield domain
            return
    raise RuntimeError("no ROS domain from 50 to 99 is free")


class Probe:
    """A node of the test: keeps the messages of topics, publishes, calls services, and spins until something holds."""

    def __init__(self, context: Context, name: str = "probe") -> None:
        self.node = Node(name, context=context, start_parameter_services=False)
        self.messages: dict[str, list[Any]] = defaultdict(list)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)

    def add(self, node: Node) -> None:
        """Spin another node too."""
        self._executor.add_node(node)

    def listen(self, kind: type, topic: str, qos: QoSProfile | int = 10) -> list[Any]:
        """The messages of a topic, as they come."""
        self.node.create_subscription(kind, topic, self.messages[topic].append, qos)
        return self.messages[topic]

    def until(self, condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        """Spin until the condition holds."""
        end_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end_s, f"not within {limit_s} s: {what}"
            self._executor.spin_once(timeout_sec=0.05)

    def publish(self, topic: str, message: Any, qos: QoSProfile | int = 10) -> None:
        """Publish, once somebody listens."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(type(message), topic, qos)
        publisher = self._publishers[topic]
        self.until(publisher.get_subscription_count, f"a subscriber of {topic}")
        publisher.publish(message)

    def call(self, kind: Any, service: str, request: Any = None) -> Any:
        """The response of a service, once it is there."""
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client = self._clients[service]
        self.until(client.service_is_ready, f"service {service}")
        future = client.call_async(kind.Request() if request is None else request)
        self.until(future.done, f"an answer of {service}")
        return future.result()

    def close(self) -> None:
        """Take the nodes off."""
        self._executor.shutdown()
        self.node.destroy_node()


class Process:
    """A node in a process of its own, in the domain of the environment; its output goes to a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # children would ignore it, too, where nohup has us do so
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [*DIES_WITH_US, sys.executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **LOOPBACK},
            )
        signal.signal(signal.SIGHUP, ours)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, how: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(how)

    def end(self, how: signal.Signals = signal.SIGTERM, limit_s: float = LIMIT_S) -> int:
        """Send a signal; the exit code."""
        self.send(how)
        try:
            return self._process.wait(limit_s)
        finally:
            self._process.kill()
