"""Which status becomes which exception, and what the exception carries: the table of the wire contract, row by row."""

from __future__ import annotations

import email.utils
import time
from typing import Any, Callable, Dict, NamedTuple, Optional, Type

import pytest

import x402tools
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import answer, refuses, says
from x402tools import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    EnvelopeNotFoundError,
    NotFoundError,
    RateLimitError,
    UsageLimitExceededError,
    ValidationError,
    X402Client,
)

HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "get_envelopes": lambda client: client.get_envelopes(),
    "get_envelope": lambda client: client.get_envelope("env_1"),
    "create_envelope": lambda client: client.create_envelope("N", 1, "DAILY"),
    "update_envelope": lambda client: client.update_envelope("env_1", limit=1),
    "delete_envelope": lambda client: client.delete_envelope("env_1"),
    "record_usage": lambda client: client.record_usage("env_1", 1),
    "get_usage": lambda client: client.get_usage(),
    "get_usage of one": lambda client: client.get_usage("env_1"),
    "get_usage_stats": lambda client: client.get_usage_stats(),
    "get_api_keys": lambda client: client.get_api_keys(),
    "create_api_key": lambda client: client.create_api_key("N"),
    "delete_api_key": lambda client: client.delete_api_key("key_1"),
}

ABOUT_AN_ENVELOPE = ("get_envelope", "update_envelope", "delete_envelope", "record_usage", "get_usage of one")


class Row(NamedTuple):
    """A status with what the service says, and the class that it must become."""

    status: int
    message: str
    becomes: Type[APIError]


ROWS = [
    Row(400, "amount must be a whole number", ValidationError),
    Row(422, "amount must be a whole number", ValidationError),
    Row(401, "Invalid API key", AuthenticationError),
    Row(403, "Forbidden", AuthenticationError),
    Row(402, "Payment required", UsageLimitExceededError),
    Row(400, "Usage limit exceeded", UsageLimitExceededError),
    Row(403, "Envelope limit exceeded", UsageLimitExceededError),
    Row(409, "This would exceed the limit of the envelope", UsageLimitExceededError),
    Row(422, "limit would be exceeded", UsageLimitExceededError),
    Row(400, "LIMIT EXCEEDED", UsageLimitExceededError),
    Row(401, "limit exceeded", AuthenticationError),
    Row(403, "Rate limit exceeded", AuthenticationError),
    Row(400, "limit must not be negative", ValidationError),
    Row(429, "Rate limit exceeded", RateLimitError),
    Row(429, "Usage limit exceeded", RateLimitError),
    Row(429, "Too many requests", RateLimitError),
    Row(405, "Method not allowed", APIError),
    Row(409, "Conflict", APIError),
    Row(410, "Gone", APIError),
    Row(413, "Too large", APIError),
    Row(415, "Unsupported", APIError),
    Row(418, "Teapot", APIError),
    Row(451, "Unavailable", APIError),
    Row(408, "Request timeout", APIError),
    Row(500, "Oops", APIError),
    Row(500, "limit exceeded", APIError),
    Row(501, "Not implemented", APIError),
    Row(502, "Bad gateway", APIError),
    Row(503, "Unavailable", APIError),
    Row(504, "Gateway timeout", APIError),
    Row(599, "Unknown", APIError),
]


def failing(call: Callable[[X402Client], Any], client: X402Client) -> APIError:
    """The APIError that the call ends with."""
    with pytest.raises(APIError) as caught:
        call(client)
    return caught.value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.status} {row.message}")
def test_status_becomes_its_exception(row: Row, serve: Serve, connect: Connect) -> None:
    """Exactly the class of the table, with the status, the service's words and its JSON."""
    server = serve(refuses(row.status, row.message))

    error = failing(CALLS["record_usage"], connect(server, max_retries=0))

    assert type(error) is row.becomes
    assert error.status_code == row.status
    assert str(error) == row.message
    assert error.response == {"error": row.message}


@pytest.mark.parametrize("name", CALLS)
def test_404_says_what_was_not_found(name: str, serve: Serve, connect: Connect) -> None:
    """EnvelopeNotFoundError where the call names an envelope, NotFoundError anywhere else."""
    server = serve(refuses(404, "not found"))

    error = failing(CALLS[name], connect(server))

    assert type(error) is (EnvelopeNotFoundError if name in ABOUT_AN_ENVELOPE else NotFoundError)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_raises_the_service_s_error(name: str, serve: Serve, connect: Connect) -> None:
    """Lists, deletions and the rest: none of the eleven lets an error pass for an answer."""
    server = serve(refuses(401, "Invalid API key"))

    error = failing(CALLS[name], connect(server))

    assert type(error) is AuthenticationError
    assert str(error) == "Invalid API key"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (HTML, {"Content-Type": "text/html"}),
        (HTML, {"Content-Type": "application/json"}),
        (b"", {}),
        (b"\xff\xfe\x00", {}),
        (b'{"error": ', {}),
        (b"[" * 100_000, {}),
        (b'["error"]', {}),
        (b'"error"', {}),
        (b"null", {}),
    ],
    ids=["HTML", "HTML said to be JSON", "empty", "not UTF-8", "truncated", "deep", "list", "text", "null"],
)
@pytest.mark.parametrize("status", [401, 404, 429, 502])
def test_error_without_the_promised_json_keeps_its_status(
    status: int, body: bytes, headers: Dict[str, str], serve: Serve, connect: Connect
) -> None:
    """The status decides the class, whatever a proxy put into the body; the page is not in the message."""
    server = serve(answer(status, body, headers))

    error = failing(CALLS["get_usage_stats"], connect(server, max_retries=0))

    expected = {401: AuthenticationError, 404: NotFoundError, 429: RateLimitError, 502: APIError}[status]
    assert type(error) is expected
    assert error.status_code == status
    assert error.response == {}
    assert str(status) in str(error)
    assert "<html>" not in str(error)
    assert (error.body or "") == body.decode("utf-8", "replace")[:1000]


def test_error_page_is_kept_in_part_only(serve: Serve, connect: Connect) -> None:
    """1,000 characters are for people to read; more would flood a log."""
    server = serve(answer(502, b"<html>" + b"x" * 100_000))

    error = failing(CALLS["get_envelope"], connect(server, max_retries=0))

    assert error.body is not None
    assert len(error.body) == 1000


def test_long_message_is_kept_in_part_only(serve: Serve, connect: Connect) -> None:
    """What the service says is cut off after 1,000 characters."""
    server = serve(refuses(400, "x" * 100_000))

    assert len(str(failing(CALLS["get_envelope"], connect(server)))) == 1000


@pytest.mark.parametrize("status", [404, 429, 502])
def test_error_with_an_endless_page_keeps_its_status(status: int, serve: Serve, connect: Connect) -> None:
    """A page beyond the limit of an answer is not read to its end, and the status still decides the class."""
    server = serve(answer(status, b"<html>" + b"x" * 3_000_000, {"X-Request-Id": "r1", "Retry-After": "7"}))

    error = failing(CALLS["delete_api_key"], connect(server, max_retries=0))

    assert type(error) is {404: NotFoundError, 429: RateLimitError, 502: APIError}[status]
    assert (error.status_code, error.request_id, error.retry_after) == (status, "r1", 7.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"error": {"code": "bad", "text": "no"}}, "{'code': 'bad', 'text': 'no'}"),
        ({"error": 5}, "5"),
        ({"error": ""}, "the service answered 409 without saying why"),
        ({"error": None}, "the service answered 409 without saying why"),
        ({"message": "other"}, "the service answered 409 without saying why"),
        ({}, "the service answered 409 without saying why"),
    ],
    ids=str,
)
def test_odd_error_objects_are_kept(document: Any, message: str, serve: Serve, connect: Connect) -> None:
    """Whatever `error` is, the exception has words, and the whole object."""
    server = serve(says(document, 409))

    error = failing(CALLS["get_envelope"], connect(server))

    assert str(error) == message
    assert error.response == document


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "req_1"}, "req_1"),
        ({"x-request-id": "req_1"}, "req_1"),
        ({"X-Railway-Request-Id": "rw_1"}, "rw_1"),
        ({"X-Request-Id": "req_1", "X-Railway-Request-Id": "rw_1"}, "req_1"),
        ({"X-Request-Id": "r" * 1000}, "r" * 200),
        ({}, None),
    ],
    ids=str,
)
def test_request_id_is_kept(headers: Dict[str, str], expected: Optional[str], serve: Serve, connect: Connect) -> None:
    """What support asks for is on the exception, whatever the case of the header."""
    server = serve(refuses(400, headers=headers))

    assert failing(CALLS["get_envelope"], connect(server)).request_id == expected


def test_request_id_is_kept_for_an_answer_that_makes_no_sense(serve: Serve, connect: Connect) -> None:
    """Also a success that is none has its id."""
    server = serve(answer(200, HTML, {"X-Request-Id": "req_1"}))

    assert failing(CALLS["get_envelope"], connect(server)).request_id == "req_1"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("120", 120.0),
        ("1.5", 1.5),
        (" 5 ", 5.0),
        ("-5", 0.0),
        ("1e9", 1e9),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("Wed, 99 Foo 2026 00:00:00 GMT", None),
        ("Wed, 21 Oct 999999999999 07:28:00 GMT", None),
    ],
)
def test_retry_after_in_seconds(value: str, seconds: Optional[float], serve: Serve, connect: Connect) -> None:
    """Seconds are kept, never below 0; junk is no reason to fail in another way."""
    server = serve(refuses(429, "slow down", {"Retry-After": value}))

    error = failing(CALLS["get_envelope"], connect(server, max_retries=0))

    assert isinstance(error, RateLimitError)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    "date",
    ["Wed, 21 Oct 2015 07:28:30 GMT", "Wednesday, 21-Oct-15 07:28:30 GMT", "Wed Oct 21 07:28:30 2015"],
    ids=["today's", "RFC 850", "asctime"],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_retry_after_as_a_date_is_seen_by_the_service_s_clock(
    date: str, zone: str, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose clock is years off still says "in 30 seconds", in all three forms HTTP knows, in any zone."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": date}
    server = serve(refuses(429, headers=headers))
    try:
        error = failing(CALLS["get_envelope"], connect(server, max_retries=0))
    finally:
        monkeypatch.undo()
        time.tzset()

    assert error.retry_after == 30.0


@pytest.mark.parametrize("date_header", [{}, {"Date": "junk"}], ids=str)
def test_retry_after_as_a_date_without_the_service_s_clock(
    date_header: Dict[str, str], serve: Serve, connect: Connect
) -> None:
    """Then this machine's clock is the best there is."""
    moment = email.utils.formatdate(time.time() + 100, usegmt=True)
    server = serve(refuses(503, headers={**date_header, "Retry-After": moment}))

    error = failing(CALLS["get_envelope"], connect(server, max_retries=0))

    assert error.retry_after == pytest.approx(100, abs=10)


def test_retry_after_in_the_past_is_now(serve: Serve, connect: Connect) -> None:
    """Never negative."""
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:00:00 GMT"}
    server = serve(refuses(503, headers=headers))

    assert failing(CALLS["get_envelope"], connect(server, max_retries=0)).retry_after == 0.0


@pytest.mark.parametrize(
    "kind",
    [
        AuthenticationError, ValidationError, UsageLimitExceededError, NotFoundError, EnvelopeNotFoundError,
        RateLimitError, APIConnectionError, APITimeoutError,
    ],
)  # fmt: skip
def test_every_error_of_a_call_is_an_api_error(kind: Type[APIError]) -> None:
    """One `except APIError` catches whatever a call can end with, and the attributes are there on each."""
    error = kind("message")

    assert isinstance(error, APIError)
    assert isinstance(error, x402tools.X402Error)
    assert str(error) == "message"
    assert (error.status_code, error.response, error.request_id, error.retry_after) == (None, {}, None, None)


def test_api_error_takes_the_positions_of_the_first_release() -> None:
    """Code that raises APIError itself, in a fake of the client for example, goes on working."""
    error = APIError("message", 409, {"error": "message"})

    assert (str(error), error.status_code, error.response) == ("message", 409, {"error": "message"})


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(None, False), (200, False), (302, False), (400, False), (401, False), (402, False), (404, False), (408, True),
     (409, False), (422, False), (429, True), (500, True), (502, True), (503, True), (504, True)],
)  # fmt: skip
def test_retryable_is_what_may_heal_by_itself(status: Optional[int], retryable: bool) -> None:
    """A request that is wrong stays wrong; a service that is down comes back."""
    assert APIError("message", status).retryable is retryable
