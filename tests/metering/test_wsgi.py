"""The WSGI middleware by itself: what the server sees of the application is unchanged, and what it counts."""

from __future__ import annotations

import io
from typing import Any, Dict, Iterator, List, Optional
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest

from tests.metering.conftest import Bill
from x402tools import ValidationError, X402Client
from x402tools.integrations import Metering, Request, Response
from x402tools.integrations.wsgi import MeteringMiddleware

Seen = List[Any]


class Served:
    """One request as a server makes it: the head and the body that came out, taken up to `pieces` pieces."""

    def __init__(self, app: Any, environ: Optional[Dict[str, Any]] = None, pieces: int = 1000) -> None:
        self.environ: Dict[str, Any] = dict(environ or {})
        setup_testing_defaults(self.environ)
        self.status = ""
        self.written: List[bytes] = []
        self.body: List[bytes] = []
        self.answer = app(self.environ, self._start)
        try:
            for piece in self.answer:
                self.body.append(piece)
                if len(self.body) == pieces:
                    break
        finally:
            if hasattr(self.answer, "close"):
                self.answer.close()

    def _start(self, status: str, *_: Any) -> Any:
        self.status = status
        return self.written.append


@pytest.fixture
def seen() -> Seen:
    """The responses that were counted."""
    return []


@pytest.fixture
def metering(client: X402Client, envelope_id: str, seen: Seen) -> Metering:
    """Counts one unit a request, and keeps what it saw."""

    def metadata(request: Request, response: Response) -> Dict[str, Any]:
        seen.append(response)
        return {"path": request.path, "agent": request.headers.get("user-agent"), "type": response.headers["x-type"]}

    return Metering(client, envelope_id, metadata=metadata)


def says(*pieces: bytes, status: str = "200 OK") -> Any:
    """An application that answers so."""

    def app(environ: Any, start: Any) -> List[bytes]:
        start(status, [("X-Type", "t")])
        return list(pieces)

    return app


def test_request_and_response_are_described(metering: Metering, bill: Bill, seen: Seen) -> None:
    """Path with its prefix and beyond ASCII, headers, status, size, time."""
    environ = {"SCRIPT_NAME": "/app", "PATH_INFO": "/gr\xc3\xbcn", "HTTP_USER_AGENT": "tests"}

    served = Served(MeteringMiddleware(says(b"ab", b"cde", status="201 Created"), metering), environ)

    assert (served.status, served.body) == ("201 Created", [b"ab", b"cde"])
    assert [event.metadata for event in bill()] == [{"path": "/app/grün", "agent": "tests", "type": "t"}]
    (response,) = seen
    assert (response.status, response.body_bytes, response.complete, response.error) == (201, 5, True, None)
    assert 0 < response.seconds < 20


def test_nothing_is_counted_before_the_body_is_closed(metering: Metering, bill: Bill) -> None:
    """And closing twice counts once; the application's own close is called."""
    closed: List[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            closed.append("closed")

    def app(environ: Any, start: Any) -> Body:
        start("200 OK", [("X-Type", "t")])
        return Body()

    answer = MeteringMiddleware(app, metering)({"PATH_INFO": "/"}, lambda *_: None)
    assert list(answer) == [b"x"]
    assert bill() == []
    answer.close()
    answer.close()

    assert closed == ["closed", "closed"]
    assert len(bill()) == 1


def test_client_that_leaves_is_counted(metering: Metering, bill: Bill, seen: Seen) -> None:
    """The server stops reading and closes: the work was done."""
    Served(MeteringMiddleware(says(*[b"x"] * 50), metering), pieces=2)

    assert len(bill()) == 1
    assert (seen[0].complete, seen[0].body_bytes) == (False, 2)


@pytest.mark.parametrize(
    ("status", "recorded"), [("200 OK", 1), ("304 N", 1), ("404 N", 1), ("500 E", 0), ("503 E", 0)]
)
def test_answers_below_500_count(metering: Metering, bill: Bill, status: str, recorded: int) -> None:
    """What the service could not do is not billed."""
    Served(MeteringMiddleware(says(b"x", status=status), metering))

    assert len(bill()) == recorded


def test_application_that_raises_is_not_counted(metering: Metering, bill: Bill) -> None:
    """Before the answer or in the middle of it; the server gets the exception."""

    def midway(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [("X-Type", "t")])
        yield b"x"
        raise KeyError("midway")

    def before(environ: Any, start: Any) -> Any:
        raise KeyError("before")

    for app in (midway, before):
        with pytest.raises(KeyError, match=app.__name__):
            Served(MeteringMiddleware(app, metering))

    assert bill() == []
    assert metering.failures == 0


def test_count_is_the_user_s_own(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """Failed requests too, or only some paths: the function says."""

    def count(request: Request, response: Response) -> bool:
        return request.path == "/counted" and response.status == 500 and isinstance(response.error, KeyError)

    def app(environ: Any, start: Any) -> Any:
        raise KeyError

    middleware = MeteringMiddleware(app, Metering(client, envelope_id, count=count))
    for path in ("/counted", "/other"):
        with pytest.raises(KeyError):
            Served(middleware, {"PATH_INFO": path})

    assert len(bill()) == 1


def test_write_and_file_wrapper_and_length_are_kept(metering: Metering, bill: Bill, seen: Seen) -> None:
    """The old way of writing, a file that the server sends by itself, and a body of known length."""

    def writes(environ: Any, start: Any) -> List[bytes]:
        start("200 OK", [("X-Type", "t")])(b"written")
        return []

    def file(environ: Any, start: Any) -> Any:
        start("200 OK", [("X-Type", "t")])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

    written = Served(MeteringMiddleware(writes, metering))
    sent = Served(MeteringMiddleware(file, metering), {"wsgi.file_wrapper": FileWrapper})
    short = Served(MeteringMiddleware(says(b"x"), metering))

    assert (written.written, sent.body) == ([b"written"], [b"content"])
    assert isinstance(sent.answer, FileWrapper)
    assert len(short.answer) == 1
    assert [response.body_bytes for response in seen] == [7, None, 1]
    assert len(bill()) == 3


def test_failing_function_does_not_reach_the_server(client: X402Client, envelope_id: str, bill: Bill) -> None:
    """The answer is the application's, and the loss is counted."""

    def broken(request: Request, response: Response) -> Any:
        raise RuntimeError("no such customer")

    for argument in ("count", "amount", "metadata", "idempotency_key"):
        metering = Metering(client, envelope_id, **{argument: broken})  # type: ignore[arg-type]  # each in its turn
        assert Served(MeteringMiddleware(says(b"x"), metering)).body == [b"x"]
        assert metering.failures == 1

    assert bill() == []


def test_client_without_a_buffer_has_to_be_allowed(plain_client: X402Client, envelope_id: str, emulator: Any) -> None:
    """Every request would wait for the billing service: only on request."""
    with pytest.raises(ValidationError, match="UsageBuffer"):
        Metering(plain_client, envelope_id)

    Served(MeteringMiddleware(says(b"x"), Metering(plain_client, envelope_id, allow_unbuffered=True)))

    assert emulator.ledger().events == 1
