"""``pi0 serve`` as a process: its messages, signals and end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from serving_parts import ARM6, LIMIT_S, observe
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pi0_control import cli
from pi0_control.errors import ConfigError, RemoteError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.serving import RemotePolicy, ServerConfig
from pi0_control.serving.codec import pack, unpack
from pi0_control.serving.messages import read_request

START_S = 300.0  # of a fresh process on a busy machine


STUCK = """
import importlib
from serving_parts import GatedPolicy
serve = importlib.import_module("pi0_control.cli.serve")
class StuckPolicy(GatedPolicy):
    def infer(self, observation, **options):
        if observation.prompt == "get stuck":
            self.shut()
        return super().infer(observation, **options)
serve._policy = lambda options: StuckPolicy()
serve.serve(serve.ServeOptions(port=0, drain_s=0.1))
"""


@contextmanager
def pi0_serve(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL."""
    command = ["-m", "pi0_control.cli", "serve", "--policy", "hold", "--port", "0", *arguments]
    with started(command, environment) as given:
        yield given


@contextmanager
def started(arguments: list[str], environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process that says where it serves, and its URL."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"wss?://\S+?:\d+", line)
        assert url is not None, process.communicate()
        yield process, url[0]
    finally:
        process.kill()
        process.communicate()


def test_the_prompt_of_the_command_line_is_for_clients_of_any_layout(tmp_path: Path) -> None:
    layout: dict[str, object] = {"pictures": dict.fromkeys(ARM6.cameras), "prompt_key": "task"}
    layout |= {"state": [{"key": "joints", "joints": [*ARM6.joint_names]}], "action": [{"joints": [*ARM6.joint_names]}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(layout))
    serve = import_module("pi0_control.cli.serve")
    config = ServerConfig(port=0, prompt="fold the towel")
    server = serve._server(HoldPolicy(ARM6), config, str(tmp_path / "mine.yaml"))
    for given, seen in (({}, "fold the towel"), ({"task": "pour"}, "pour")):
        assert read_request({"joints": np.zeros(7), **given}, server._read).observation.prompt == seen


def test_openpi_s_aloha_client_is_told_where_its_arms_begin_and_needs_no_prompt() -> None:
    server = import_module("pi0_control.cli.serve")._server
    config = ServerConfig(port=0, prompt="open the lid")
    aloha = server(HoldPolicy(RobotSpec.from_yaml("aloha")), config, "aloha")
    assert unpack(aloha._greeting) == {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}
    assert read_request({"state": np.zeros(14), "images": {}}, aloha._read).observation.prompt == "open the lid"
    assert unpack(server(HoldPolicy(RobotSpec.from_yaml("ur5e")), config, "ur5")._greeting) == {}


def test_a_client_that_names_things_as_openpi_s_does_is_understood() -> None:
    with pi0_serve("--robot", "ur5e", "--layout", "ur5", "--prompt", "open the drawer") as (_, url):
        with connect(url, proxy=None) as client:
            assert unpack(client.recv(LIMIT_S)) == {}  # another's client is not told of our own
            message = {"joints": np.arange(6.0), "gripper": np.ones(1), "base_rgb": np.zeros((8, 8, 3), np.uint8)}
            client.send(pack(message))
            reply = client.recv(LIMIT_S)
            assert isinstance(reply, bytes)
            assert unpack(reply)["actions"][0].tolist() == [*range(6), 1]
            client.send(pack({**message, "base_rgb": np.zeros(8)}))
            refusal = "ObservationError: Image 'base_rgb' has shape [8] of float64; expected an RGB image."
            assert client.recv(LIMIT_S) == refusal
        with pytest.raises(ConfigError, match="does not tell its robot and horizon"):
            RemotePolicy(url, connect_s=LIMIT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    with pi0_serve(PI0_API_KEY="open sesame") as (process, url):
        with pytest.raises(RemoteError, match="401"):
            RemotePolicy(url, api_key="wrong", connect_s=LIMIT_S)
        with RemotePolicy(url, api_key="open sesame", deadline_s=LIMIT_S) as policy:
            assert policy.robot == ARM6
            assert policy.infer(observe(0.5)).actions[0, 0] == 0.5
            with connect(url, additional_headers={"Authorization": "Api-Key open sesame"}, proxy=None) as client:
                client.recv(LIMIT_S)
                process.send_signal(number)
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert process.wait(LIMIT_S) == 0
        assert process.communicate() == ("", "")


def test_a_stuck_inference_whose_client_has_left_does_not_keep_the_process() -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with started(["-c", STUCK], {"PYTHONPATH": paths}) as (process, url):
        with RemotePolicy(url, deadline_s=LIMIT_S) as policy:
            policy.infer(observe())
            policy.deadline_s = 0.1
            with pytest.raises(RemoteError, match="did not answer"):
                policy.infer(observe(prompt="get stuck"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 1


def test_a_server_that_is_killed_and_comes_back_is_played_on() -> None:
    with pi0_serve() as (process, url):
        policy = RemotePolicy(url, deadline_s=1.0)
        process.kill()
        process.wait(LIMIT_S)
    with policy:
        with pytest.raises(RemoteError, match=r"did not answer within 1 s"):
            policy.infer(observe())
        policy.deadline_s = START_S
        with pi0_serve("--port", url.rpartition(":")[2]):
            assert policy.infer(observe(0.5)).actions[0, 0] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "nowhere"], "No policy 'nowhere'"),
        (["--tls-cert", "nowhere.pem"], "nowhere.pem: not a certificate"),
        (["--max-clients", "0"], "max_clients is 0"),
        (["--host", "203.0.113.1"], "anyone who reaches 203.0.113.1"),
        (["--robot", "droid", "--layout", "droid"], "moves [] by velocities or steps"),
    ],
    ids=["policy", "certificate", "number", "address", "rates"],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pi0", "serve", "--policy", "hold", "--port", "0", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 2
    assert said in capsys.readouterr().err
