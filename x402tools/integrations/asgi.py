"""Meters an ASGI application: FastAPI, Starlette, Litestar, Quart, plain ones; under any server.

>>> app.add_middleware(MeteringMiddleware, metering=Metering(client, "env_1"))                       # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Dict, MutableMapping

from x402tools._metering import is_plain
from x402tools.errors import ValidationError
from x402tools.integrations._exchange import CLIENT_LEFT, Request, Response, was_answered
from x402tools.integrations._meter import Metering

__all__ = ["Metering", "MeteringMiddleware", "Request", "Response"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SWITCHING_PROTOCOLS = 101
REFUSED_HANDSHAKE = 403  # what a server answers when the application closes a websocket that it has not accepted


class MeteringMiddleware:
    """Counts each request when its answer has been handed to the server, before what an application does after that;
    a websocket when it has ended.

    Args:
        app: the application.
        metering: how requests are counted.

    Raises:
        ValidationError: the client has no buffer; each record would block the event loop.
    """

    def __init__(self, app: Application, metering: Metering) -> None:
        if is_plain(metering.client):
            raise ValidationError(
                "on an event loop metering needs a client with a buffer, X402Client(..., buffer=UsageBuffer(...)): "
                "without one each record would block the loop until the billing service answers"
            )
        self.app = app
        self.metering = metering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # lifespan
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.metering, scope, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # how some servers tell that the client has left
            exchange.client_left = True
            raise
        except BaseException as error:
            if not exchange.client_left:  # or it is the news of that which the application let pass
                exchange.response.error = error
            raise
        finally:
            exchange.end()


class _Exchange:
    """One request and its answer, between the server and the application."""

    def __init__(self, metering: Metering, scope: Scope, receive: Receive, send: Send) -> None:
        self.response = Response()
        self.client_left = False
        is_websocket = scope["type"] == "websocket"
        self._request = Request(scope.get("method", "GET"), scope["path"], scope, _headers, is_websocket)
        self._metering = metering
        self._receive = receive
        self._send = send
        self._has_ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._has_ended:
            self.client_left = True
        elif message["type"] == "websocket.disconnect":
            self.response.complete = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._begin(message["status"], message)
        elif kind == "websocket.accept":
            self._begin(SWITCHING_PROTOCOLS, message)
        elif kind == "websocket.close" and not self.response.answered:
            self._begin(REFUSED_HANDSHAKE, message)
        try:
            await self._send(message)
        except OSError:  # by the specification: the client has left
            self.client_left = True
            raise
        if kind in ("http.response.body", "websocket.http.response.body"):
            self.response.send(message.get("body", b""))
            self._complete_unless(message.get("more_body", False))
        elif kind in ("http.response.pathsend", "http.response.zerocopysend"):
            self.response.body_bytes = None
            self._complete_unless(message.get("more_body", False))
        elif kind == "websocket.send":
            self.response.send(message.get("bytes") or (message.get("text") or "").encode("utf-8", "replace"))
        elif kind == "websocket.close":
            self._complete_unless(False)

    def end(self) -> None:
        """Counts the request, once."""
        if self._has_ended:
            return
        self._has_ended = True
        if self.client_left and not self.response.answered:
            self.response.status = CLIENT_LEFT
        self.response.end()
        metering = self._metering
        counts = was_answered(self._request, self.response)
        metering.store_on_loop(metering.work_out(self._request, self.response, counts))

    def _begin(self, status: int, message: Message) -> None:
        self.response.begin(status, message.get("headers") or ())

    def _complete_unless(self, more: bool) -> None:
        if not more:
            self.response.complete = True
            self.end()


def _headers(scope: Scope) -> Dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers") or ()}
