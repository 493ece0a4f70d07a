"""POSTs over connections that are open already, with usual answers read by hand.

What a library does around one POST takes ten times as long as the POST itself: objects for the request and the answer,
a queue and a look at the connection, a parser made for mail. Here bytes go out and bytes come in. Whatever is unusual
is left to the library: opening a connection, with all that belongs to certificates, and an answer that is chunked or
compressed, a redirect, one after a 1xx, one whose head is odd in any way.
"""

from __future__ import annotations

import queue
import socket
import time
import weakref
from collections import deque
from http.client import IncompleteRead
from typing import Any, Deque, Dict, NamedTuple, Optional, Tuple, Union

from urllib3.util.connection import is_connection_dropped

from x402tools._reply import Reply

# Bytes. Of a longer head or body the library reads what it wants of it.
_LARGEST = 64 * 1024

# So many odd answers in a row are the way of this service: the library is better at reading what it reads anyway.
_ODD_ONES_IN_A_ROW = 3

_END_OF_HEAD = b"\r\n\r\n"
_START = b"HTTP/1.1 "
_ENCODED = frozenset(("transfer-encoding", "content-encoding"))
_FRAMING = frozenset(("transfer-encoding", "content-encoding", "content-length", "connection"))


class Headers(Dict[str, str]):
    """The headers of an answer, under their names in lower case; `get` takes them in any."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class OddAnswer(NamedTuple):
    """What has come of an answer that the library has to read: from `connection`, on which it goes on."""

    connection: Any
    received: bytes
    due: float  # the moment of `time.monotonic()` by which its head has to be here


class _Head(NamedTuple):
    status: int
    headers: Headers
    size: int  # bytes of the head
    length: int  # bytes of the body
    closes: bool


class Connections:
    """Connections that the pool of a library has opened, for one request after the other.

    Any number of threads take them and give them back; a connection is with one of them at a time. No locks.

    Args:
        pool: a pool of urllib3.
        patience: seconds for the head of an answer, and between two pieces of its body.
    """

    def __init__(self, pool: Any, patience: float) -> None:
        self._pool = pool
        self._patience = patience
        self._idle: Deque[Any] = deque()  # append and pop are atomic
        self._odd_ones = 0  # in a row
        weakref.finalize(self, _close_all, self._idle).atexit = False

    def adopt(self) -> None:
        """Takes over the connection that the pool has kept from the last request, if there is one."""
        if self._odd_ones >= _ODD_ONES_IN_A_ROW:
            return
        try:
            connection = self._pool.pool.get(block=False)
        except (queue.Empty, AttributeError):  # all are in use; or the pool was closed
            return
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(self._patience)
            self._idle.append(connection)

    def post(self, request: bytes, deadline: float) -> Union[Reply, OddAnswer, None]:
        """Sends a request and reads the answer.

        Args:
            request: its head and its body.
            deadline: the moment of `time.monotonic()` after which the body of the answer is given up.

        Returns:
            None when no connection is open; nothing was sent. An `OddAnswer` belongs to the caller.
        """
        connection = self._take()
        if connection is None:
            return None
        try:
            answer, keep = _exchange(connection, request, self._patience, deadline)
        except BaseException:
            connection.close()
            raise
        if isinstance(answer, OddAnswer):
            self._odd_ones += bool(answer.received)  # nothing received: the service has closed the connection
            return answer
        self._odd_ones = 0
        if keep:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Closes those that nobody uses."""
        _close_all(self._idle)

    def _take(self) -> Optional[Any]:
        """The one that was used last, which is the least likely to have been closed by the service."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not is_connection_dropped(connection):
                return connection
            connection.close()


def _close_all(idle: Deque[Any]) -> None:
    while True:
        try:
            idle.pop().close()
        except IndexError:
            return


def _exchange(
    connection: Any, request: bytes, patience: float, deadline: float
) -> Tuple[Union[Reply, OddAnswer], bool]:
    """The answer, and whether the connection can be used again."""
    sock = connection.sock
    try:
        sock.sendall(request)
    except (BrokenPipeError, ConnectionResetError):
        pass  # who does not want all of the request may have said why before he closed
    due = time.monotonic() + patience
    received = sock.recv(_LARGEST)  # bounded by the time-out of the socket, and as a rule it brings everything
    while _may_become_usual(received):
        piece = _receive(sock, due)
        if not piece:
            return OddAnswer(connection, received, due), False
        received += piece
    head = _usual_head(received)
    if head is None:
        return OddAnswer(connection, received, due), False
    body = received[head.size :]
    if len(body) < head.length:
        body, whole = _rest_of_body(sock, body, head, patience, deadline)
    else:
        body, whole = body[: head.length], len(body) == head.length  # more than was announced is nobody's answer
    if len(received) < head.size + head.length or not whole:
        sock.settimeout(patience)
    return Reply(head.status, head.headers, body), whole and not head.closes


def _rest_of_body(sock: Any, body: bytes, head: _Head, patience: float, deadline: float) -> Tuple[bytes, bool]:
    """The body, and whether it is whole: of a success it need not be, whose status says that the usage is booked.

    Raises:
        OSError, HTTPException: it did not come, or not in time.
    """
    try:
        while len(body) < head.length:
            piece = _receive(sock, min(deadline, time.monotonic() + patience))
            if not piece:
                raise IncompleteRead(body, head.length - len(body))
            body += piece
    except (OSError, IncompleteRead):
        if head.status >= 400:
            raise
        return body, False
    return body, len(body) == head.length


def _receive(sock: Any, due: float) -> bytes:
    left = due - time.monotonic()
    if left <= 0:
        raise socket.timeout("the answer came too slowly")
    sock.settimeout(left)
    return sock.recv(_LARGEST)  # type: ignore[no-any-return]  # a socket, or what stands for one


def _may_become_usual(received: bytes) -> bool:
    """Whether a whole head is still to come."""
    return 0 < len(received) < _LARGEST and received[:9] == _START[: len(received)] and _END_OF_HEAD not in received


def _usual_head(received: bytes) -> Optional[_Head]:
    """The head of an answer; None when the library has to read it."""
    end, status = received.find(_END_OF_HEAD), received[9:12]
    if end < 0 or received[:9] != _START or received[12:13] not in (b" ", b"\r") or not status.isdigit():
        return None
    number = int(status)
    headers = _headers(received[:end].decode("latin-1"))
    if headers is None or not (200 <= number < 300 or 400 <= number < 600) or not _ENCODED.isdisjoint(headers):
        return None
    length = "0" if number == 204 else headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or len(length) > 6 or int(length) > _LARGEST:
        return None
    return _Head(number, headers, end + 4, int(length), headers.get("connection", "keep-alive").lower() != "keep-alive")


def _headers(head: str) -> Optional[Headers]:
    lines = head.split("\r\n")
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        return None  # a line may have an end that only some see
    headers = Headers()
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip()
        if not colon or name != name.strip():  # it belongs to the line before it, or nobody knows what it is
            return None
        if name in headers:
            if name in _FRAMING:
                return None
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers
