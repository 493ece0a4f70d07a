"""The service that everything is measured against: it answers at once and counts what arrived.

    python benchmarks/harness/sink.py [--delay SECONDS]     prints its port, ends when its standard input does

It takes `POST /NAME/usage` as the API does, `POST /NAME/v1/batch` as segment's does and `POST /NAME/batch/` as
posthog's, and keeps a tally for each NAME, so that several contestants can be counted apart. `GET /report` returns the
tallies. With `--delay` every answer to a POST comes so much later, as over a network, while other requests go on.

It is one thread around a selector, because that is the fastest there is in Python alone; `run.py` shows how fast. It
imports nothing of the package, so that it can't agree with its bugs.
"""

from __future__ import annotations

import argparse
import collections
import json
import select
import selectors
import socket
import sys
import time
from typing import Any, Deque, Dict, Optional, Set, Tuple

# Answers only need to be parsed; the time in them means nothing.
_USAGE = '{"id":"usg_%d","envelopeId":%s,"amount":%d,"timestamp":"2025-11-05T12:34:56.789Z","metadata":null}'
_HEAD = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_ACCEPTED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n" + b'{"success":true,"status": 1}'
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_RECEIVE = 262_144  # bytes at once; a batch of segment's is up to 500 kB


class Tally:
    """What arrived under one name."""

    def __init__(self) -> None:
        self.posts = 0
        self.events = 0
        self.units = 0  # of POSTs that were not sent before under the same key
        self.repeated = 0  # POSTs whose idempotency key had been seen
        self.first: Optional[float] = None  # seconds of the monotonic clock, the same in all processes
        self.last: Optional[float] = None
        self.keys: Set[bytes] = set()

    def as_dict(self) -> Dict[str, Any]:
        return {
            "posts": self.posts,
            "events": self.events,
            "units": self.units,
            "repeated": self.repeated,
            "first": self.first,
            "last": self.last,
        }


class Sink:
    """Serves until standard input ends.

    Args:
        delay: seconds between a POST and its answer.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._tallies: Dict[str, Tally] = {}
        self._due: Deque[Tuple[float, socket.socket, bytes]] = collections.deque()
        self._buffers: Dict[socket.socket, bytearray] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def serve(self) -> None:
        """Prints the port, then serves."""
        print(self._listener.getsockname()[1], flush=True)
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is sys.stdin:
                    return
                else:
                    self._receive(key.fileobj)
            self._answer_what_is_due()

    def _patience(self) -> Optional[float]:
        if not self._due:
            return None
        rest = max(self._due[0][0] - time.monotonic(), 0.0)
        # epoll counts in whole milliseconds, which would add up to one to every round trip; select() does not.
        if hasattr(self._selector, "fileno") and rest:
            select.select([self._selector.fileno()], [], [], rest)
            return 0.0
        return rest

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._buffers[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            del self._buffers[connection]
            connection.close()
            return
        buffer = self._buffers[connection]
        buffer += data
        while True:
            head_end = buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = bytes(buffer[:head_end])
            end = head_end + 4 + _content_length(head)
            if len(buffer) < end:
                return
            body = bytes(buffer[head_end + 4 : end])
            del buffer[:end]
            self._handle(connection, head, body)

    def _handle(self, connection: socket.socket, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            tallies = {name: tally.as_dict() for name, tally in self._tallies.items()}
            self._send(connection, _answer(json.dumps({"tallies": tallies, "cpu": time.process_time()})))
            return
        name, _, rest = path.decode("ascii").lstrip("/").partition("/")
        answer = self._book(name, rest, head, body)
        if self._delay:
            self._due.append((time.monotonic() + self._delay, connection, answer))
        else:
            self._send(connection, answer)

    def _book(self, name: str, rest: str, head: bytes, body: bytes) -> bytes:
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
        tally.last = time.monotonic()
        if tally.first is None:
            tally.first = tally.last
        tally.posts += 1
        if rest == "usage":
            usage = json.loads(body)
            key = _idempotency_key(head)
            if key and key in tally.keys:
                tally.repeated += 1
            else:
                tally.events += 1
                tally.units += usage["amount"]
                if key:
                    tally.keys.add(key)
            return _answer(_USAGE % (tally.posts, json.dumps(usage["envelopeId"]), usage["amount"]), "201 Created")
        if rest in ("v1/batch", "batch/", "batch"):
            tally.events += len(json.loads(body)["batch"])
            return _ACCEPTED
        return _NOT_FOUND

    def _send(self, connection: socket.socket, answer: bytes) -> None:
        try:
            connection.send(answer)  # an answer is far smaller than a socket's buffer
        except OSError:
            pass  # the client was killed, which is what some sections do

    def _answer_what_is_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, connection, answer = self._due.popleft()
            self._send(connection, answer)


def _content_length(head: bytes) -> int:
    at = head.find(b"ontent-Length: ")
    if at < 0:
        lowered = head.lower()
        at = lowered.find(b"ontent-length: ")
        if at < 0:
            return 0
    end = head.find(b"\r", at)
    return int(head[at + 15 : end if end > 0 else len(head)])


def _idempotency_key(head: bytes) -> bytes:
    at = head.find(b"dempotency-Key: ")
    if at < 0:
        return b""
    end = head.find(b"\r", at)
    return head[at + 16 : end if end > 0 else len(head)]


def _answer(body: str, status: str = "200 OK") -> bytes:
    data = body.encode()
    return (_HEAD % (status, len(data))).encode() + data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between a POST and its answer")
    Sink(parser.parse_args().delay).serve()
