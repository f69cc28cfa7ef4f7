"""The node with a policy on a server: one process each, over a real connection."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; pip install 'pi0-control[ros]' brings it")

from ros_bench import Bench
from ros_graph import DIES_WITH_US, ros_context

SERVER = Path(__file__).with_name("swaying_server.py")
COMMAND = ("-m", "pi0_control.cli", "ros", "policy", "--enabled", "--prompt", "sway")


@contextmanager
def serving(port: int = 0) -> Iterator[int]:
    """A server in a process that is killed in the end, and its port."""
    command = [*DIES_WITH_US, sys.executable, str(SERVER), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def clients(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return next(line for line in page.read().decode().splitlines() if line.startswith("pi0_clients "))


def test_a_server_that_is_killed_in_mid_motion_holds_the_arm_until_it_is_back(tmp_path: Path) -> None:
    with ros_context() as context:
        with serving() as port:
            url = f"ws://127.0.0.1:{port}"
            parameters = (f"policy:={url}", "safety.max_inference_s:=1.0", "safety.policy_fault_s:=3000.0")
            bench = Bench(context, tmp_path / "log.txt", *parameters, command=COMMAND)
            bench.until_moving()
            assert float(bench.robot.state("policy")["remote_ms"]) > 0
        bench.until_holding(f"RemoteError: {url} did not answer within 1 s")
        with serving(port):
            bench.until_moving()
            assert clients(port) == "pi0_clients 1"
            bench.clean_up()
            assert clients(port) == "pi0_clients 0"
        bench.robot.check_commands()
        bench.close()
