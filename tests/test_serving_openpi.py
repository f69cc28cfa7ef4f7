"""The unmodified openpi-client from PyPI against our server, and our client against a server made of its functions."""

import os
from typing import Any

import numpy as np
import pytest
from serving_parts import ARM6, observe, scripted, serving
from test_serving_codec import SPEC_FRAME, SPEC_MESSAGE
from tiny_policy import tiny_policy
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pi0_control.errors import ConfigError, RemoteError
from pi0_control.policy import HoldPolicy
from pi0_control.serving import RemotePolicy, ServerConfig
from pi0_control.serving.codec import pack
from pi0_control.types import ChunkPrefix

if "CI" not in os.environ:  # make test installs it; pip cannot beside ours, since it asks for numpy<2
    pytest.importorskip("openpi_client", reason="pip install --no-deps openpi-client")

from openpi_client import image_tools, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager:DeprecationWarning")  # it is not


def as_openpi_sends(level: float = 0.0) -> dict[str, Any]:
    seen = observe(level, size=48)
    images = {name: image_tools.resize_with_pad(image, 16, 16) for name, image in seen.images.items()}
    return {"images": images, "state": seen.state, "prompt": seen.prompt, "unknown": [1, 2]}


@pytest.mark.usefixtures("one_thread")
def test_openpis_client_is_at_home() -> None:
    policy, alone = tiny_policy(), tiny_policy()
    with serving(policy, metadata={"reset_pose": [0.0, -1.5]}) as served:
        client = WebsocketClientPolicy("localhost", served.port)
        assert client.get_server_metadata()["reset_pose"] == [0.0, -1.5]
        first, second = client.infer(as_openpi_sends(0.1)), client.infer(as_openpi_sends(0.2))
        client._ws.close()
    expected = [alone.infer(observe(level, size=48)).actions for level in (0.1, 0.2)]
    for reply, actions in zip((first, second), expected, strict=True):
        np.testing.assert_allclose(reply["actions"], actions, atol=1e-6)
        assert reply["policy_timing"]["infer_ms"] > 0
        assert reply["server_timing"]["infer_ms"] >= reply["policy_timing"]["infer_ms"]
        assert [key for key, value in reply.items() if isinstance(value, np.ndarray)] == [
            "actions"
        ]  # a broker slices all
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] > first["server_timing"]["infer_ms"]


def test_openpis_client_hears_what_is_wrong() -> None:
    with serving(HoldPolicy(ARM6, 4)) as served:
        client = WebsocketClientPolicy("localhost", served.port)
        with pytest.raises(
            RuntimeError, match=r"Error in inference server:\nObservationError: The state has shape \[3\]"
        ):
            client.infer({**as_openpi_sends(), "state": np.zeros(3)})
        with pytest.raises(ConnectionClosed):
            client._ws.recv()


def test_openpis_client_and_the_key() -> None:
    with serving(HoldPolicy(ARM6, 4), ServerConfig(port=0, api_key="open sesame")) as served:
        with pytest.raises(InvalidStatus, match="401"):
            WebsocketClientPolicy(f"ws://localhost:{served.port}", api_key="open")
        client = WebsocketClientPolicy(f"ws://localhost:{served.port}", api_key="open sesame")
        assert client.infer(as_openpi_sends(0.5))["actions"].shape == (4, 7)
        client._ws.close()


def test_the_frames_are_the_same_bytes() -> None:
    assert msgpack_numpy.packb(SPEC_MESSAGE) == pack(SPEC_MESSAGE) == SPEC_FRAME
    message = as_openpi_sends()
    assert msgpack_numpy.packb(message) == pack(message)


async def openpis_server(connection: ServerConnection) -> None:
    """As openpi's serves, with its functions: greets, replies with the state repeated, fails on an empty prompt."""
    await connection.send(msgpack_numpy.packb({"reset_pose": [0.0]}))
    async for frame in connection:
        message = msgpack_numpy.unpackb(frame)
        assert set(message) == {"images", "state", "prompt"}
        if message["prompt"] == "fail":
            await connection.send(
                'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no such prompt\n'
            )
            await connection.close(1011)
            return
        timing = {"infer_ms": 3.0}
        actions = np.tile(message["state"].astype(np.float64), (5, 1))
        await connection.send(
            msgpack_numpy.packb({"actions": actions, "policy_timing": timing, "server_timing": timing})
        )


def test_our_client_plays_the_policy_of_openpis_server() -> None:
    with scripted(openpis_server) as url, RemotePolicy(url, robot=ARM6, horizon=5, execution_horizon=3) as policy:
        assert (policy.robot, policy.horizon, policy.execution_horizon) == (ARM6, 5, 3)
        assert policy.metadata == {"reset_pose": [0.0]}
        policy.reset(3)  # not told
        for level in (0.25, 0.5):
            chunk = policy.infer(observe(level), prefix=ChunkPrefix(np.zeros((1, 7), np.float32), 0, 1))
            assert chunk.actions.dtype == np.float32
            assert np.array_equal(chunk.actions, np.full((5, 7), level))
            assert (chunk.start_s, chunk.dt_s, chunk.prompt) == (12.5, ARM6.dt_s, "touch the red block")
            assert set(chunk.timing_ms) == {"infer", "remote"}
            assert chunk.timing_ms["infer"] == 3.0
        with pytest.raises(RemoteError, match="ValueError: no such prompt"):
            policy.infer(observe(prompt="fail"))
        assert policy.infer(observe(0.75)).actions[0, 0] == 0.75
        with pytest.raises(ConfigError, match="noise"):
            policy.infer(observe(), noise=np.zeros((5, 7), np.float32))


def test_what_openpis_server_does_not_tell_is_asked_for() -> None:
    with scripted(openpis_server) as url:
        with pytest.raises(ConfigError, match="robot and horizon"):
            RemotePolicy(url, robot=ARM6)
        with RemotePolicy(url, robot=ARM6, horizon=6, rates=ARM6.joint_names) as policy:
            assert policy.rates == ARM6.joint_names
            with pytest.raises(RemoteError, match=r"\[5, 7\].*\[6, 7\]"):
                policy.infer(observe())
