import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import trustme
from serving_fuzz import mutated
from serving_parts import ARM6, LIMIT_S, GatedPolicy, Served, observe, serving
from tiny_policy import tiny_policy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pi0_control.errors import CheckpointError, ConfigError, RemoteError
from pi0_control.policy import HoldPolicy
from pi0_control.robot import RobotSpec
from pi0_control.serving import RemotePolicy, ServerConfig
from pi0_control.serving.codec import pack, unpack
from pi0_control.serving.messages import write_observation
from pi0_control.types import Observation

FREE = ServerConfig(port=0)


@contextmanager
def visit(served: Served, **options: Any) -> Iterator[ClientConnection]:
    """A plain websocket client that has been greeted."""
    with connect(served.url, compression=None, max_size=None, proxy=None, **options) as connection:
        connection.metadata = unpack(connection.recv(LIMIT_S))  # type: ignore[attr-defined]
        yield connection


def ask(connection: ClientConnection, level: float = 0.0, **changes: Any) -> Any:
    connection.send(pack({**write_observation(observe(level)), **changes}))
    reply = connection.recv(LIMIT_S)
    return reply if isinstance(reply, str) else unpack(reply)


def test_greets_then_answers_in_turn() -> None:
    with serving(HoldPolicy(ARM6, 4, 2), metadata={"reset_pose": [0.0]}) as served, visit(served) as client:
        assert client.metadata["reset_pose"] == [0.0]
        ours = client.metadata["pi0_control"]
        assert RobotSpec.from_dict(ours["robot"]) == ARM6
        assert (ours["protocol_version"], ours["horizon"], ours["execution_horizon"]) == (1, 4, 2)
        first, second = ask(client, 0.25), ask(client, 0.5)
        assert first["actions"].dtype == np.float32
        assert np.array_equal(first["actions"], np.full((4, 7), 0.25))
        assert np.array_equal(second["actions"], np.full((4, 7), 0.5))
        assert set(first["policy_timing"]) == {"infer_ms", "preprocess_ms", "prefix_ms", "denoise_ms"}
        assert set(first["server_timing"]) == {"infer_ms", "queue_ms"}
        assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]


@pytest.mark.parametrize(
    "prompt", ["lift it", np.array("lift it"), b"lift it", np.array(b"lift it"), np.str_("lift it")]
)
def test_a_prompt_may_come_in_any_wrapping(prompt: Any) -> None:
    seen: list[str] = []

    class Listening(HoldPolicy):
        def infer(self, observation: Observation, **given: Any) -> Any:
            seen.append(observation.prompt)
            return super().infer(observation)

    with serving(Listening(ARM6)) as served, visit(served) as client:
        ask(client, prompt=prompt)
    assert seen[-1] == "lift it"
    assert type(seen[-1]) is str


def test_the_servers_prompt_is_for_observations_without() -> None:
    message = write_observation(observe())
    del message["prompt"]
    with serving(HoldPolicy(ARM6, 4), replace(FREE, prompt="fold the towel")) as served, visit(served) as client:
        client.send(pack(message))
        assert isinstance(client.recv(LIMIT_S), bytes)
    with serving(HoldPolicy(ARM6, 4)) as served, visit(served) as client:
        client.send(pack(message))
        assert "lacks ['prompt']" in str(client.recv(LIMIT_S))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("text", "FrameError: The message is text"),
        (b"\xc1", "FrameError: "),
        (pack({}), "ObservationError: The observation has [] and lacks ['images', 'state', 'prompt']."),
        (pack({"images": [1], "state": [], "prompt": ""}), "ObservationError: The observation's images"),
        (pack({"images": {}, "state": {"a": 1}, "prompt": "x"}), "ObservationError: The state is not an array"),
        (pack({"images": {}, "state": [0.0] * 6, "prompt": "x"}), "ObservationError: The state has shape [6]"),
        (pack({"images": {}, "state": [1e300] * 7, "prompt": "x"}), "ObservationError: The state of"),
        (pack({"images": {}, "state": [0.0] * 7, "prompt": 3}), "ObservationError: The prompt is int"),
        (pack({"images": {}, "state": [0.0] * 7, "prompt": b"\xff"}), "ObservationError: The prompt is not text"),
        (pack({"images": {}, "state": [0.0] * 7, "prompt": "x", "seed": -1}), "ObservationError: The seed is -1"),
        (pack({"images": {}, "state": [0.0] * 7, "prompt": "x", "prefix": {}}), "ObservationError: The prefix has"),
        (pack({"images": {}, "state": [0.0] * 7, "prompt": "x", "noise": "a"}), "ObservationError: The noise is"),
        (
            pack({"images": {}, "state": [0.0] * 7, "prompt": "x", "noise": [[np.nan] * 7] * 4}),
            "ObservationError: The noise is not finite",
        ),
        (pack({"y" * 9000: 1}), "ObservationError: The observation has ['yyy"),
        (msgpack.packb({b"\xff" * 9000: 1}), "FrameError: A map of the frame has keys"),
    ],
)
def test_who_sends_nonsense_hears_why_and_is_let_go(
    frame: bytes | str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(HoldPolicy(ARM6, 4)) as served:
        with visit(served) as client, visit(served) as other:
            client.send(frame)
            said = client.recv(LIMIT_S)
            assert isinstance(said, str)
            assert said.startswith(reason)
            assert len(said) <= 2000
            assert [record.getMessage().endswith(f": {said}") for record in caplog.records] == [True]
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(LIMIT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
            assert ask(other)["actions"].shape == (4, 7)
        assert 'pi0_requests_total{outcome="refused"} 1\n' in served.get("/metrics")[2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CheckpointError("The weights are bad."), "CheckpointError: The weights are bad."),
        (KeyError("/home/me/secret"), "KeyError in the policy; the server's log has the traceback."),
    ],
)
def test_a_policy_that_fails_is_told_without_its_traceback(error: Exception, said: str) -> None:
    policy = GatedPolicy()
    with serving(policy) as served:
        policy.error = error
        with visit(served) as client:
            assert ask(client) == said
        policy.error = None
        with visit(served) as client:
            assert ask(client)["actions"].shape == (4, 7)
        assert 'pi0_requests_total{outcome="failed"} 1\n' in served.get("/metrics")[2]


def test_a_reply_that_cannot_be_packed_is_the_servers_failure() -> None:
    with serving(HoldPolicy(ARM6, 4), write=lambda chunk: {"actions": object()}) as served:
        with visit(served) as client:
            assert ask(client) == "TypeError in the policy; the server's log has the traceback."
        assert served.server.metrics.requests == {"answered": 0, "refused": 0, "failed": 1, "abandoned": 0}


def test_the_policy_is_warm_before_anyone_may_ask_and_stays_in_its_thread() -> None:
    policy = GatedPolicy()
    with serving(policy) as served:
        assert len(policy.levels) == 2
        assert policy.seeds == [0]
        with visit(served) as client:
            ask(client, seed=5)
    assert policy.seeds == [0, 5]
    assert len(policy.threads) == 1


def test_nothing_listens_for_a_policy_that_cannot_infer() -> None:
    policy = GatedPolicy()
    policy.error = CheckpointError("The weights are bad.")
    with pytest.raises(CheckpointError), serving(policy):
        pass


def test_health_checks_pings_and_metrics_go_on_while_the_policy_computes() -> None:
    policy = GatedPolicy()
    with serving(policy) as served, visit(served) as client, ThreadPoolExecutor() as pool:
        policy.shut()
        waiting = pool.submit(ask, client, 0.5)
        assert policy.entered.acquire(timeout=LIMIT_S)
        assert served.get("/healthz") == (200, "text/plain; charset=utf-8", "OK\n")
        assert client.ping().wait(LIMIT_S)
        status, kind, text = served.get("/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "\npi0_requests_waiting 1\n" in text
        assert "\npi0_clients 1\n" in text
        policy.open()
        assert waiting.result()["actions"][0, 0] == 0.5
        ask(client)
        text = served.get("/metrics")[2]
        assert "pi0_inference_seconds_count 2\n" in text
        for line in text.splitlines():
            assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0


def test_clients_take_turns() -> None:
    policy = GatedPolicy()
    with serving(policy) as served, visit(served) as greedy, visit(served) as second, visit(served) as third:
        policy.shut()
        for level in (0.1, 0.2, 0.3):  # does not wait for its replies
            greedy.send(pack(write_observation(observe(level))))
        assert policy.entered.acquire(timeout=LIMIT_S)
        for count, (client, level) in enumerate([(second, 1.0), (third, 2.0)], start=2):
            client.send(pack(write_observation(observe(level))))
            served.wait_until(lambda count=count: served.server.metrics.waiting == count)  # type: ignore[misc]
        policy.open()
        for client, replies in ((greedy, 3), (second, 1), (third, 1)):
            assert all(isinstance(client.recv(LIMIT_S), bytes) for _ in range(replies))
    assert policy.levels[2:] == pytest.approx([0.1, 1.0, 2.0, 0.2, 0.3])


def test_nothing_is_computed_for_who_has_left() -> None:
    policy = GatedPolicy()
    with serving(policy) as served, ThreadPoolExecutor() as pool, visit(served) as patient:
        policy.shut()
        first = pool.submit(ask, patient, 0.5)
        assert policy.entered.acquire(timeout=LIMIT_S)
        with visit(served) as hasty:
            hasty.send(pack(write_observation(observe(9.0))))
            served.wait_until(lambda: served.server.metrics.waiting == 2)
        served.wait_until(lambda: served.server.metrics.waiting == 1)
        policy.open()
        first.result()
        ask(patient, 0.75)
        assert policy.levels[2:] == [0.5, 0.75]
        assert 'outcome="abandoned"} 1\n' in served.get("/metrics")[2]


def test_the_key_is_asked_of_everyone_but_health_checks() -> None:
    with serving(HoldPolicy(ARM6, 4), replace(FREE, api_key="open sesame")) as served:
        for wrong in (
            {},
            {"Authorization": "Api-Key open"},
            {"Authorization": "Bearer open sesame"},
            {"Authorization": ""},
        ):
            with pytest.raises(InvalidStatus, match="401"), visit(served, additional_headers=wrong):
                pass
            assert served.get("/metrics", **wrong)[0] == 401
        assert served.get("/healthz")[0] == 200
        right = {"Authorization": "Api-Key open sesame"}
        assert 'pi0_refused_connections_total{reason="api_key"} 8\n' in served.get("/metrics", **right)[2]
        with visit(served, additional_headers=right) as client:
            assert ask(client)["actions"].shape == (4, 7)


def test_a_page_in_a_browser_is_no_client() -> None:
    with serving(HoldPolicy(ARM6)) as served:
        with pytest.raises(InvalidStatus, match="403"), visit(served, origin="http://localhost"):
            pass
        assert served.get("/")[0] == 426


def test_encrypts(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(HoldPolicy(ARM6, 4), replace(FREE, tls_cert=tmp_path / "server.pem")) as served:
        with visit(served, ssl=trusting) as client:
            assert ask(client)["actions"].shape == (4, 7)
        with pytest.raises(ssl.SSLCertVerificationError), visit(served):
            pass
        with pytest.raises(RemoteError, match="cannot be trusted"):
            RemotePolicy(served.url)
        with RemotePolicy(served.url, tls=trusting) as policy:
            assert policy.infer(observe()).horizon == 4


def test_a_frame_that_is_too_long_ends_that_connection_alone() -> None:
    with serving(HoldPolicy(ARM6, 4), replace(FREE, max_frame_mb=0.01)) as served, visit(served) as other:
        with visit(served) as client, pytest.raises(ConnectionClosed) as closed:
            ask(client, more=np.zeros(20_000, np.uint8))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert ask(other)["actions"].shape == (4, 7)


def test_no_more_clients_than_there_is_room_for() -> None:
    with serving(HoldPolicy(ARM6, 4), replace(FREE, max_clients=2)) as served:
        with visit(served), visit(served):
            with pytest.raises(InvalidStatus, match="503"), visit(served):
                pass
            assert served.get("/healthz")[0] == 200
        served.wait_until(lambda: served.server.metrics.clients == 0)
        with visit(served) as client:
            assert ask(client)["actions"].shape == (4, 7)


def test_a_client_that_does_not_answer_pings_is_let_go() -> None:
    with serving(HoldPolicy(ARM6), replace(FREE, ping_s=0.05)) as served, visit(served) as client:
        client.protocol.receive_data = lambda data: None  # type: ignore[method-assign]  # deaf from here
        served.wait_until(lambda: served.server.metrics.clients == 0)


def test_a_client_that_does_not_take_its_replies_is_let_go() -> None:
    with serving(HoldPolicy(ARM6, 20_000), replace(FREE, ping_s=1.0)) as served:
        with visit(served) as client:
            for _ in range(50):  # 28 MB of replies: more than the sockets hold
                client.protocol.send_binary(pack(write_observation(observe())))
            frames, end = client.protocol.data_to_send(), threading.Event()
            client.protocol.receive_data = lambda data: end.wait()  # type: ignore[assignment, method-assign, return-value]
            client.socket.sendall(b"".join(frames))
            try:
                served.wait_until(lambda: served.server.metrics.clients == 0)
            finally:
                end.set()
        assert served.server.metrics.waiting == 0


def test_draining_answers_what_is_under_way_and_then_goes() -> None:
    policy = GatedPolicy()
    with serving(policy) as served, ThreadPoolExecutor() as pool, visit(served) as busy, visit(served) as idle:
        policy.shut()
        waiting = pool.submit(ask, busy, 0.5)
        assert policy.entered.acquire(timeout=LIMIT_S)
        drained = pool.submit(served.drain)
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        with pytest.raises(ConnectionRefusedError), visit(served):
            pass
        policy.open()
        assert waiting.result()["actions"][0, 0] == 0.5
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert drained.result()


def test_draining_has_an_end() -> None:
    policy = GatedPolicy()
    with serving(policy, replace(FREE, drain_s=0.1)) as served, ThreadPoolExecutor() as pool, visit(served) as client:
        policy.shut()
        waiting = pool.submit(ask, client)
        assert policy.entered.acquire(timeout=LIMIT_S)
        assert not served.drain()
        with pytest.raises(ConnectionClosed):
            waiting.result()
        policy.open()


def leave_with_a_request_under_way(served: Served, policy: GatedPolicy) -> None:
    policy.shut()
    with visit(served) as client:
        client.send(pack(write_observation(observe())))
        assert policy.entered.acquire(timeout=LIMIT_S)
    served.wait_until(lambda: served.server.metrics.clients == 0)
    assert served.server.metrics.waiting == 1


def test_draining_waits_for_what_is_computed_for_nobody() -> None:
    policy = GatedPolicy()
    with serving(policy) as served, ThreadPoolExecutor() as pool:
        leave_with_a_request_under_way(served, policy)
        drained = pool.submit(served.drain)
        policy.open()
        assert drained.result()
        assert served.server.metrics.waiting == 0


def test_draining_says_so_if_the_policy_is_stuck_though_nobody_waits_for_it() -> None:
    policy = GatedPolicy()
    with serving(policy, replace(FREE, drain_s=0.1)) as served:
        leave_with_a_request_under_way(served, policy)
        assert not served.drain()
        assert not served.drain()
        policy.open()


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["ws", "wss"])
def test_draining_is_not_held_up_by_who_is_silent(
    is_encrypted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    config = replace(FREE, drain_s=0.5, tls_cert=tmp_path / "server.pem" if is_encrypted else None)
    with serving(HoldPolicy(ARM6), config) as served, socket.create_connection(("localhost", served.port)):
        with pytest.raises(OSError, match="CERTIFICATE") if is_encrypted else nullcontext(), visit(served):
            pass  # by now the one before is accepted
        assert served.drain()
    assert not caplog.records


def test_draining_is_not_held_up_by_who_does_not_say_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    with serving(HoldPolicy(ARM6), replace(FREE, drain_s=0.5)) as served, visit(served) as client:
        client.protocol.receive_data = lambda data: None  # type: ignore[method-assign]  # deaf from here
        assert served.drain()
    assert not caplog.records


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"api_key": ""},
        {"api_key": "a\nb"},
        {"api_key": "k "},
        {"tls_key": Path("key.pem")},
        {"max_clients": 0},
        {"drain_s": -1.0},
        {"max_frame_mb": float("nan")},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        replace(FREE, **wrong)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text("nothing")
    with (
        pytest.raises(ConfigError, match=r"server\.pem"),
        serving(HoldPolicy(ARM6), replace(FREE, tls_cert=tmp_path / "server.pem")),
    ):
        pass


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_survives_mutated_frames() -> None:
    rng = random.Random(0)
    kinds: Counter[str] = Counter()
    with serving(tiny_policy()) as served:
        for _ in range(200):
            with visit(served) as client:
                client.send(mutated(rng))
                reply = client.recv(LIMIT_S)
                kinds[reply.partition(":")[0] if isinstance(reply, str) else "answered"] += 1
        with visit(served) as client:
            assert ask(client)["actions"].shape == (6, 7)
    assert {"answered", "FrameError", "ObservationError"} <= set(kinds)
    assert set(kinds) <= {"answered", "FrameError", "ObservationError", "ConfigError", "CheckpointError"}
