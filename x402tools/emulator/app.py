"""The web application: routes, the key that opens them, and the faults that stand before them."""

from __future__ import annotations

import sqlite3
from typing import Any, Awaitable, Callable, Collection, Dict, List, MutableMapping, Optional, Tuple
from urllib.parse import parse_qsl

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router

from x402tools.emulator import documents, guard, page
from x402tools.emulator.api import Api, Call, Reply
from x402tools.emulator.control import Control
from x402tools.emulator.faults import BadFault, Fault, FaultScript
from x402tools.emulator.refusal import Refusal
from x402tools.emulator.sabotage import commit
from x402tools.emulator.state import Books
from x402tools.emulator.traffic import Traffic

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Call], Reply]

PAGE_PATH = "/"
CONTROL_PREFIX = "/__emulator__/"
CONTROL_BODY_BYTES = 16 * 1024 * 1024
# A client that is still sending when it is refused gets a broken pipe instead of the answer; so what is too large is
# read to its end, but not without end.
DRAINED_BYTES = 16 * 1024 * 1024
BEARER = "bearer "


class Emulator:
    """The emulator as an ASGI application, for any ASGI server.

    The faults that harm the connection itself need :class:`x402tools.emulator.serving.Protocol` under it.
    """

    def __init__(self, books: Books, script: FaultScript, *, allowed_hosts: Collection[str] = ()) -> None:
        """Serve the books.

        Args:
            books: what is known and booked.
            script: the faults in force.
            allowed_hosts: names by which the page and the control surface may be asked; see :mod:`.guard`.
        """
        self._books = books
        self._script = script
        self._allowed_hosts = frozenset(allowed_hosts)
        self._traffic = Traffic()
        self._control = Control(books, script, self._traffic)
        error = books.choices.error_field
        # Starlette's Route takes an object with __call__ for an ASGI application of its own and leaves the methods to
        # it; a route for each method would make it list only the first one's in `Allow`.
        guarded = [Route(path, Resource(error, books, **methods)) for path, methods in _api(Api(books))]
        unguarded = [Route(path, Resource(error, None, **methods)) for path, methods in _control(self._control)]
        not_found = Resource(error, None)
        self._router = Router(guarded + unguarded, redirect_slashes=False, default=not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Whatever is not HTTP (lifespan, WebSocket) is not served."""
        if scope["type"] != "http":
            raise RuntimeError(f"the emulator serves HTTP only, not {scope['type']}")
        if scope["path"] == PAGE_PATH or scope["path"].startswith(CONTROL_PREFIX):
            await self._unguarded(scope, receive, send)
            return
        self._control.requests += 1
        answer = _Answer(send)
        try:
            await self._answer(scope, receive, answer.send)
        finally:
            self._traffic.count(scope["method"], scope["path"], answer.status)

    async def _unguarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What needs no key, and meets no faults: the page and the control surface."""
        objection = guard.objection(dict(scope["headers"]), self._allowed_hosts)
        if objection is not None:
            refusal = _refuse(Refusal(403, objection), self._books.choices.error_field)
            await refusal(scope, receive, send)
        elif scope["path"] == PAGE_PATH and scope["method"] in ("GET", "HEAD"):
            await page.response()(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fault = self._fault(scope)
        except BadFault as error:
            await _refuse(Refusal(400, f"X-Emulator-Fault: {error}"), self._books.choices.error_field)(
                scope, receive, send
            )
            return
        if fault is None:
            await self._router(scope, receive, send)
        else:
            await commit(fault, self._router, scope, receive, send)

    def _fault(self, scope: Scope) -> Any:
        for name, value in scope["headers"]:
            if name == b"x-emulator-fault":
                return Fault.from_text(value.decode("latin-1"))
        return self._script.draw(scope["method"], scope["path"])


class _Answer:
    """Passes an answer on and remembers its status; None as long as there is none."""

    def __init__(self, send: Send) -> None:
        self.status: Optional[int] = None
        self._send = send

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class Resource:
    """A path and its methods, as an ASGI application; with no methods at all it is the place that is not there."""

    def __init__(self, error_field: str, books: Any, **handlers: Handler) -> None:
        self._error_field = error_field
        self._books = books
        self._handlers = handlers
        # HEAD is GET without the body, which the server leaves out by itself.
        if "GET" in handlers:
            handlers["HEAD"] = handlers["GET"]
        self._allow = ", ".join(sorted(handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what the handler replies, or with its refusal."""
        try:
            handler = self._handler(scope)
            headers = dict(scope["headers"])
            self._admit(headers)
            most = CONTROL_BODY_BYTES if self._books is None else self._books.choices.max_body_bytes
            body = await _read(receive, most) if scope["method"] != "GET" else b""
            response = _respond(handler(_call(scope, headers, body)))
        except Refusal as refusal:
            response = _refuse(refusal, self._error_field)
        except sqlite3.Error as error:  # a full disk, a file that was taken away: an answer, and nothing booked
            response = _refuse(Refusal(500, f"the emulator's books failed: {error}"), self._error_field)
        await response(scope, receive, send)

    def _handler(self, scope: Scope) -> Handler:
        if not self._handlers:
            raise Refusal(404, f"there is nothing at {scope['path']}")
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise Refusal(405, f"{scope['method']} is not allowed here", {"Allow": self._allow})
        return handler

    def _admit(self, headers: Dict[bytes, bytes]) -> None:
        if self._books is None:
            return
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        is_bearer = authorization[: len(BEARER)].lower() == BEARER
        if not is_bearer:
            raise Refusal(401, "an API key is required", {"WWW-Authenticate": "Bearer"})
        if not self._books.opens(authorization[len(BEARER) :].strip()):
            raise Refusal(401, "invalid API key", {"WWW-Authenticate": "Bearer"})


def _api(api: Api) -> List[Tuple[str, Dict[str, Handler]]]:
    return [
        ("/usage", {"GET": api.get_usage, "POST": api.record_usage}),  # first, because it is asked for most
        ("/usage/stats", {"GET": api.get_usage_stats}),
        ("/envelopes", {"GET": api.get_envelopes, "POST": api.create_envelope}),
        (
            "/envelopes/{id}",
            {"GET": api.get_envelope, "PUT": api.update_envelope, "DELETE": api.delete_envelope},
        ),
        ("/api-keys", {"GET": api.get_api_keys, "POST": api.create_api_key}),
        ("/api-keys/{id}", {"DELETE": api.delete_api_key}),
    ]


def _control(control: Control) -> List[Tuple[str, Dict[str, Handler]]]:
    faults: Dict[str, Handler] = {"GET": control.get_faults, "POST": control.set_faults, "DELETE": control.clear_faults}
    routes: Dict[str, Dict[str, Handler]] = {
        "health": {"GET": control.health},
        "overview": {"GET": control.overview},
        "ledger": {"GET": control.ledger},
        "events": {"GET": control.events},
        "faults": faults,
        "reset": {"POST": control.reset},
        "clock": {"GET": control.get_clock, "POST": control.set_clock},
    }
    return [(CONTROL_PREFIX + name, methods) for name, methods in routes.items()]


def _call(scope: Scope, headers: Dict[bytes, bytes], body: bytes) -> Call:
    key = headers.get(b"idempotency-key")
    query = scope["query_string"]
    return Call(
        method=scope["method"],
        path=scope["path"],
        path_params=scope["path_params"],
        query=dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {},
        idempotency_key=None if key is None else key.decode("latin-1"),
        body=body,
    )


async def _read(receive: Receive, most: int) -> bytes:
    """The body, or a Refusal once all of it, or a bearable part, has been read and it is too large."""
    pieces: List[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the client left before its request was whole")
        piece = message.get("body", b"")
        size += len(piece)
        if size <= most:
            pieces.append(piece)
        is_last = not message.get("more_body", False)
        if is_last or size > most + DRAINED_BYTES:
            break
    if size > most:
        raise Refusal(413, f"the body must not exceed {most} bytes")
    return b"".join(pieces)


def _respond(reply: Reply) -> Response:
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, media_type="application/json" if reply.body else None)
    return StreamingResponse(_pieces(reply.body), reply.status, media_type="application/json")


async def _pieces(body: Any) -> Any:
    # An asynchronous generator, because Starlette would run a plain one in a thread, and the books have only one.
    for piece in body:
        yield piece


def _refuse(refusal: Refusal, error_field: str) -> Response:
    body = documents.to_bytes({error_field: refusal.message})
    return Response(body, refusal.status, refusal.headers, media_type="application/json")
