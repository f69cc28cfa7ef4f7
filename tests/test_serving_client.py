import asyncio
import gc
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_parts import ARM6, GREETING, LIMIT_S, GatedPolicy, observe, scripted, serving
from tiny_policy import tiny_policy
from websockets.asyncio.server import ServerConnection

from pi0_control.control import ChunkingConfig, Pi0Agent
from pi0_control.errors import CheckpointError, ConfigError, ObservationError, RemoteError, RobotMismatchError
from pi0_control.policy import HoldPolicy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.serving import RemotePolicy, ServerConfig
from pi0_control.serving.codec import pack, unpack
from pi0_control.serving.messages import Announcement
from pi0_control.types import ChunkPrefix, Observation

DEADLINE_S = 0.2
GRACE_S = 5.0  # of a busy machine, on top of a deadline
TRIED_S = 2.0  # in which a first try has failed, on a busy machine, too
FREE = ServerConfig(port=0)


@contextmanager
def remote(url: str, **options: Any) -> Iterator[RemotePolicy]:
    with RemotePolicy(url, **{"deadline_s": LIMIT_S, "connect_s": LIMIT_S, **options}) as policy:
        yield policy


def fails_in_time(policy: RemotePolicy, observation: Observation, deadline_s: float = DEADLINE_S) -> str:
    """What it says when it cannot answer within the deadline."""
    started_s = time.perf_counter()
    policy.deadline_s = deadline_s
    with pytest.raises(RemoteError) as raised:
        policy.infer(observation)
    assert time.perf_counter() - started_s < deadline_s + GRACE_S
    policy.deadline_s = LIMIT_S
    return str(raised.value)


def reply_to(frame: str | bytes) -> bytes:
    assert isinstance(frame, bytes)
    return pack({"actions": np.tile(unpack(frame)["state"], (4, 1)), "policy_timing": {"infer_ms": 0.0}})


# what it is


@pytest.mark.usefixtures("one_thread")
def test_plays_as_the_policy_itself_would() -> None:
    local = tiny_policy()
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(6, 7)).astype(np.float32)
    prefix = ChunkPrefix(rng.normal(size=(3, 7)).astype(np.float32) / 10, 1, 3)
    with serving(tiny_policy()) as served, remote(served.url) as policy:
        accepted: Policy = policy
        assert (accepted.robot, accepted.horizon, accepted.execution_horizon) == (
            local.robot,
            6,
            local.execution_horizon,
        )
        for each in (local, policy):
            each.reset(7)
        large = observe(0.1, size=64)  # travels at the size the policy looks at
        for given in ({}, {}, {"noise": noise}, {"prefix": prefix}):
            chunk, expected = (each.infer(large, **given) for each in (policy, local))  # type: ignore[attr-defined]
            assert np.array_equal(chunk.actions, expected.actions)
            assert (chunk.start_s, chunk.dt_s, chunk.prompt) == (expected.start_s, expected.dt_s, expected.prompt)
            assert [*chunk.timing_ms] == [*expected.timing_ms, "remote"]
        two = [observe(0.1), observe(0.2)]
        for given in (
            {"noise": noise},
            {"noise": np.stack([noise, -noise])},
            {"noise": noise, "prefixes": [prefix, None]},
        ):
            chunks, expecteds = (each.infer_batch(two, **given) for each in (policy, local))  # type: ignore[arg-type]
            for chunk, expected in zip(chunks, expecteds, strict=True):
                np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-5)
        with pytest.raises(ConfigError, match="expected one each"):
            policy.infer_batch(two, prefixes=[None])


@pytest.mark.usefixtures("one_thread")
def test_an_agent_plays_it_in_real_time_chunking() -> None:
    def episode(policy: Policy) -> list[np.ndarray[Any, Any]]:
        agent = Pi0Agent(policy, chunking=ChunkingConfig("rtc", 3), latency_steps=1)
        agent.reset(5)
        seen = observe()
        return [
            agent.get_action({"images": seen.images, "state": np.full(7, step / 50, np.float32), "prompt": seen.prompt})
            for step in range(12)
        ]

    with serving(tiny_policy()) as served, remote(served.url) as policy:
        assert np.array_equal(episode(policy), episode(tiny_policy()))


def test_what_the_policy_must_not_act_upon_is_refused_here_and_there() -> None:
    with serving(tiny_policy()) as served, remote(served.url) as policy:
        good = observe()
        camera = ARM6.cameras[0]
        for bad, reason in [
            (replace(good, state=np.zeros(6, np.float32)), "shape"),
            (replace(good, prompt=" "), "prompt"),
            (replace(good, images={}), "lacks"),
            (replace(good, images={**good.images, camera: good.images[camera].astype(np.float32)}), "dtype"),
        ]:
            with pytest.raises(ObservationError, match=reason):
                policy.check(bad)
            with pytest.raises(ObservationError, match=reason):
                policy.infer(bad)
        with pytest.raises(ObservationError, match="token"):
            policy.infer(replace(good, prompt="word " * 200))  # only the policy knows
        assert policy.infer(good).horizon == 6
        with pytest.raises(ConfigError, match="prefix"):
            policy.infer(good, prefix=ChunkPrefix(np.zeros((1, 7), np.float32), 3, 2))
    with serving(HoldPolicy(ARM6, 4), replace(FREE, max_frame_mb=0.1)) as served, remote(served.url) as policy:
        with pytest.raises(ObservationError, match="bytes"):
            policy.infer(observe(size=500))
        assert policy.infer(observe()).horizon == 4


def test_what_the_server_says_went_wrong_is_passed_on() -> None:
    faulty = GatedPolicy()
    with serving(faulty) as served, remote(served.url) as policy:
        faulty.error = CheckpointError("The weights are bad.")
        with pytest.raises(CheckpointError, match=r"^The weights are bad\.$"):
            policy.infer(observe())
        faulty.error = ZeroDivisionError()
        with pytest.raises(RemoteError, match="ZeroDivisionError in the policy"):
            policy.infer(observe())
        faulty.error = None
        assert policy.infer(observe(0.5)).actions[0, 0] == 0.5


def test_only_the_right_key_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HoldPolicy(ARM6, 4), replace(FREE, api_key="open sesame")) as served:
        for wrong in (None, "open"):
            with pytest.raises(RemoteError, match="HTTP 401"):
                RemotePolicy(served.url, api_key=wrong, connect_s=LIMIT_S)
        monkeypatch.setenv("PI0_API_KEY", "open sesame")
        with remote(served.url) as policy:
            assert policy.infer(observe()).horizon == 4


@pytest.mark.parametrize("key", ["schlüssel", "a\r\nX: y", "sesame ", " sesame"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as raised:
        RemotePolicy("ws://127.0.0.1:1", api_key=key, connect_s=DEADLINE_S)
    assert key not in str(raised.value)


def test_whole_numbers_may_be_numpys() -> None:
    asked = GatedPolicy()
    with serving(asked) as served, remote(served.url) as policy:
        policy.reset(np.int64(5))  # type: ignore[arg-type]
        prefix = ChunkPrefix(np.zeros((3, 7), np.float32), np.int64(1), np.int64(3))  # type: ignore[arg-type]
        assert policy.infer(observe(), prefix=prefix).horizon == 4
        for wrong in (-1, 2**63, 3.5):
            with pytest.raises(ConfigError, match="expected a whole number from 0"):
                policy.reset(wrong)  # type: ignore[arg-type]
        assert policy.infer(observe()).horizon == 4
    assert asked.seeds == [0, 5]


def test_what_a_policy_moves_by_rates_is_told() -> None:
    moving = HoldPolicy(ARM6, 4)
    moving.rates = ARM6.joint_names[:6]
    with serving(moving) as served, remote(served.url, rates=ARM6.joint_names[:6]) as policy:
        assert policy.rates == ARM6.joint_names[:6]


def test_another_robot_or_horizon_than_the_servers_is_refused() -> None:
    slower = replace(ARM6, joints=tuple(replace(joint, max_velocity=0.1) for joint in ARM6.joints))
    with serving(HoldPolicy(ARM6, 4)) as served:
        with remote(served.url, robot=slower, execution_horizon=1) as policy:
            assert (policy.robot, policy.execution_horizon) == (slower, 1)
        with pytest.raises(RobotMismatchError, match="droid"):
            RemotePolicy(served.url, robot=RobotSpec.from_yaml("droid"), connect_s=LIMIT_S)
        wrong: dict[str, Any]
        for wrong in (
            {"horizon": 5},
            {"rates": ["waist"]},
            {"execution_horizon": 5},
            {"execution_horizon": 0},
            {"deadline_s": 0.0},
        ):
            with pytest.raises(ConfigError, match="expected"):
                RemotePolicy(served.url, connect_s=LIMIT_S, **wrong)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "http://localhost",
        "ws://",
        "ws://localhost:port",
        "",
        "ws://h/#x",
        "ws://user@h",
        "ws://a..b",
        f"ws://{'a' * 70}",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="ws://HOST:PORT"):
        RemotePolicy(url)


# servers that are not as they should be


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        ("hello", "began with text"),
        (b"\xc1", "no message of the protocol"),
        (pack({"pi0_control": {"protocol_version": 2}}), "version 2 .* expected 1"),
        (pack({"pi0_control": None}), "version None"),
        (pack({"pi0_control": {"protocol_version": 1}}), "cannot be used"),
        (pack(Announcement(ARM6, 4, 2).to_message() | {"pi0_control": {"protocol_version": 1, "robot": {}}}), "robot"),
    ],
)
def test_a_server_of_another_kind_or_version_is_refused(greeting: str | bytes, reason: str) -> None:
    async def server(connection: ServerConnection) -> None:
        await connection.send(greeting)
        await connection.wait_closed()

    with scripted(server) as url, pytest.raises(RemoteError, match=reason):
        RemotePolicy(url, connect_s=LIMIT_S)


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        (np.zeros((4, 6)), r"\[4, 6\]"),
        (np.zeros((3, 7)), r"\[3, 7\]"),
        (np.full((4, 7), np.nan), "not finite"),
        (np.full((4, 7), "a"), "<U1"),
        ([0.0], "expected actions"),
    ],
    ids=["width", "horizon", "nan", "text", "list"],
)
def test_a_reply_that_is_no_chunk_of_this_policy_is_refused(actions: Any, reason: str) -> None:
    async def server(connection: ServerConnection) -> None:
        await connection.send(GREETING)
        async for _ in connection:
            await connection.send(pack({"actions": actions}))

    with scripted(server) as url, remote(url) as policy, pytest.raises(RemoteError, match=reason):
        policy.infer(observe())


def test_nobody_there_and_somebody_else_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:  # accepts and is silent: a half-open connection
        port = listener.getsockname()[1]
        with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
            RemotePolicy(f"ws://127.0.0.1:{port}", connect_s=DEADLINE_S)
        with pytest.raises(RemoteError, match=r"did not answer within 0\.2 s"):
            RemotePolicy(f"wss://127.0.0.1:{port}", connect_s=DEADLINE_S)
    with pytest.raises(RemoteError, match="Connect call failed"):
        RemotePolicy(f"ws://127.0.0.1:{port}", connect_s=TRIED_S)
    with serving(HoldPolicy(ARM6, 4)) as served:
        with pytest.raises(RemoteError, match=r"did not answer within 2 s \(.+\)"):
            RemotePolicy(served.url.replace("ws:", "wss:"), connect_s=TRIED_S)
        with pytest.raises(RemoteError, match="HTTP 200"):
            RemotePolicy(f"{served.url}/healthz", connect_s=LIMIT_S)


# time and broken connections


def test_a_late_reply_is_never_taken_for_the_next() -> None:
    slow = GatedPolicy()
    with serving(slow) as served, remote(served.url) as policy:
        slow.shut()
        assert "did not answer within 0.2 s" in fails_in_time(policy, observe(1.0))
        slow.open()
        for level in (2.0, 3.0):
            assert policy.infer(observe(level)).actions[0, 0] == level


def test_deadlines_and_late_replies_at_random() -> None:
    rng = random.Random(0)

    async def server(connection: ServerConnection) -> None:
        await connection.send(GREETING)
        async for frame in connection:
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.02, 0.2]))
            await connection.send(reply_to(frame))

    late = 0
    with scripted(server) as url, remote(url) as policy:
        for level in range(60):
            policy.deadline_s = rng.choice([0.02, 0.1, LIMIT_S])
            try:
                assert policy.infer(observe(level)).actions[0, 0] == level
            except RemoteError:
                late += 1
    assert 0 < late < 60


def test_a_server_killed_in_mid_request_is_asked_again_when_it_is_back() -> None:
    answers = iter([None, "die", "die", None])

    async def server(connection: ServerConnection) -> None:
        await connection.send(GREETING)
        async for frame in connection:
            if next(answers):
                connection.transport.abort()
                return
            await connection.send(reply_to(frame))

    with scripted(server) as url, remote(url) as policy:
        for level in (1.0, 2.0):  # the second is asked three times
            assert policy.infer(observe(level)).actions[0, 0] == level
    assert next(answers, "none left") == "none left"


def test_a_server_that_is_gone_holds_nobody_up_and_may_come_back() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served:
        policy = RemotePolicy(served.url.replace("localhost", "127.0.0.1"), deadline_s=LIMIT_S)
    with policy:
        assert "Connect call failed" in fails_in_time(policy, observe(), TRIED_S)
        with serving(HoldPolicy(ARM6, 4), replace(FREE, port=served.port)):
            assert policy.infer(observe(2.0)).actions[0, 0] == 2.0
        other = serving(HoldPolicy(ARM6, 5), replace(FREE, port=served.port))
        with other, pytest.raises(RemoteError, match="something else than before"):
            policy.infer(observe())
    with pytest.raises(RemoteError, match="was closed"):
        policy.infer(observe())


def test_a_half_open_connection_holds_nobody_up() -> None:
    deaf = threading.Event()

    async def server(connection: ServerConnection) -> None:
        await connection.send(GREETING)
        if not deaf.is_set():
            connection.transport.pause_reading()  # nothing is read or answered, and nothing closed
            connection.transport.resume_reading = lambda: None  # type: ignore[method-assign]
            await connection.connection_lost_waiter
        async for frame in connection:
            await connection.send(reply_to(frame))

    with scripted(server) as url, remote(url) as policy:
        for size in (8, 1000):  # what fits the sockets' buffers, and what does not
            assert "did not answer" in fails_in_time(policy, observe(size=size))
        deaf.set()
        assert policy.infer(observe(2.0)).actions[0, 0] == 2.0


def test_fifty_clients_get_their_own_answers() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served, ThreadPoolExecutor(50) as pool:
        start = threading.Barrier(50)

        def play(client: int) -> None:
            with remote(served.url) as policy:
                start.wait(LIMIT_S)
                for step in range(10):
                    level = client + step / 16
                    assert policy.infer(observe(level)).actions[0, 0] == level

        for each in [pool.submit(play, client) for client in range(50)]:
            each.result()
        assert served.server.metrics.requests == {"answered": 500, "refused": 0, "failed": 0, "abandoned": 0}


def test_threads_take_turns_with_one_client() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served, remote(served.url) as policy, ThreadPoolExecutor(8) as pool:
        levels = [float(level) for level in range(40)]
        chunks = pool.map(lambda level: policy.infer(observe(level)), levels)
        assert [chunk.actions[0, 0] for chunk in chunks] == levels


def test_a_policy_nobody_has_any_more_leaves_no_thread() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served:
        policy = RemotePolicy(served.url, connect_s=LIMIT_S)
        (thread,) = [each for each in threading.enumerate() if each.name == f"link to {served.url}"]
        policy.infer(observe())
        del policy
        gc.collect()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def test_a_link_is_of_the_process_that_made_it() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served, remote(served.url) as policy:
        said, says = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if child == 0:
            signal.alarm(int(LIMIT_S))
            try:
                policy.infer(observe())
            except RemoteError as error:
                os.write(says, str(error).encode())
            policy.close()
            os._exit(0)
        os.close(says)
        with os.fdopen(said) as pipe:
            assert "another process's; expected one made after the fork" in pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        assert policy.infer(observe()).horizon == 4


def test_whoever_waits_while_the_link_is_closed_hears_so() -> None:
    slow = GatedPolicy()
    with serving(slow) as served, ThreadPoolExecutor() as pool:
        policy = RemotePolicy(served.url, deadline_s=LIMIT_S, connect_s=LIMIT_S)
        slow.shut()
        waiting = [pool.submit(policy.infer, observe()) for _ in range(3)]
        assert slow.entered.acquire(timeout=LIMIT_S)
        policy.close()
        for each in waiting:
            with pytest.raises(RemoteError, match="was closed"):
                each.result(LIMIT_S)
        slow.open()


def test_what_is_asked_at_the_very_end_is_answered_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HoldPolicy(ARM6, 4)) as served, ThreadPoolExecutor() as pool:
        policy = RemotePolicy(served.url, deadline_s=LIMIT_S, connect_s=LIMIT_S)
        submit = asyncio.run_coroutine_threadsafe

        def late(work: Any, loop: asyncio.AbstractEventLoop) -> Any:
            if loop is policy._link._loop:
                ends.append(pool.submit(policy.close))
                while policy._link._finalizer.alive:  # the link is being closed meanwhile
                    time.sleep(0)
            return submit(work, loop)

        ends: list[Any] = []
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", late)
        asked = pool.submit(policy.infer, observe())
        error = asked.exception(LIMIT_S)
        assert error is None or (isinstance(error, RemoteError) and "was closed" in str(error))
        ends[0].result(LIMIT_S)
