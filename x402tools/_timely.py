"""Connections over which the head of an answer comes in time, or not at all.

A time-out of a socket bounds each single read. A server, or a proxy gone wrong, that sends a byte of the head now and
then stays within it for hours, and a sender of the buffer with it. Here the whole head (status line, headers, and any
1xx before them; a proxy's answer to CONNECT too) must have come when the read time-out has passed. The body is bounded
by whoever reads it.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any, Optional

from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3._collections import HTTPHeaderDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import ProxyManager


class TimelyAdapter(HTTPAdapter):
    """requests' own adapter, on such connections."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        if isinstance(manager, ProxyManager):  # the one for SOCKS has connections of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager


class _Received(io.RawIOBase):
    """What a connection receives. Until `due` is None, no read goes on after it.

    The first read is bounded by the socket itself, and as a rule brings the whole head: nothing more is spent on it.
    """

    def __init__(self, connection: socket.socket, before: bytes) -> None:
        self._connection = connection
        self._before = before  # what was received by somebody else
        self._received = connection.makefile("rb")
        # Seconds. The sockets of pyOpenSSL, where somebody has put it into urllib3, do not tell: no bound then.
        self._patience = getattr(connection, "gettimeout", lambda: None)()
        self._reads = 0
        self.due: Optional[float] = None if self._patience is None else time.monotonic() + self._patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._before:
            size = min(len(buffer), len(self._before))
            buffer[:size], self._before = self._before[:size], self._before[size:]
            self._reads += 1
            return size
        if self.due is not None and self._reads:
            left = self.due - time.monotonic()
            if left <= 0:
                raise socket.timeout("the head of the answer came too slowly")
            self._connection.settimeout(left)
        self._reads += 1
        return self._received.readinto1(buffer)

    def head_is_here(self) -> None:
        """The body is read with the socket's own time-out again."""
        self.due = None
        if self._reads > 1:
            self._connection.settimeout(self._patience)

    def close(self) -> None:
        self._received.close()
        super().close()


class TimelyResponse(http.client.HTTPResponse):
    """An answer whose head is whole within the time-out that its socket has when reading begins."""

    def __init__(self, sock: socket.socket, *args: Any, before: bytes = b"", **kwargs: Any) -> None:
        self._head = _Received(sock, before)
        super().__init__(_Reader(self._head), *args, **kwargs)  # type: ignore[arg-type]  # all it asks for is makefile

    def _read_status(self) -> Any:
        """The status of the answer itself. The library passes over a 100, and would take a 103 for the answer."""
        while True:
            found = super()._read_status()  # type: ignore[misc]  # as old as the module, and not in its stubs
            if not 102 <= found[1] < 200:
                return found
            http.client.parse_headers(self.fp)

    def due_by(self, moment: float) -> None:
        """Bounds the head by a moment of `time.monotonic()` rather than by the time-out counted from now."""
        if self._head.due is not None:
            self._head.due = moment

    def begin(self) -> None:
        super().begin()
        self._head.head_is_here()


def read_on(sock: socket.socket, before: bytes, due: float) -> HTTPResponse:
    """The answer to a POST as urllib3 has it, with its body still to be read.

    Args:
        sock: where the rest of it comes from.
        before: what has come of it.
        due: the moment of `time.monotonic()` by which its head has to be here.

    Raises:
        OSError, HTTPException: it does not come, or not in time.
    """
    answer = TimelyResponse(sock, method="POST", before=before)
    answer.due_by(due)
    try:
        answer.begin()
    except BaseException:
        answer.close()  # or the socket would stay open for what still reads from it
        raise
    return HTTPResponse(
        body=answer,
        headers=HTTPHeaderDict(answer.getheaders()),
        status=answer.status,
        version=answer.version,
        reason=answer.reason,
        preload_content=False,
        original_response=answer,
        request_method="POST",
    )


class _Reader:
    """Stands for the socket where only its `makefile` is asked for."""

    def __init__(self, received: _Received) -> None:
        self._received = received

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self._received)


class Connection(HTTPConnection):
    response_class = TimelyResponse


class TLSConnection(HTTPSConnection):
    response_class = TimelyResponse


class _Pool(HTTPConnectionPool):
    ConnectionCls = Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = TLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}
