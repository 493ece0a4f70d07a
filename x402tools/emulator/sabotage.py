"""Carries out a fault on the connection of one request."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Awaitable, Callable, Dict, List, MutableMapping, Tuple

from starlette.responses import HTMLResponse, Response

from x402tools.emulator import documents
from x402tools.emulator.faults import DATE_PREFIX, Fault

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Linger on, for no time at all: closing then sends a reset (RST) in place of an orderly end (FIN).
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MOST_DRIPS = 1000  # A large body drips in larger drops; the event loop has a resolution.
PAGE = "<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"


async def commit(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the request as the fault has it; ``app`` is what would answer it otherwise, and what books."""
    await _ACTS[fault.kind](fault, app, scope, receive, send)


async def _status(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _read(receive)
    headers = {} if fault.retry_after is None else {"Retry-After": retry_after(fault.retry_after, time.time())}
    body = documents.to_bytes({"error": f"{_phrase(fault.status)} (a fault of the emulator)"})
    await Response(body, fault.status, headers, media_type="application/json")(scope, receive, send)


async def _latency(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    # Read first: once a client has left, its server forgets what of the request nobody has read.
    messages = await _read(receive)
    await asyncio.sleep(fault.seconds)

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    await app(scope, replay, send)


async def _reset_before(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _read(receive)
    await _reset(scope, receive)


async def _reset_after(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(app, scope, receive)
    await _reset(scope, receive)


async def _truncated(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    start, body = await _answer(app, scope, receive)
    await send(_with_length(start, len(body)))
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
    scope["state"]["transport"].close()  # after what is written has left
    await _left(receive)


async def _html(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _read(receive)
    await HTMLResponse(PAGE.format(title="502 Bad Gateway"), 502)(scope, receive, send)


async def _html_ok(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(app, scope, receive)
    await HTMLResponse(PAGE.format(title="Welcome"), 200)(scope, receive, send)


async def _drip(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    start, body = await _answer(app, scope, receive)
    await send(_with_length(start, len(body)))
    size = -(-len(body) // MOST_DRIPS) or 1
    drops = [body[at : at + size] for at in range(0, len(body), size)]
    for drop in drops:
        await asyncio.sleep(fault.seconds / len(drops))
        await send({"type": "http.response.body", "body": drop, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hang(fault: Fault, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    await _read(receive)
    try:
        await asyncio.wait_for(_left(receive), fault.seconds)
    except asyncio.TimeoutError:
        scope["state"]["transport"].close()
        await _left(receive)


_ACTS: Dict[str, Callable[[Fault, App, Scope, Receive, Send], Awaitable[None]]] = {
    "status": _status,
    "latency": _latency,
    "reset_before": _reset_before,
    "reset_after": _reset_after,
    "truncated": _truncated,
    "html": _html,
    "html_ok": _html_ok,
    "drip": _drip,
    "hang": _hang,
}


def retry_after(value: Any, now: float) -> str:
    """The value of a ``Retry-After`` header: seconds, or for ``"date:N"`` the HTTP date N seconds after ``now``."""
    if isinstance(value, str) and value.startswith(DATE_PREFIX):
        return formatdate(now + float(value[len(DATE_PREFIX) :]), usegmt=True)
    return str(value)


async def _read(receive: Receive) -> List[Message]:
    """Take in the whole request, so that a client meets the fault when it waits for the answer and not before."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


async def _answer(app: App, scope: Scope, receive: Receive) -> Tuple[Message, bytes]:
    """Let the application answer, and keep the answer: its first message, and its body."""
    messages: List[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


def _with_length(start: Message, length: int) -> Message:
    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
    if length:
        headers.append((b"content-length", str(length).encode("ascii")))
    return {**start, "headers": headers}


async def _reset(scope: Scope, receive: Receive) -> None:
    transport = scope["state"]["transport"]
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    transport.abort()
    await _left(receive)


async def _left(receive: Receive) -> None:
    """Wait until the connection is gone. A server finds fault with an application that just ends without a word."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 499 and its like, which only proxies know
        return f"Status {status}"
