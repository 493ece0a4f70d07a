"""Serves the emulator: the only file that knows uvicorn.

Two of uvicorn's classes are bent here, in ways that hold from 0.33 (the last for Python 3.8) to the present one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from typing import Any, Callable, Iterator, List, Optional

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

# Our own, so that neither uvicorn's loggers nor their levels are touched in a process that uses uvicorn itself. Silent
# unless configured: what uvicorn has to say is mostly of connections that we broke on purpose.
logger = logging.getLogger("x402tools.emulator")
logger.addHandler(logging.NullHandler())
logger.propagate = False

GRACE_SECONDS = 0.2  # For requests that are being answered when the server stops; one that hangs gets no more.
TICK_SECONDS = 1.0  # uvicorn renews its Date header on a tick.
KEEP_ALIVE_SECONDS = 75  # As nginx does. uvicorn's 5 would close pooled connections of slow tests.
BACKLOG = 1024


class Protocol(H11Protocol):
    """A connection whose transport the application finds in ``scope["state"]["transport"]``, to break it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logger
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrowed
        """Begin; uvicorn hands a copy of ``app_state`` to each request as its ``scope["state"]``."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class Server(uvicorn.Server):
    """A server that says when it is ready, ends cleanly on a signal, and does not wait for idle connections."""

    def __init__(self, app: Any, *, on_ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            backlog=BACKLOG,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stopping: Optional[asyncio.Event] = None

    def stop(self) -> None:
        """Ask the server to end. From any thread, any number of times; does not wait for it."""
        self.should_exit = True
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            # The loop may have closed in the meantime, which is what was asked for.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stopping.set)

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        """Start to accept connections, then say so."""
        # In this order: a stop() that comes before `_stopping` is there is seen in `should_exit`.
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        await super().startup(sockets=sockets)
        self._on_ready()

    async def main_loop(self) -> None:
        """Serve until :meth:`stop`. uvicorn's own looks ten times a second; this one is woken."""
        assert self._stopping is not None
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_SECONDS)

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        """Stop accepting, let requests that are being answered finish for a moment, and drop what is left."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=GRACE_SECONDS)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the server. uvicorn would raise them again once it has stopped."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stop()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to that address; port 0 takes a free one.

    Raises:
        OSError: the address is in use or not of this machine; the message names it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, which accepted sockets inherit: asyncio switches Nagle's algorithm off only where it
    # reads IPPROTO_TCP, and with it on, an answer of two packets takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Connections of a killed predecessor linger on the port for a minute; they shall not keep us out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def base_url(listener: socket.socket) -> str:
    """The address to give a client."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(listener: socket.socket, server: Server) -> None:
    """Run the server on the socket until it is stopped, in this thread; the socket is closed afterwards."""
    asyncio.run(server.serve(sockets=[listener]))
