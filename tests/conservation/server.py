"""The service: faster than the client, scripted to fail, and with a memory that survives its own death.

    python -m tests.conservation.server FOLDER PORT FAULTS

FAULTS is a `FaultPlan` as JSON. It prints one line once it listens, and ends when its standard input does. SIGUSR1
makes it calm: no more faults, and every envelope exists.

Independent of the package and of its emulator, so that the three cannot agree by accident. What it remembers (which
keys it booked, how often it saw each) is its log, read again when it starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import signal
import socket
import struct
import sys
import zlib
from typing import Any, Callable, Dict, Optional, Tuple

from tests.conservation import logs
from tests.conservation.plan import UNKNOWN_ENVELOPE, FaultPlan, faults_from_json

HOST = "127.0.0.1"

# Seconds that a slow answer takes at the most. The recorders give up after one.
_SLOWEST = 0.25

_RESET = struct.pack("ii", 1, 0)  # linger for no time: a close sends RST instead of FIN
_PAGE = b"<html><h1>Bad Gateway</h1></html>"


class Request:
    """One attempt at POST /usage."""

    __slots__ = ("amount", "answered", "attempt", "body", "conversation", "document", "key", "process")

    def __init__(self, conversation: Conversation, attempt: str, headers: Dict[str, str], body: bytes) -> None:
        self.conversation = conversation
        self.attempt = attempt
        self.key = headers.get("idempotency-key", "")
        self.process = headers.get("authorization", "")[len("Bearer sk_") :]
        self.body = body.decode("utf-8", "backslashreplace")
        self.document: Any = json.loads(body)
        self.amount: int = self.document["amount"]
        self.answered = False


class Service:
    """What is booked, and which fault meets which attempt."""

    def __init__(self, plan: FaultPlan, folder: pathlib.Path) -> None:
        self._plan = plan
        self._calm = False
        self._seen: Dict[str, int] = {}
        self._booked: Dict[str, str] = {}
        self._first_arrival: Optional[int] = None
        self._attempts = 0
        self._run = 0  # how often the service was started before
        posts: Dict[str, Tuple[str, str]] = {}
        for line in logs.read(folder / logs.SERVER):
            self._remember(line, posts)
        self._log = logs.Log(folder / logs.SERVER)
        self._log.write(what="started", run=self._run, at=logs.now())

    def _remember(self, line: logs.Line, posts: Dict[str, Tuple[str, str]]) -> None:
        if line["what"] == "started":
            self._run = line["run"] + 1
        elif line["what"] == "arrived":
            posts[line["attempt"]] = line["key"], line["body"]
            self._first_arrival = self._first_arrival or line["at"]
            self._seen[line["key"]] = self._seen.get(line["key"], 0) + 1
        elif line["what"] == "booked":
            key, body = posts[line["attempt"]]
            self._booked[key] = body

    def calm_down(self) -> None:
        self._calm = True

    def arrived(self, conversation: Conversation, headers: Dict[str, str], body: bytes) -> None:
        at = logs.now()
        self._attempts += 1
        request = Request(conversation, f"{self._run}.{self._attempts}", headers, body)
        conversation.last = request
        self._first_arrival = self._first_arrival or at
        seen = self._seen[request.key] = self._seen.get(request.key, 0) + 1
        self._log.write(
            what="arrived", attempt=request.attempt, key=request.key, process=request.process, body=request.body, at=at
        )
        self._meet(request, self._fault(request, seen, at))

    def refusing(self, request: Request, status: int) -> None:
        """Before the client can know it: a service that is killed just then cannot say so any more."""
        self._log.write(what="refusing", attempt=request.attempt, status=status, at=logs.now())

    def answered(self, request: Request, status: int, *, whole: bool) -> None:
        request.answered = True
        self._log.write(what="answered", attempt=request.attempt, status=status, whole=whole, at=logs.now())

    def gone(self, request: Request) -> None:
        """The client has closed the connection after this attempt, the last one on it."""
        self._log.write(what="gone", attempt=request.attempt, at=logs.now())

    def _fault(self, request: Request, seen: int, at: int) -> str:
        if self._calm:
            return ""
        age = (at - (self._first_arrival or at)) / 1e9
        for window in self._plan.windows:
            if window.start <= age < window.end:
                return window.fault
        if request.document["envelopeId"] == UNKNOWN_ENVELOPE:
            return "404"
        mark = logs.mark_of(request.key, request.document.get("metadata")) or request.key
        point = zlib.crc32(f"{self._plan.seed}/{mark}/{seen}".encode()) / 2**32
        for fault, share in self._plan.shares.items():
            if point < share:
                return fault
            point -= share
        return ""

    def _meet(self, request: Request, fault: str) -> None:
        conversation = request.conversation
        if fault in _REFUSALS:
            status, headers, body = _REFUSALS[fault]
            conversation.answer(request, status, body, headers)
        elif fault == "reset before":
            conversation.reset()
        elif fault == "hang before":
            pass
        else:
            self._book(request, _AFTER_BOOKING.get(fault, Conversation.accept))

    def _book(self, request: Request, then: Callable[[Conversation, Request], None]) -> None:
        known = self._booked.get(request.key)
        if known is not None and known != request.body:
            request.conversation.answer(request, 409, b'{"error":"another body under this key"}')
            return
        self._booked[request.key] = request.body
        booked_twice = known is not None and not self._plan.honours_keys
        units = request.amount if known is None or booked_twice else 0
        self._log.write(what="booked", attempt=request.attempt, units=units, at=logs.now())
        then(request.conversation, request)


class Conversation(asyncio.Protocol):
    """One connection: requests in, answers out."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = b""
        self._transport: Any = None
        self.last: Optional[Request] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            headers = _headers(head)
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._service.arrived(self, headers, rest[:length])

    def connection_lost(self, _: Optional[Exception]) -> None:
        if self.last is not None:
            self._service.gone(self.last)

    def answer(
        self, request: Request, status: int, body: bytes, headers: str = "", length: Optional[int] = None
    ) -> None:
        if self._transport.is_closing():
            return
        headers += f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
        if status >= 400:
            self._service.refusing(request, status)
        self._transport.write(f"HTTP/1.1 {status} X\r\n{headers}".encode("ascii") + body)
        self._service.answered(request, status, whole=length is None)

    def reset(self) -> None:
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # -- what may follow a booking -------------------------------------------------------------------------------

    def accept(self, request: Request) -> None:
        envelope = request.document["envelopeId"]
        usage = {"id": request.attempt, "envelopeId": envelope, "amount": request.amount, "timestamp": _TIME}
        self.answer(request, 201, json.dumps(usage).encode("ascii"))

    def accept_slowly(self, request: Request) -> None:
        delay = _SLOWEST * zlib.crc32(request.attempt.encode("ascii")) / 2**32
        asyncio.get_running_loop().call_later(delay, self.accept, request)

    def cut_short(self, request: Request) -> None:
        self.answer(request, 201, b'{"id":"', length=100)
        self._transport.close()

    def reset_after(self, _: Request) -> None:
        self.reset()

    def say_nothing(self, _: Request) -> None:
        pass


_TIME = "2025-11-05T12:34:56.789Z"

_REFUSALS: Dict[str, Tuple[int, str, bytes]] = {
    "401": (401, "", b'{"error":"invalid key"}'),
    "403": (403, "", b'{"error":"forbidden"}'),
    "404": (404, "", b'{"error":"envelope not found"}'),
    "429": (429, "", b'{"error":"slow down"}'),
    "429 at once": (429, "Retry-After: 0\r\n", b'{"error":"slow down"}'),
    "429 in a second": (429, "Retry-After: 1\r\n", b'{"error":"slow down"}'),
    "500": (500, "", b'{"error":"broken"}'),
    "502 page": (502, "", _PAGE),
    "503 in a second": (503, "Retry-After: 1\r\n", b""),
}

_AFTER_BOOKING = {
    "slow": Conversation.accept_slowly,
    "cut short": Conversation.cut_short,
    "reset after": Conversation.reset_after,
    "hang after": Conversation.say_nothing,
}


def _headers(head: bytes) -> Dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _serve(folder: pathlib.Path, port: int, plan: FaultPlan) -> None:
    service = Service(plan, folder)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, service.calm_down)
    loop.add_reader(sys.stdin.fileno(), lambda: os.read(sys.stdin.fileno(), 1) or ended.set())
    server = await loop.create_server(lambda: Conversation(service), HOST, port, backlog=256, reuse_address=True)
    print("listening", flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    folder, port, faults = sys.argv[1:]
    asyncio.run(_serve(pathlib.Path(folder), int(port), faults_from_json(faults)))


if __name__ == "__main__":
    main()
