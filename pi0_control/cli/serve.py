"""``pi0 serve``."""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from pi0_control.policy import Policy
    from pi0_control.serving import PolicyServer, ServerConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")
METADATA = {"aloha": {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}}  # [rad], of both arms, as openpi's servers say


@dataclass(frozen=True)
class ServeOptions:
    """What ``pi0 serve`` can be told; an API key comes from the environment, PI0_API_KEY.

    Attributes:
        policy: mini (bundled), hold (stays where it is), or a policy directory of ours, openpi's or LeRobot's.
        policy_config: what a public checkpoint does not tell: a preset such as pi05_droid, or a file.
        asset: whose statistics, where an openpi checkpoint has those of several robots.
        tokenizer: SentencePiece file, where none lies in or beside the policy.
        layout: what clients call things: aloha, droid, droid_joint_position, libero or ur5 (openpi's), or a YAML file.
        host: where to listen; 0.0.0.0 for every network.
        port: 0 takes a free one.
        robot: a robot file, or the name of a bundled one; the policy's own if not given.
        prompt: the instruction where an observation has none.
        device: where the policy is computed, such as cpu or cuda.
        dtype: what it is computed in; float8 is bfloat16 but for the products of the prefix (docs/performance.md).
        threads: of the CPU; 0 for one if the network is small, such as mini, and else as many as there are cores.
        rtc: how chunks under way are continued where a client sends one.
        tls_cert: certificate in PEM; clients connect to wss:// then.
        tls_key: its key, where it is not in the same file.
        max_frame_mb: longest message taken.
        max_clients: connections at a time.
        drain_s: how long requests under way may take after SIGTERM.
    """

    policy: str = "mini"
    policy_config: str | None = None
    asset: str | None = None
    tokenizer: Path | None = None
    layout: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    robot: str | None = None
    prompt: str = ""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float8"] = "float32"
    threads: int = 0
    rtc: Literal["guided", "trained"] = "guided"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_frame_mb: float = 32.0
    max_clients: int = 64
    drain_s: float = 30.0


def serve(options: Annotated[ServeOptions, tyro.conf.arg(name="")]) -> None:
    """Answer observations with action chunks over openpi's websocket protocol, until SIGTERM or Ctrl-C."""
    from pi0_control.serving import ServerConfig
    from pi0_control.serving.messages import API_KEY_VARIABLE

    config = ServerConfig(
        options.host,
        options.port,
        os.environ.get(API_KEY_VARIABLE),
        options.tls_cert,
        options.tls_key,
        options.prompt,
        options.max_frame_mb,
        options.max_clients,
        drain_s=options.drain_s,
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # whoever probes the port would fill the log
    if config.host not in LOOPBACK and config.api_key is None:
        print(
            f"pi0: anyone who reaches {config.host} may use this policy; {API_KEY_VARIABLE} asks for a key.",
            file=sys.stderr,
        )
    if not asyncio.run(_serve(_policy(options), config, options)):
        os._exit(1)  # a stuck inference cannot be ended otherwise


def _policy(options: ServeOptions) -> "Policy":
    from pi0_control.policy import RtcConfig, load_policy
    from pi0_control.robot import RobotSpec

    robot = RobotSpec.from_yaml(options.robot) if options.robot else None
    known = (options.policy_config, options.asset, options.tokenizer)
    rtc, threads = RtcConfig(options.rtc), options.threads
    return load_policy(options.policy, robot, options.device, options.dtype, rtc, *known, threads=threads)


def _server(policy: "Policy", config: "ServerConfig", layout: str | None) -> "PolicyServer":
    from pi0_control.control.dialect import Dialect
    from pi0_control.control.layout_file import find_layout
    from pi0_control.serving import PolicyServer
    from pi0_control.serving.messages import read_observation, write_chunk

    if layout is None:
        return PolicyServer(policy, config)
    dialect = Dialect(find_layout(layout), policy.robot, policy.rates, config.prompt)
    return PolicyServer(
        policy,
        replace(config, prompt=""),  # the dialect knows where clients have theirs
        METADATA.get(layout),
        read=lambda message: read_observation(dialect.read(message)),
        write=lambda chunk: write_chunk(replace(chunk, actions=dialect.actions(chunk.actions))),
    )


async def _serve(policy: "Policy", config: "ServerConfig", options: ServeOptions) -> bool:
    """Until a signal comes; whether all requests were answered then."""
    stop = asyncio.Event()
    async with _server(policy, config, options.layout) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        scheme, host = "wss" if config.tls_cert else "ws", f"[{config.host}]" if ":" in config.host else config.host
        print(
            f"Serving {options.policy} at {scheme}://{host}:{server.port}: robot {policy.robot.name}, chunks of "
            f"{policy.horizon} actions, {policy.execution_horizon} of them to play. Ctrl-C ends it.",
            flush=True,
        )
        await stop.wait()
        return await server.drain()
