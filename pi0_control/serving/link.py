"""Link: requests and their replies within a deadline, over a websocket connection that may break."""

import asyncio
import random
import ssl
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.protocol import State
from websockets.uri import parse_uri

from pi0_control.errors import ConfigError, RemoteError

BACK_OFF_S, MAX_BACK_OFF_S = 0.05, 1.0
MAX_REPLY_BYTES = 2**24
FINAL_CODES = (1002, 1003, 1007, 1008, 1009, 1010)  # one of us broke the rules and would again; the others may pass
T = TypeVar("T")


class Link:
    """Connects when it is used, and again after a connection broke, with growing pauses.

    A connection whose reply did not come in time is thrown away, and with it the reply, should it come later. Its event
    loop has a thread of its own, so that the server's pings are answered between requests too; the child of a fork
    has no such thread, and no link.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        headers: sent with every connection.
        tls: what to trust for ``wss://``; the system's certificates if None.

    Raises:
        ConfigError: not such a URL.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None) -> None:
        _check_url(url)
        self.url = url
        self._options: dict[str, Any] = {"additional_headers": dict(headers or {})}
        if url.startswith("wss:"):
            self._options["ssl"] = tls or ssl.create_default_context()
        self._greeting: bytes | None = None
        self._open: list[ClientConnection] = []  # none or one
        self._turn = asyncio.Lock()
        self._pauses = _pauses()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=f"link to {url}", daemon=True)
        self._thread.start()
        self._gate = threading.Lock()  # between what begins and the end
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._thread, self._open, self._gate)

    def greet(self, deadline_s: float) -> bytes:
        """The frame the server begins with.

        Raises:
            RemoteError: as for :meth:`exchange`.
        """
        self._call(self._within(deadline_s, None))
        assert self._greeting is not None
        return self._greeting

    def exchange(self, request: bytes, deadline_s: float) -> bytes | str:
        """The reply to a request; text if the server says what went wrong.

        A request is sent again after a connection broke, so it should be one that may be.

        Raises:
            RemoteError: no reply within the deadline, the server refuses, or after a reconnection greets differently.
        """
        reply = self._call(self._within(deadline_s, request))
        assert reply is not None
        return reply

    def close(self) -> None:
        """Leave; nothing can be asked any more, and who waits for an answer hears so."""
        self._finalizer()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._begin(work)
        try:
            return future.result()
        except CancelledError as error:
            raise RemoteError(f"The link to {self.url} was closed before the answer came.") from error
        except BaseException:  # such as KeyboardInterrupt
            future.cancel()
            raise

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._finalizer.alive and not self._thread.is_alive():
                raise RemoteError(f"The link to {self.url} is another process's; expected one made after the fork.")
            with self._gate:
                if not self._finalizer.alive:
                    raise RemoteError(
                        f"The link to {self.url} was closed; expected none of its methods to be called after that."
                    )
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RemoteError:
            work.close()
            raise

    async def _within(self, deadline_s: float, request: bytes | None) -> bytes | str | None:
        troubles: list[Exception] = []
        try:
            async with asyncio.timeout(deadline_s), self._turn:
                return await self._attempt(request, troubles)
        except TimeoutError as error:
            trouble = f" ({str(troubles[-1]) or type(troubles[-1]).__name__})" if troubles else ""
            raise RemoteError(f"{self.url} did not answer within {deadline_s:g} s{trouble}.") from error

    async def _attempt(self, request: bytes | None, troubles: list[Exception]) -> bytes | str | None:
        """Try until it works or it makes no sense to try again."""
        while True:
            try:
                connection = await self._connected()
                if request is None:
                    return None
                await connection.send(request)
                reply = await connection.recv()
                self._pauses = _pauses()
                if isinstance(reply, str):
                    self._drop()  # as the server does
                return reply
            except (OSError, ConnectionClosed, InvalidHandshake) as error:
                self._drop()
                _raise_if_final(error, self.url)
                troubles.append(error)
            except BaseException:  # above all the deadline: what comes now is too late
                self._drop()
                raise
            await asyncio.sleep(next(self._pauses))

    async def _connected(self) -> ClientConnection:
        if self._open and self._open[0].state is State.OPEN:
            return self._open[0]
        self._drop()
        connection = await connect(
            self.url, compression=None, max_size=MAX_REPLY_BYTES, proxy=None, open_timeout=None, **self._options
        )
        self._open.append(connection)
        greeting = await connection.recv()
        if isinstance(greeting, str):
            raise RemoteError(f"{self.url} began with text; expected a policy server's metadata.")
        if self._greeting not in (None, greeting):
            raise RemoteError(f"{self.url} serves something else than before; expected the same policy.")
        self._greeting = greeting
        return connection

    def _drop(self) -> None:
        while self._open:
            self._open.pop().transport.abort()


def _pauses() -> Iterator[float]:
    """Before each further attempt [s]: doubling, and random, lest many clients come at once."""
    pause_s = BACK_OFF_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, MAX_BACK_OFF_S)


def _raise_if_final(error: Exception, url: str) -> None:
    """RemoteError where trying again would end the same way."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status < 500:
            said = error.response.body.decode(errors="replace").strip()
            raise RemoteError(f"{url} refuses the connection: HTTP {status}. {said}") from error
    elif isinstance(error, ssl.SSLError):
        raise RemoteError(f"{url} cannot be trusted: {error.strerror or error}.") from error
    elif isinstance(error, ConnectionClosed):
        if any(close is not None and close.code in FINAL_CODES for close in (error.rcvd, error.sent)):
            raise RemoteError(f"{url} ended the connection: {error}.") from error
    elif isinstance(error, InvalidHandshake) and not isinstance(error, InvalidMessage):
        raise RemoteError(f"{url} is no websocket server: {error}.") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        parse_uri(url)
        (parts.hostname or "").encode("idna")  # as it is looked up: no label empty or too long
    except (InvalidURI, ValueError):
        is_url = False
    if not is_url:
        raise ConfigError(f"The policy server is {url!r}; expected ws://HOST:PORT or wss://HOST:PORT.")


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The thread of a loop, until it is stopped."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0))  # transports close
    finally:
        loop.close()


def _stop(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    connections: list[ClientConnection],
    gate: threading.Lock,
) -> None:
    def stop() -> None:
        for connection in connections:
            connection.transport.abort()
        loop.stop()

    if not thread.is_alive():  # after a fork
        return
    with gate:  # what was begun before is cancelled, what comes later is told
        loop.call_soon_threadsafe(stop)
    if threading.current_thread() is not thread:  # garbage is collected in any thread
        thread.join()
