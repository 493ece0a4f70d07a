"""No call waits for ever: whatever the server does or does not do, it ends near the time that was set."""

from __future__ import annotations

import socket
import time
from typing import Any, Callable, Dict

import pytest

from tests.client import documents
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import drip, hang, head, refuses, says
from x402tools import APIError, APITimeoutError, X402Client
from x402tools._timely import TimelyResponse

# Seconds that a busy machine may add to a limit.
SLACK = 2.0

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "get_envelope": lambda client: client.get_envelope("env_1"),
    "get_envelopes": lambda client: client.get_envelopes(),
    "record_usage": lambda client: client.record_usage("env_1", 1),
    "delete_envelope": lambda client: client.delete_envelope("env_1"),
}

ENDLESS = {"Content-Length": "1000000"}


def seconds_until_it_ends(call: Callable[[], Any], deadline: Any) -> float:
    """How long the call took to end in an APITimeoutError."""
    start = time.monotonic()
    with pytest.raises(APITimeoutError):
        deadline(call, seconds=20)
    return time.monotonic() - start


@pytest.mark.parametrize("name", CALLS)
def test_silence_ends_with_the_read_timeout(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """A server that takes the request and never answers: an APITimeoutError, outcome unknown."""
    server = serve(always=hang())
    client = connect(server, timeout=(5, 0.3, 30), max_retries=0)

    with pytest.raises(APITimeoutError) as caught:
        deadline(CALLS[name], client, seconds=5)

    assert caught.value.maybe_processed is True
    assert caught.value.retryable
    assert caught.value.status_code is None


@pytest.mark.parametrize("name", CALLS)
def test_silence_is_tried_again(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """A time-out heals like any other lost answer; a DELETE that finds nothing then has succeeded."""
    replies = {
        "get_envelope": says(documents.envelope()),
        "get_envelopes": says([]),
        "record_usage": says(documents.usage()),
        "delete_envelope": refuses(404),
    }
    server = serve(hang(), replies[name])

    deadline(CALLS[name], connect(server, timeout=(5, 0.3, 30)), seconds=10)

    assert len(server.requests) == 2


@pytest.mark.parametrize("name", CALLS)
def test_total_time_bounds_silence(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """With many retries left, the third number ends the call."""
    server = serve(always=hang())
    client = connect(server, timeout=(5, 5, 0.6), max_retries=100)

    assert seconds_until_it_ends(lambda: CALLS[name](client), deadline) < 0.6 + SLACK


@pytest.mark.parametrize("name", CALLS)
def test_total_time_bounds_a_body_that_drips(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """A byte now and then keeps every single read short, and the call as a whole still ends."""
    server = serve(always=drip(head(200, ENDLESS) + b"[", b" ", 0.05))
    client = connect(server, timeout=(5, 5, 0.6), max_retries=0)

    assert seconds_until_it_ends(lambda: CALLS[name](client), deadline) < 0.6 + SLACK


@pytest.mark.parametrize("name", CALLS)
def test_total_time_bounds_an_error_that_drips(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """The body of an error is no exception."""
    server = serve(always=drip(head(503, ENDLESS), b" ", 0.05))
    client = connect(server, timeout=(5, 5, 0.6), max_retries=100)

    assert seconds_until_it_ends(lambda: CALLS[name](client), deadline) < 0.6 + SLACK


def test_total_time_bounds_chunks_that_drip(serve: Serve, connect: Connect, deadline: Any) -> None:
    """Chunks of one byte each."""
    server = serve(always=drip(head(200, {"Transfer-Encoding": "chunked"}), b"1\r\n \r\n", 0.05))
    client = connect(server, timeout=(5, 5, 0.6), max_retries=0)

    assert seconds_until_it_ends(client.get_usage_stats, deadline) < 0.6 + SLACK


def test_total_time_bounds_a_stream_that_drips_in_the_middle(serve: Serve, connect: Connect, deadline: Any) -> None:
    """A list that began well and then only trickles is given up."""
    start = head(200, ENDLESS) + b"[" + b'{"id":"u","envelopeId":"e","amount":1,"timestamp":"2025-11-05T12:34:56Z"},'
    server = serve(always=drip(start, b" ", 0.05))
    records = connect(server, timeout=(5, 5, 0.6)).iter_usage()

    assert deadline(next, records, seconds=5).amount == 1
    assert seconds_until_it_ends(lambda: next(records), deadline) < 0.6 + SLACK


def test_silence_within_a_body_ends_with_the_read_timeout(serve: Serve, connect: Connect, deadline: Any) -> None:
    """Headers, half of a body, and nothing more."""
    server = serve(always=drip(head(200, ENDLESS) + b'{"total', b"", 0.05))
    client = connect(server, timeout=(5, 0.3, 30), max_retries=0)

    assert seconds_until_it_ends(client.get_usage_stats, deadline) < 0.3 + SLACK


def test_total_time_bounds_retries(serve: Serve, connect: Connect, deadline: Any) -> None:
    """A service that is down for the whole time: the call ends with its error, not after a thousand attempts."""
    server = serve(always=refuses(503))
    client = connect(server, timeout=(5, 5, 0.8), max_retries=1000)
    start = time.monotonic()

    with pytest.raises(APIError):
        deadline(client.get_usage_stats, seconds=10)

    assert time.monotonic() - start < 0.8 + SLACK
    assert len(server.requests) > 1


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 O", b"K"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Slow: x\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status line", "reason", "one header", "many headers", "1xx"],
)
def test_read_timeout_bounds_a_head_that_drips(
    start: bytes, drop: bytes, serve: Serve, connect: Connect, deadline: Any
) -> None:
    """Each byte comes in time, and the head as a whole does not."""
    server = serve(always=drip(start, drop, 0.02))
    client = connect(server, timeout=(5, 0.3, 30), max_retries=0)

    assert seconds_until_it_ends(client.get_usage_stats, deadline) < 0.3 + SLACK


def test_total_time_bounds_a_head_that_drips(serve: Serve, connect: Connect, deadline: Any) -> None:
    """The third number ends it when it comes first."""
    server = serve(always=drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.02))
    client = connect(server, timeout=(5, 5, 0.6), max_retries=100)

    assert seconds_until_it_ends(client.get_usage_stats, deadline) < 0.6 + SLACK


def test_head_in_pieces_leaves_the_body_its_time() -> None:
    """A head that took several reads does not shorten the wait for the body."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(head(200, {"X-Long": "x" * 30_000, "Content-Length": "2"}) + b"ok")
        response = TimelyResponse(ours, method="GET")

        response.begin()

        assert ours.gettimeout() == 5
        assert response.read() == b"ok"
