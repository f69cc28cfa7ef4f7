"""Policies and servers for tests of serving; everything on loopback, waiting for events and never for time."""

import asyncio
import http.client
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection, serve

from pi0_control.policy import HoldPolicy, Policy
from pi0_control.robot import RobotSpec
from pi0_control.serving import PolicyServer, ServerConfig
from pi0_control.serving.codec import pack
from pi0_control.serving.messages import Announcement
from pi0_control.types import ActionChunk, ChunkPrefix, Observation

ARM6 = RobotSpec.from_yaml("arm6")
LIMIT_S = 60.0  # a hang is a failure, not a stuck test run
GREETING = pack(Announcement(ARM6, 4, 2).to_message())


def observe(level: float = 0.0, size: int = 8, prompt: str = "touch the red block") -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in ARM6.cameras}
    return Observation(images, np.full(7, level, np.float32), prompt, 12.5)


class GatedPolicy(HoldPolicy):
    """Holds still; from ``shut`` to ``open`` an inference waits. Remembers what it was asked, and in which thread."""

    def __init__(self) -> None:
        super().__init__(ARM6, 4, 2)
        self.levels: list[float] = []
        self.seeds: list[int | None] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.entered = threading.Semaphore(0)
        self._gate = threading.Event()
        self._gate.set()

    def shut(self) -> None:
        while self.entered.acquire(blocking=False):
            pass
        self._gate.clear()

    def open(self) -> None:
        self._gate.set()

    def infer(
        self, observation: Observation, *, noise: NDArray[np.float32] | None = None, prefix: ChunkPrefix | None = None
    ) -> ActionChunk:
        self.levels.append(float(observation.state[0]))
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self._gate.wait(LIMIT_S)
        if self.error is not None:
            raise self.error
        return super().infer(observation)

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            async with asyncio.timeout(LIMIT_S):
                return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Served:
    """A PolicyServer in a thread."""

    def __init__(self, policy: Policy, config: ServerConfig, **options: Any) -> None:
        self._loop = Loop()
        self.server = PolicyServer(policy, config, **options)
        self._loop.run(self.server.__aenter__())
        self.port = self.server.port
        self.url = f"{'wss' if config.tls_cert else 'ws'}://localhost:{self.port}"

    def drain(self) -> bool:
        return bool(self._loop.run(self.server.drain()))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        async def look() -> None:
            while not condition():
                await asyncio.sleep(0)

        self._loop.run(look())

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Status, content type and body of an HTTP GET."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=LIMIT_S)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        answer = response.status, response.headers["Content-Type"], response.read().decode()
        connection.close()
        return answer

    def stop(self) -> None:
        self.drain()
        self._loop.stop()


@contextmanager
def serving(policy: Policy, config: ServerConfig | None = None, **options: Any) -> Iterator[Served]:
    served = Served(policy, config or ServerConfig(port=0), **options)
    try:
        yield served
    finally:
        served.stop()


@contextmanager
def scripted(handler: Callable[[ServerConnection], Awaitable[None]], port: int = 0) -> Iterator[str]:
    """The URL of a websocket server that does what the handler says."""
    loop = Loop()

    async def begin() -> Any:
        return await serve(handler, "127.0.0.1", port, compression=None, max_size=None, close_timeout=0.5)

    async def end(server: Any) -> None:
        server.close()
        await server.wait_closed()

    server = loop.run(begin())
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.run(end(server))
        loop.stop()
