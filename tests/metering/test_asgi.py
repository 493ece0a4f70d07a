"""The ASGI middleware by itself: what it counts, and that it never blocks the event loop."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any, Dict, List, Optional

import pytest

from tests.metering.conftest import Bill
from x402tools import UsageBuffer, ValidationError, X402Client
from x402tools.integrations import Metering, Request, Response
from x402tools.integrations.asgi import MeteringMiddleware
from x402tools.testing import Emulator

Message = Dict[str, Any]

START = {"type": "http.response.start", "status": 200, "headers": [(b"X-Type", b"t")]}
DISCONNECT = {"type": "http.disconnect"}


def body(data: bytes = b"", more: bool = False) -> Message:
    """A piece of a body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


async def serve(app: Any, *incoming: Message, kind: str = "http", sending: Any = None) -> List[Message]:
    """One request as a server makes it, with these messages from the client; what the application sent."""
    waiting, sent = list(incoming), []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else await asyncio.Event().wait()  # type: ignore[return-value]  # for ever

    async def send(message: Message) -> None:
        sent.append(message)
        if sending is not None:
            sending(message)

    scope = {"type": kind, "method": "POST", "path": "/p", "headers": [(b"user-agent", b"tests")]}
    await app(scope, receive, send)
    return sent


@pytest.fixture
def metering(client: X402Client, envelope_id: str) -> Metering:
    """Counts one unit a request, and notes down what it saw."""

    def metadata(request: Request, response: Response) -> Dict[str, Any]:
        return {
            "method": request.method,
            "agent": request.headers["user-agent"],
            "status": response.status,
            "type": response.headers.get("x-type"),
            "bytes": response.body_bytes,
            "complete": response.complete,
        }

    return Metering(client, envelope_id, metadata=metadata)


def test_request_and_response_are_described(metering: Metering, bill: Bill) -> None:
    """Method, headers, status, size; the messages pass unchanged."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ab", more=True))
        await send(body(b"cde"))

    sent = asyncio.run(serve(MeteringMiddleware(app, metering)))

    assert sent == [START, body(b"ab", more=True), body(b"cde")]
    (event,) = bill()
    assert event.metadata == {
        "method": "POST", "agent": "tests", "status": 200, "type": "t", "bytes": 5, "complete": True,
    }  # fmt: skip


def test_request_counts_before_what_is_done_after_its_answer(metering: Metering, bill: Bill) -> None:
    """A background task may take long, or fail: the answer was given."""
    counted: List[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ab"))
        counted.append(len(await asyncio.get_running_loop().run_in_executor(None, bill)))
        raise KeyError("in the background")

    with pytest.raises(KeyError):
        asyncio.run(serve(MeteringMiddleware(app, metering)))

    assert counted == [1]
    assert len(bill()) == 1


@pytest.mark.parametrize("how", ["is told", "cannot send", "is cancelled"])
def test_client_that_leaves_midway_is_counted(metering: Metering, bill: Bill, how: str) -> None:
    """Servers tell it in three ways."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ab", more=True))
        if how == "is told":
            assert await receive() == DISCONNECT
            raise KeyError("what a framework makes of it")
        if how == "is cancelled":
            raise asyncio.CancelledError
        await send(body(b"never"))

    def sending(message: Message) -> None:
        if message.get("body") == b"never":
            raise OSError("the client has left")

    with pytest.raises((KeyError, OSError, asyncio.CancelledError)):
        asyncio.run(serve(MeteringMiddleware(app, metering), DISCONNECT, sending=sending))

    (event,) = bill()
    assert event.metadata is not None
    assert (event.metadata["status"], event.metadata["complete"]) == (200, False)


def test_what_had_no_answer_or_failed_is_not_counted(metering: Metering, bill: Bill) -> None:
    """Left before an answer, raised before it, raised in the middle, answered with 500."""

    async def left(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == DISCONNECT

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"ab", more=True))
        raise KeyError

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "status": 500})
        await send(body())

    async def all_of_them() -> None:
        await serve(MeteringMiddleware(left, metering), DISCONNECT)
        await serve(MeteringMiddleware(fails, metering))
        for app in (raises, breaks):
            with pytest.raises(KeyError):
                await serve(MeteringMiddleware(app, metering))

    asyncio.run(all_of_them())

    assert bill() == []


def test_websocket_counts_once_when_it_has_ended(metering: Metering, bill: Bill) -> None:
    """Whoever ends it; with the bytes that were sent to the client."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "grün"})
        await send({"type": "websocket.send", "bytes": b"123"})
        if (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.close"})

    async def both() -> None:
        for incoming in ("websocket.disconnect", "websocket.receive"):
            await serve(MeteringMiddleware(echo, metering), {"type": incoming}, kind="websocket")

    asyncio.run(both())

    seen = [event.metadata for event in bill() if event.metadata]
    assert [(one["status"], one["bytes"], one["complete"]) for one in seen] == [(101, 8, True)] * 2


def test_lifespan_is_none_of_its_business(metering: Metering, bill: Bill) -> None:
    """It passes through, and is not counted."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    assert asyncio.run(serve(MeteringMiddleware(app, metering), kind="lifespan")) == [
        {"type": "lifespan.startup.complete"}
    ]
    assert bill() == []


def test_buffer_that_waits_for_its_disk_does_so_in_a_thread(
    emulator: Emulator, envelope_id: str, tmp_path: pathlib.Path
) -> None:
    """With `fsync` the record is stored by a thread of the executor, and nothing is lost."""
    threads: List[Optional[str]] = []

    class Noting(UsageBuffer):
        def record(self, *args: Any, **kwargs: Any) -> Any:
            import threading

            threads.append(threading.current_thread().name)
            return super().record(*args, **kwargs)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body())

    with X402Client(
        emulator.api_key, emulator.base_url, buffer=Noting(tmp_path / "usage.db", durability="fsync")
    ) as client:
        asyncio.run(serve(MeteringMiddleware(app, Metering(client, envelope_id))))
        assert client.flush(20)

    assert len(threads) == emulator.ledger().events == 1
    assert threads != ["MainThread"]


def test_client_without_a_buffer_is_refused(plain_client: X402Client, envelope_id: str) -> None:
    """Each record would block the loop: also when it is allowed elsewhere."""
    metering = Metering(plain_client, envelope_id, allow_unbuffered=True)

    with pytest.raises(ValidationError, match="event loop"):
        MeteringMiddleware(lambda *_: None, metering)  # type: ignore[arg-type, return-value]  # never called
