"""PolicyServer: a policy behind openpi's websocket protocol."""

import asyncio
import hmac
import logging
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from pi0_control.errors import ConfigError, FrameError, ObservationError, Pi0Error
from pi0_control.policy import Policy, warm_up
from pi0_control.serving.codec import pack, unpack
from pi0_control.serving.messages import (
    Announcement,
    ReadObservation,
    WriteChunk,
    check_api_key,
    read_observation,
    read_request,
    write_chunk,
)
from pi0_control.serving.metrics import CONTENT_TYPE, Metrics
from pi0_control.types import ActionChunk

LOG = logging.getLogger(__name__)
WARM_UP_IMAGE = (224, 224, 3)
MAX_REASON = 2000  # characters; it may quote what the client sent
MAX_HANDSHAKE_S = 10.0  # to open or to close


@dataclass(frozen=True)
class ServerConfig:
    """How a policy is served.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        api_key: what clients must send as ``Authorization: Api-Key KEY``; none asked if None.
        tls_cert, tls_key: PEM files for ``wss://``; the key may stand in the certificate's file.
        prompt: the ``prompt`` of a message that has none, before it is read; none if empty.
        max_frame_mb: longest message taken.
        max_clients: connections at a time.
        ping_s: every so often a client is asked whether it is there, and so long it may take to answer, or to take
            what is sent.
        drain_s: how long requests under way may take when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    prompt: str = ""
    max_frame_mb: float = 32.0
    max_clients: int = 64
    ping_s: float = 20.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"The port is {self.port}; expected 0 to 65535.")
        if self.api_key is not None:
            check_api_key(self.api_key)
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("There is a TLS key and no certificate; expected both, or the certificate alone.")
        for name in ("max_frame_mb", "max_clients", "ping_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected above zero.")

    @property
    def max_frame_bytes(self) -> int:
        """Longest message taken."""
        return int(self.max_frame_mb * 1e6)

    def tls(self) -> ssl.SSLContext | None:
        """What encrypts; None without a certificate.

        Raises:
            ConfigError: the files are no certificate and key.
        """
        if self.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:
            files = " and ".join(str(file) for file in (self.tls_cert, self.tls_key) if file)
            raise ConfigError(f"{files}: not a certificate with its key in PEM: {error.strerror}.") from error
        return context


class Connection(ServerConnection):
    """A connection that ends where the other side does not take what is sent within ``ping_timeout``."""

    async def drain(self) -> None:
        """Wait until there is room for more to send; whoever sends is told ConnectionClosed if there never is."""
        async with asyncio.timeout(self.ping_timeout):
            await super().drain()


class PolicyServer:
    """Answers observations with chunks while the context lasts; then finishes what is under way.

    The policy has a thread of its own, in which it is also warmed up before the server listens; requests wait for it
    in order of arrival, and as a client has one at a time, clients take turns.

    Args:
        policy: what to serve; nobody else may use it meanwhile.
        config: how.
        metadata: what openpi's clients may want to know beside our own key, such as ``reset_pose``.
        read: from messages to observations, for clients that name things differently; they are not told of our own
            key then.
        write: from chunks to replies, likewise.

    Raises:
        ConfigError: the TLS files cannot be used.
    """

    def __init__(
        self,
        policy: Policy,
        config: ServerConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        read: ReadObservation = read_observation,
        write: WriteChunk = write_chunk,
    ) -> None:
        self.config = config or ServerConfig()
        self.metrics = Metrics()
        self._policy, self._read, self._write = policy, read, write
        is_ours = read is read_observation and write is write_chunk
        own = Announcement.of(policy, self.config.max_frame_bytes).to_message() if is_ours else {}
        self._greeting = pack({**(metadata or {}), **own})
        self._tls = self.config.tls()
        self._worker = ThreadPoolExecutor(1, "policy")
        self._clients: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._jobs: set[asyncio.Future[tuple[ActionChunk, float]]] = set()  # in the worker or waiting for it
        self._end: asyncio.Task[bool] | None = None
        self._server: Server

    async def __aenter__(self) -> "PolicyServer":
        """Warm up, then listen.

        Raises:
            OSError: the address cannot be had.
        """
        config = self.config
        handshake_s = min(MAX_HANDSHAKE_S, config.drain_s)
        tls: dict[str, Any] = {"ssl": self._tls}
        if self._tls is not None:
            tls |= dict.fromkeys(("ssl_handshake_timeout", "ssl_shutdown_timeout"), handshake_s)
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._warm_up)
            self._server = await serve(
                self._handle,
                config.host,
                config.port,
                process_request=self._admit,
                origins=[None],  # a web page in the operator's browser is no client
                compression=None,
                max_size=config.max_frame_bytes,
                max_queue=1,  # else a client could have many frames held in memory
                ping_interval=config.ping_s,
                ping_timeout=config.ping_s,
                open_timeout=handshake_s,
                close_timeout=handshake_s,
                create_connection=Connection,
                **tls,
            )
        except BaseException:
            self._worker.shutdown(wait=False, cancel_futures=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain."""
        await self.drain()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self) -> bool:
        """Listen no more, finish the requests under way, say goodbye; False if ``drain_s`` did not suffice.

        After False the policy may still be computing, in a thread that Python waits for at its exit.
        """
        if self._end is None:
            self._end = asyncio.create_task(self._drain())
        return await asyncio.shield(self._end)

    async def _drain(self) -> bool:
        self._server.close(close_connections=False)
        goodbyes = [each.close(CloseCode.GOING_AWAY, "server stops") for each in self._clients - self._busy]
        try:
            async with asyncio.timeout(self.config.drain_s):
                await asyncio.gather(*goodbyes)
                await self._server.wait_closed()
                while self._jobs:  # of clients that went away
                    await asyncio.wait(self._jobs)
        except TimeoutError:
            under_way = max(len(self._busy), len(self._jobs))
            for connection in self._clients:
                connection.transport.abort()
            await self._server.wait_closed()
            if under_way:
                LOG.error("%d requests were still under way after %g s", under_way, self.config.drain_s)
            return not under_way
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
        return True

    # HTTP

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer health checks and metrics, refuse whom it must, else None: a websocket may open."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._has_key(request.headers):
            self.metrics.turned_away["api_key"] += 1
            refusal = connection.respond(HTTPStatus.UNAUTHORIZED, "Expected 'Authorization: Api-Key KEY'.\n")
            refusal.headers["WWW-Authenticate"] = "Api-Key"
            return refusal
        if path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if len(connection.server.connections) >= self.config.max_clients:
            self.metrics.turned_away["full"] += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.config.max_clients} clients are here.\n")
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self.config.api_key is None:
            return True
        expected = f"Api-Key {self.config.api_key}".encode()
        given = headers.get_all("Authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), expected)

    # websocket

    async def _handle(self, connection: ServerConnection) -> None:
        self._clients.add(connection)
        self.metrics.clients = len(self._clients)
        try:
            await connection.send(self._greeting)
            await self._converse(connection)
        except ConnectionClosed as error:
            LOG.info("%s is gone: %s", connection.remote_address, error)
        finally:
            self._clients.discard(connection)
            self.metrics.clients = len(self._clients)
            self._busy.discard(connection)

    async def _converse(self, connection: ServerConnection) -> None:
        """Request, reply, request, reply, until the client leaves, does something wrong or the server stops."""
        previous_s: float | None = None
        while self._end is None:
            frame = await connection.recv()
            started_s = time.perf_counter()
            self._busy.add(connection)
            reply = await self._answer(connection, frame, previous_s)
            if isinstance(reply, str):
                await connection.send(reply)
                await connection.close(CloseCode.INTERNAL_ERROR, "the reason is in the frame before")
                return
            await connection.send(reply)
            self._busy.discard(connection)
            previous_s = time.perf_counter() - started_s
            self.metrics.request.observe(previous_s)
        await connection.close(CloseCode.GOING_AWAY, "server stops")

    async def _answer(self, connection: ServerConnection, frame: str | bytes, previous_s: float | None) -> bytes | str:
        """The reply, or why there is none; ``previous_s`` is what the one before took in all, if there was one.

        Raises:
            ConnectionClosed: nobody is left to hear it.
        """
        outcome = "failed"
        try:
            chunk, timing = await self._infer(connection, frame)
            if previous_s is not None:
                timing["prev_total_ms"] = 1000 * previous_s
            reply = self._reply(chunk, timing)
            outcome = "answered"
            return reply
        except Pi0Error as error:
            if isinstance(error, FrameError | ObservationError | ConfigError):
                outcome = "refused"
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
            LOG.warning("%s: %s", connection.remote_address, reason)
            return reason
        except ConnectionClosed:
            outcome = "abandoned"
            raise
        except Exception as error:  # the boundary: whatever the policy did, its client is told and the others go on
            LOG.exception("%s: the policy failed", connection.remote_address)
            return f"{type(error).__name__} in the policy; the server's log has the traceback."
        finally:
            self.metrics.requests[outcome] += 1

    async def _infer(self, connection: ServerConnection, frame: str | bytes) -> tuple[ActionChunk, dict[str, float]]:
        """The chunk and our part of its timing; the request is taken out of the queue if its client goes away."""
        if isinstance(frame, str):
            raise FrameError("The message is text; expected a binary frame.")
        arrived_s = time.perf_counter()
        message = {"prompt": self.config.prompt, **unpack(frame)} if self.config.prompt else unpack(frame)
        work = self._worker.submit(self._compute, message)
        job = asyncio.wrap_future(work)
        self._count(job)
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise connection.protocol.close_exc
            chunk, infer_s = job.result()
        finally:
            work.cancel()  # which leaves alone what is being computed: job ends when that does
            gone.cancel()
        self.metrics.inference.observe(infer_s)
        queue_s = time.perf_counter() - arrived_s - infer_s
        return chunk, {"infer_ms": 1000 * infer_s, "queue_ms": 1000 * queue_s}

    def _count(self, job: asyncio.Future[tuple[ActionChunk, float]]) -> None:
        """Among those under way until it is done, whether or not its client is still there."""

        def end(job: asyncio.Future[tuple[ActionChunk, float]]) -> None:
            self._jobs.discard(job)
            self.metrics.waiting = len(self._jobs)
            if not job.cancelled():
                job.exception()  # else asyncio would complain of one that nobody waited for

        self._jobs.add(job)
        self.metrics.waiting = len(self._jobs)
        job.add_done_callback(end)

    def _reply(self, chunk: ActionChunk, timing: Mapping[str, float]) -> bytes:
        try:
            return pack({**self._write(chunk), "server_timing": timing})
        except FrameError as error:  # not of the client's
            raise TypeError(f"What write makes of a chunk is no message: {error}") from error

    # in the worker

    def _compute(self, message: Mapping[str, Any]) -> tuple[ActionChunk, float]:
        """The chunk for a message, and how long the policy took [s]."""
        started_s = time.perf_counter()
        request = read_request(message, self._read)
        if request.seed is not None:
            self._policy.reset(request.seed)
        chunk = self._policy.infer(request.observation, noise=request.noise, prefix=request.prefix)
        return chunk, time.perf_counter() - started_s

    def _warm_up(self) -> None:
        """The first inference takes longest; nothing is done with it."""
        warm_up(self._policy, self._policy.robot.cameras, WARM_UP_IMAGE, has_prefix=True)
        self._policy.reset(0)
