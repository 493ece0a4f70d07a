"""What is tried again, how often and under which key, and what is not."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List

import pytest

from tests.client import documents
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import answer, closed_port, cut_short, head, raw, refuses, reset, says
from x402tools import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    EnvelopeNotFoundError,
    NotFoundError,
    RateLimitError,
    ValidationError,
    X402Client,
)
from x402tools.testing import Emulator, Fault

USAGE = documents.usage()

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "GET": lambda client: client.get_envelope("env_1"),
    "GET a list": lambda client: client.get_envelopes(),
    "PUT": lambda client: client.update_envelope("env_1", limit=1),
    "DELETE": lambda client: client.delete_envelope("env_1"),
    "POST": lambda client: client.record_usage("env_1", 1),
}
REPLIES: Dict[str, Any] = {
    "GET": says(documents.envelope()),
    "GET a list": says([documents.envelope()]),
    "PUT": says(documents.envelope()),
    "DELETE": answer(204),
    "POST": says(USAGE, 201),
}

HEALS = {
    "408": refuses(408),
    "429": refuses(429),
    "429 with Retry-After: 0": refuses(429, headers={"Retry-After": "0"}),
    "429 with junk": refuses(429, headers={"Retry-After": "soon"}),
    "500": refuses(500),
    "502 HTML": answer(502, b"<html></html>"),
    "503": refuses(503),
    "504": refuses(504),
    "reset": reset(),
    "reset within the headers": reset(b"HTTP/1.1 200 OK\r\nContent-"),
    "closed without a word": raw(b""),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
}


def keys(requests: List[Any]) -> List[str]:
    """The idempotency keys of the requests."""
    return [request.headers["idempotency-key"] for request in requests]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", HEALS)
def test_what_may_heal_is_tried_again(name: str, fault: str, serve: Serve, connect: Connect) -> None:
    """Every method, POST too: the second attempt is the first one to the byte."""
    server = serve(HEALS[fault], REPLIES[name])

    CALLS[name](connect(server))

    first, second = server.requests
    assert (first.method, first.target, first.body) == (second.method, second.target, second.body)
    assert first.headers == second.headers


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 409, 413, 422, 418])
def test_what_stays_wrong_is_not_tried_again(name: str, status: int, serve: Serve, connect: Connect) -> None:
    """One request, and the error at once."""
    server = serve(always=refuses(status))

    with pytest.raises(APIError):
        CALLS[name](connect(server))

    assert len(server.requests) == 1


@pytest.mark.parametrize("retries", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CALLS)
def test_max_retries_is_the_number_of_further_attempts(name: str, retries: int, serve: Serve, connect: Connect) -> None:
    """With 0 there is one attempt; the error is that of the last one."""
    messages = [f"attempt {number}" for number in range(5)]
    server = serve(*(refuses(503, message, {"Retry-After": "0"}) for message in messages))

    with pytest.raises(APIError) as caught:
        CALLS[name](connect(server, max_retries=retries))

    assert len(server.requests) == retries + 1
    assert str(caught.value) == messages[retries]


def test_two_retries_are_the_default(serve: Serve, connect: Connect) -> None:
    """Three attempts when nobody says otherwise."""
    server = serve(always=refuses(503))

    with pytest.raises(APIError):
        connect(server).get_usage_stats()

    assert len(server.requests) == 3


def test_post_keeps_one_key_over_its_attempts_and_takes_a_new_one_per_call(serve: Serve, connect: Connect) -> None:
    """The service can tell a repetition from a second record of the same amount."""
    server = serve(refuses(500), reset(), says(USAGE), refuses(500), says(USAGE), says(USAGE))
    client = connect(server)

    for _ in range(3):
        client.record_usage("env_1", 1)

    first, second, third = keys(server.requests)[:3], keys(server.requests)[3:5], keys(server.requests)[5:]
    assert len(set(first)) == len(set(second)) == 1
    assert len({first[0], second[0], third[0]}) == 3


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (lambda client: client.create_envelope("N", 1, "DAILY"), documents.envelope()),
        (lambda client: client.create_api_key("N"), documents.api_key()),
    ],
    ids=["create_envelope", "create_api_key"],
)
def test_every_post_keeps_its_key(call: Any, reply: Any, serve: Serve, connect: Connect) -> None:
    """Not only usage: a second envelope or key that nobody asked for is as bad."""
    server = serve(reset(), says(reply))

    call(connect(server))

    assert len(set(keys(server.requests))) == 1


def test_key_of_the_caller_is_kept_over_attempts_and_calls(serve: Serve, connect: Connect) -> None:
    """An order number stays the order number."""
    server = serve(refuses(503), says(USAGE), says(USAGE))
    client = connect(server)

    client.record_usage("env_1", 1, idempotency_key="order-4711")
    client.record_usage("env_1", 1, idempotency_key="order-4711")

    assert keys(server.requests) == ["order-4711"] * 3


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "a\r\nX: y", "é", "\0", "k" * 256, b"order", 5, True], ids=repr)
def test_key_that_no_header_can_carry_is_refused(key: Any, serve: Serve, connect: Connect) -> None:
    """Before anything is sent."""
    server = serve()

    with pytest.raises(ValidationError, match="idempotency_key"):
        connect(server).record_usage("env_1", 1, idempotency_key=key)

    assert server.requests == []


@pytest.mark.parametrize("name", ["GET", "PUT", "POST"])
def test_answer_that_is_cut_short_is_asked_for_again(name: str, serve: Serve, connect: Connect) -> None:
    """Under the same key: what was booked once is not booked twice."""
    document = USAGE if name == "POST" else documents.envelope()
    server = serve(cut_short(document), REPLIES[name])

    CALLS[name](connect(server))

    assert len(server.requests) == 2
    assert server.requests[0].headers == server.requests[1].headers


@pytest.mark.parametrize(
    "fault",
    [
        reset(head(200, {"Content-Length": "100"})),
        reset(head(200, {"Content-Length": "100"}) + b" [ "),
        reset(head(200, {"Content-Length": "100"}) + b'[{"id": "env'),
        raw(head(200, {"Content-Length": "100"})),
        raw(head(200, {"Transfer-Encoding": "chunked"}) + b"5\r\n["),
    ],
    ids=["reset after the headers", "reset after a bracket", "reset in the first record", "closed", "cut chunk"],
)
def test_list_that_fails_before_its_first_record_is_asked_for_again(fault: Any, serve: Serve, connect: Connect) -> None:
    """Nothing was handed out yet, so nobody sees anything twice."""
    server = serve(fault, says([documents.envelope()]))

    assert [envelope.id for envelope in connect(server).get_envelopes()] == ["env_1"]
    assert len(server.requests) == 2


def test_list_that_fails_after_its_first_record_is_not_asked_for_again(serve: Serve, connect: Connect) -> None:
    """What was handed out cannot be taken back: the error is raised in the middle."""
    body = b"[" + b",".join([json.dumps(USAGE).encode()] * 3)
    server = serve(reset(head(200, {"Content-Length": "10000"}) + body), says([USAGE]))

    with pytest.raises(APIConnectionError):
        list(connect(server).iter_usage())

    assert len(server.requests) == 1


def test_empty_list_is_an_answer(serve: Serve, connect: Connect) -> None:
    """Having no first record is no failure."""
    server = serve(says([]))

    assert connect(server).get_usage() == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "lost", [reset(), raw(b""), refuses(500), refuses(502), refuses(504), refuses(408)], ids=lambda _: ""
)
@pytest.mark.parametrize("call", ["delete_envelope", "delete_api_key"])
def test_delete_whose_answer_was_lost_succeeds(call: str, lost: Any, serve: Serve, connect: Connect) -> None:
    """A 404 to the second attempt means that the first one did it."""
    server = serve(lost, refuses(404))

    assert getattr(connect(server), call)("id_1") is None
    assert len(server.requests) == 2


@pytest.mark.parametrize("call", ["delete_envelope", "delete_api_key"])
def test_delete_of_what_never_was_is_not_found(call: str, serve: Serve, connect: Connect) -> None:
    """A 404 to the first attempt, or after one that the service turned away, is told."""
    server = serve(refuses(404), refuses(429), refuses(404))
    client = connect(server)

    for _ in range(2):
        with pytest.raises(NotFoundError):
            getattr(client, call)("id_1")

    assert len(server.requests) == 3


def test_lost_answer_helps_no_other_method(serve: Serve, connect: Connect) -> None:
    """Only for a DELETE is "not there" what was wanted."""
    server = serve(reset(), refuses(404))

    with pytest.raises(EnvelopeNotFoundError):
        connect(server).update_envelope("env_1", limit=1)


def test_retry_after_is_waited_for(serve: Serve, connect: Connect, deadline: Any) -> None:
    """The second attempt comes no sooner than the service asked."""
    server = serve(refuses(429, headers={"Retry-After": "1"}), says(documents.stats()))
    client = connect(server)

    with pytest.raises(pytest.fail.Exception):
        deadline(client.get_usage_stats, seconds=0.9)

    assert len(server.requests) == 1


@pytest.mark.parametrize("seconds", ["31", "120", "1e9"])
def test_long_retry_after_is_handed_to_the_caller(seconds: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """A request that sleeps for minutes helps nobody: the error comes at once and says how long to wait."""
    server = serve(always=refuses(429, headers={"Retry-After": seconds}))

    with pytest.raises(RateLimitError) as caught:
        deadline(connect(server, timeout=(5, 5, 3600)).get_usage_stats, seconds=5)

    assert caught.value.retry_after == float(seconds)
    assert len(server.requests) == 1


def test_retry_after_beyond_the_total_time_is_handed_to_the_caller(
    serve: Serve, connect: Connect, deadline: Any
) -> None:
    """Also a short wait is not begun when the call's own time does not last."""
    server = serve(always=refuses(503, headers={"Retry-After": "20"}))

    with pytest.raises(APIError) as caught:
        deadline(connect(server, timeout=(5, 5, 10)).get_usage_stats, seconds=5)

    assert caught.value.retry_after == 20.0
    assert len(server.requests) == 1


def test_refused_connection_was_certainly_not_processed(connect: Connect) -> None:
    """Nobody listens: an APIConnectionError that says so, and not a time-out."""
    client = connect(f"http://127.0.0.1:{closed_port()}", max_retries=0)

    with pytest.raises(APIConnectionError, match="refused") as caught:
        client.record_usage("env_1", 1)

    assert type(caught.value) is APIConnectionError
    assert caught.value.maybe_processed is False
    assert caught.value.retryable
    assert caught.value.status_code is None


@pytest.mark.parametrize("fault", [reset(), raw(b""), cut_short(USAGE)], ids=["reset", "closed", "cut short"])
def test_lost_answer_may_have_been_processed(fault: Any, serve: Serve, connect: Connect) -> None:
    """The request was sent: nobody can know what became of it."""
    server = serve(always=fault)

    with pytest.raises(APIConnectionError) as caught:
        connect(server, max_retries=0).record_usage("env_1", 1)

    assert not isinstance(caught.value, APITimeoutError)
    assert caught.value.maybe_processed is True
    assert caught.value.retryable


def test_name_that_nobody_knows_was_certainly_not_processed(connect: Connect) -> None:
    """A host that does not resolve (RFC 6761 reserves .invalid for that)."""
    client = connect("https://billing.invalid", max_retries=0)

    with pytest.raises(APIConnectionError) as caught:
        client.record_usage("env_1", 1)

    assert caught.value.maybe_processed is False


def test_host_that_cannot_be_one_is_not_tried_again(connect: Connect, deadline: Any) -> None:
    """A label of 70 characters will never resolve."""
    client = connect(f"https://{'a' * 70}.example", max_retries=1000)

    with pytest.raises(APIConnectionError) as caught:
        deadline(client.get_envelopes)

    assert not caught.value.retryable
    assert caught.value.maybe_processed is False


@pytest.mark.parametrize(
    "fault",
    [
        Fault.reset_after_commit(times=1, method="POST"),
        Fault.truncated(times=1, method="POST"),
        Fault.reset_before_commit(times=1, method="POST"),
        Fault.unavailable(0, times=2, method="POST"),
        Fault.rate_limited("date:0", times=1, method="POST"),
        Fault.html_error(times=1, method="POST"),
    ],
    ids=lambda fault: fault.kind,
)
def test_record_is_booked_once_whatever_happens(emulator: Emulator, connect: Connect, fault: Fault) -> None:
    """On the books of a service that honours the key there is one record, and it is the one that comes back."""
    envelope = emulator.create_envelope()
    emulator.set_faults(fault)

    usage = connect(emulator, emulator.api_key).record_usage(envelope, 7)

    (booked,) = emulator.events()
    assert (usage.id, usage.amount) == (booked.id, 7)
    assert emulator.faults_fired() == [fault.times]
