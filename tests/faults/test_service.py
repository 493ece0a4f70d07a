"""N7 to N18, N21 and N23 to N25 of the fault catalogue: what the service answers, over real sockets.

Hours of it are passed on a bench (`tests.buffer.bench`), by a clock that nobody waits for.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

import pytest

from tests.buffer.bench import Bench, MakeBench, benches
from tests.buffer.helpers import wait_until
from tests.client import documents
from tests.client.conftest import Serve
from tests.client.scripted_server import Behaviour, Exchange, answer, chunked, head, raw, refuses, says
from tests.faults.reporting import KEY, Books, MakeReporter, sent_keys
from x402tools import APIError, X402Client, X402Error, _answers
from x402tools._http import Reply
from x402tools._store import Tally
from x402tools.errors import APIConnectionError
from x402tools.testing import Emulator, Fault

HOUR = 3600.0
PAGE = b"<html><head><title>no</title></head><body>" + b"x" * 100_000 + b"</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


def error_of(status: int, headers: Optional[Dict[str, str]] = None) -> X402Error:
    """The error that an answer with this status and these headers becomes."""
    with pytest.raises(X402Error) as raised:
        _answers.check(Reply(status, headers or {}, b'{"error": "no"}'), envelope=True)
    return raised.value


# -- N7, N8: the body is not what was promised -------------------------------------------------------------------

DELIVERED: Dict[str, Behaviour] = {
    "N07 HTML": answer(200, PAGE, HTML),
    "N07 truncated JSON": answer(201, b'{"id": "use_1", "envel'),
    "N07 nothing": answer(201),
    "N07 204": raw(head(204, {})),
    "N07 a BOM": answer(201, b"\xef\xbb\xbf" + json.dumps(documents.usage()).encode()),
    "N07 an endless page": answer(201, b"x" * 3_000_000),
    "N21 200": says(documents.usage(), 200),
    "N21 202": says(documents.usage(), 202),
    "N21 299": says(documents.usage(), 299),
    "N21 1xx before it": raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + head(201, {})),
    "N21 lower-case headers": raw(b"http/1.1 201 ok\r\ncontent-length: 2\r\n\r\n{}".replace(b"http", b"HTTP", 1)),
    "N21 no reason": raw(b"HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n"),
    "N21 HTTP/1.0": raw(b"HTTP/1.0 201 Created\r\n\r\n{}"),
    "N21 a length too small": raw(head(201, {"Content-Length": "1"}) + b"{}HTTP/1.1 500 Stray\r\n\r\n"),
    "N21 a length that is none": raw(head(201, {"Content-Length": "two"}) + b"{}"),
    "N21 another charset": answer(201, b"\xff\xfe\xe9", {"Content-Type": "application/json; charset=utf-99"}),
    "N23 nonsense": says({"id": 5, "timestamp": "the day after tomorrow", "amount": None, "new": {}}, 201),
    "chunked": chunked(b"{", b"}"),
}


@pytest.mark.parametrize("what", DELIVERED)
def test_N07_N21_N23_the_status_decides(what: str, serve: Serve, reporter: MakeReporter, books: Books) -> None:
    """2xx is delivered whatever comes with it: sent once, and the next answer is read for what it is."""
    server = serve(books.behaviour(DELIVERED[what]), always=books.behaviour())
    reports = reporter(server, max_concurrency=1)
    reports.record(3)

    reports.check_delivered_once(books)

    assert len(server.requests) == 3
    assert reports.errors == []


def test_N07_a_page_in_place_of_the_api_is_told(
    serve: Serve, reporter: MakeReporter, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """A web site that answers 200 to everything takes all usage: one line says so, however much it is."""
    server = serve(always=books.behaviour(answer(200, PAGE, HTML)))
    reports = reporter(server)
    reports.record(30)

    reports.check_delivered_once(books)

    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in lines if "base_url" in line]) == 1
    assert "<html" not in caplog.text


@pytest.mark.parametrize("body", [b"", b'{"id": ', PAGE, b"null"], ids=["empty", "truncated", "HTML", "null"])
def test_N07_the_client_raises_an_api_error(body: bytes, serve: Serve) -> None:
    """Who waits for the record is told that it makes no sense, in our words and with the status."""
    with X402Client(KEY, serve(answer(201, body)).url) as client, pytest.raises(APIError, match="JSON") as caught:
        client.record_usage("env_1", 1)

    assert type(caught.value) is APIError
    assert caught.value.status_code == 201


NO_ANSWERS: Dict[str, Behaviour] = {
    "N08 502": answer(502, PAGE, HTML),
    "N08 503": answer(503, PAGE, HTML),
    "N08 504": answer(504, PAGE, HTML),
    "N21 HTTP/0.9": raw(PAGE),
    "N21 101": raw(head(101, {"Upgrade": "websocket", "Connection": "upgrade"})),
    "N21 two lengths": raw(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}"),
    "N21 status 99": raw(b"HTTP/1.1 99 Odd\r\n\r\n"),
    "N21 status 999": answer(999),
    "N21 no status": raw(b"HTTP/1.1 fine\r\n\r\n"),
    "N21 a header without end": raw(b"HTTP/1.1 201 Created\r\nX-Long: " + b"x" * 70_000),
    "N21 too many headers": raw(b"HTTP/1.1 201 Created\r\n" + b"X-Many: x\r\n" * 500 + b"\r\n"),
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_N08_N21_no_answer_of_the_service(what: str, serve: Serve, reporter: MakeReporter, books: Books) -> None:
    """Sent again under the same key; the page is in no message; nothing is dead."""
    sane, insane = books.behaviour(), NO_ANSWERS[what]
    mended = threading.Event()
    server = serve(always=lambda exchange: (sane if mended.is_set() else insane)(exchange))
    reports = reporter(server)
    reports.record(10)
    wait_until(lambda: reports.errors, "it is told")

    mended.set()
    reports.check_delivered_once(books)

    assert set(sent_keys(server)) == set(reports.ids)
    assert len(reports.errors[0]) < 1200
    assert "<html" not in reports.errors[0]
    assert reports.dead == []


# -- N9 to N11: asked to wait ------------------------------------------------------------------------------------


def test_N09_429_without_a_time_slows_everything(make_bench: MakeBench) -> None:
    """Not each POST by itself: a thousand cause a handful of requests in a minute, and all arrive in the end."""
    bench = make_bench(default=error_of(429), concurrency=8)
    bench.record(*[1] * 500)
    bench.record(*[1] * 500)

    bench.run_for(60)
    asked = len(bench.deliver.keys())
    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert 8 <= asked <= 60
    assert bench.shelf.dead == {}


NOW = "Wed, 21 Oct 2015 07:28:00 GMT"
WAITS = [
    # value, least and most seconds until the next attempt (a second for the back-off of the one POST)
    ("0", 0, 1), ("1", 1, 2), ("120", 120, 121), ("1.5", 1.5, 2.5), (" 5 ", 5, 6),
    ("-5", 0, 1), ("1e9", 300, 301), ("nan", 0, 1), ("inf", 0, 1), ("", 0, 1), ("soon", 0, 1), ("9" * 400, 0, 1),
    ("Wed, 21 Oct 2015 07:28:30 GMT", 30, 31), ("Wednesday, 21-Oct-15 07:28:30 GMT", 30, 31),
    ("Wed Oct 21 07:28:30 2015", 30, 31), ("Wed, 21 Oct 2015 09:28:30 +0200", 30, 31),
    ("Wed, 21 Oct 2015 07:00:00 GMT", 0, 1), ("Fri, 31 Dec 9999 23:59:59 GMT", 300, 301),
    ("Wed, 99 Foo 2015 07:28:30 GMT", 0, 1),
]  # fmt: skip


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("value", "least", "most"), WAITS, ids=[value[:32] for value, _, _ in WAITS])
def test_N10_N11_retry_after(value: str, least: float, most: float, status: int, make_bench: MakeBench) -> None:
    """Both forms are obeyed, by the service's own clock, from 0 to five minutes; junk is passed over."""
    moments: List[float] = []
    error = error_of(status, {"Retry-After": value, "Date": NOW})
    bench = make_bench(concurrency=1)

    def deliver() -> None:
        moments.append(bench.clock())
        if len(moments) == 1:
            raise error

    bench.deliver.default = deliver
    bench.record(1)
    bench.run_until(bench.is_empty)

    assert least <= moments[1] - moments[0] <= most


# -- N12 to N15: refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_N12_a_key_that_is_refused(
    status: int, serve: Serve, reporter: MakeReporter, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """One error and then hardly a request; nothing is dead; with the next key of the callable all of it goes."""
    accept, refuse = books.behaviour(), refuses(status, "the key was revoked")

    def by_key(exchange: Exchange) -> bool:
        good = exchange.request.headers["authorization"] == "Bearer sk_new"
        return (accept if good else refuse)(exchange)

    key = ["sk_old"]
    server = serve(always=by_key)
    reports = reporter(server, api_key=lambda: key[0])
    reports.record(100)
    wait_until(lambda: reports.stats().retries >= 10, "the first ones, and some that tried it out, are refused")
    asked = len(server.requests)
    key[0] = "sk_new"
    reports.check_delivered_once(books)

    assert asked <= 12  # eight that were under way at the first refusal, and the ones that were counted
    assert len(reports.errors) == 1
    assert "the key was revoked" in reports.errors[0]
    assert "sk_" not in caplog.text
    assert reports.dead == []


@pytest.mark.parametrize("key", [None, "", "sk with spaces", KeyError("vault")], ids=repr)
def test_N12_a_callable_that_has_no_key_for_a_while(
    key: Any, serve: Serve, reporter: MakeReporter, books: Books
) -> None:
    """Nothing is sent without a key and nothing is lost."""
    keys = [key]

    def provide() -> str:
        if isinstance(keys[0], Exception):
            raise keys[0]
        return str(keys[0]) if keys[0] is not None else None  # type: ignore[return-value]  # that is the fault

    server = serve(always=books.behaviour())
    reports = reporter(server, api_key=provide)
    reports.record(10)
    reports.wait_for_problem("api_key")
    assert server.requests == []

    keys[0] = "sk_new"
    reports.check_delivered_once(books)


REFUSALS = [("N13", 404), ("N13", 422), ("N13", 400), ("N13", 402), ("N14", 409), ("N15", 413)]


@pytest.mark.parametrize(("row", "status"), REFUSALS, ids=[f"{row} {status}" for row, status in REFUSALS])
def test_N13_N14_N15_refused_for_good(
    row: str, status: int, serve: Serve, reporter: MakeReporter, books: Books
) -> None:
    """One attempt, then a dead letter with the reason; what stands behind it is delivered within a second.

    409 as well: the contract does not say whether it means "booked already" or "booked with another body", and a dead
    letter can be looked at and requeued.
    """
    accept, refuse = books.behaviour(), refuses(status, "not this one")

    def by_envelope(exchange: Exchange) -> bool:
        return (refuse if exchange.request.json["envelopeId"] == "bad" else accept)(exchange)

    server = serve(always=by_envelope)
    reports = reporter(server, max_concurrency=1)
    reports.record(5, "bad")
    reports.ids.clear()
    before = time.monotonic()
    reports.record(20)
    assert reports.client.flush(15)
    took = time.monotonic() - before

    assert took < 1.5  # the interval of the buffer, and the second
    assert sorted(books.booked) == sorted(reports.ids)
    assert len(server.requests) == 25
    assert [letter.status_code for letter in reports.buffer.dead_letters()] == [status] * 5
    assert {letter.reason for letter in reports.buffer.dead_letters()} == {"not this one"}
    assert reports.stats().dead.events == 5
    assert reports.errors == []


# -- N16, N17: a bad hour ----------------------------------------------------------------------------------------


def test_N16_an_hour_of_500_and_then_recovery(make_bench: MakeBench) -> None:
    """Everything is kept; the service is asked a few hundred times; it is found again by one POST, not by a herd."""
    bench = make_bench(default=error_of(500), concurrency=8, max_attempts=3)
    for _ in range(6):
        bench.record(*[1] * 500)
    bench.run_for(HOUR)
    asked = len(bench.deliver.keys())
    bench.deliver.most_at_once = 0
    bench.run_for(120)  # the service is still down: who tries it out does so alone
    alone = bench.deliver.most_at_once

    bench.deliver.default = None
    back = bench.clock()
    bench.run_until(bench.is_empty)

    assert bench.shelf.dead == {}
    assert asked < 600
    assert alone == 1
    assert bench.clock() - back <= 60
    assert sorted(bench.deliver.taken) == sorted(set(bench.deliver.taken))
    assert len(bench.deliver.taken) == 3000


def test_N17_flapping(make_bench: MakeBench) -> None:
    """Half of all attempts fail in every way, by a scripted chance: each POST arrives once, with few attempts."""
    chance = random.Random(17)
    errors = [error_of(500), error_of(503, {"Retry-After": "1"}), error_of(429), APIConnectionError("reset"), None]
    bench = make_bench(concurrency=8, max_attempts=1000)
    lock = threading.Lock()

    def flap() -> None:
        with lock:
            error = chance.choice(errors[:4]) if chance.random() < 0.5 else None
        if error is not None:
            raise error

    bench.deliver.default = flap
    bench.record(*[1] * 300)
    bench.run_until(bench.is_empty)

    assert len(bench.deliver.taken) == 300
    assert len(bench.deliver.keys()) < 900
    assert bench.shelf.dead == {}


def test_N17_slow_and_failing_at_once(reporter: MakeReporter) -> None:
    """The same over sockets: latencies, resets after booking and errors, each for a part of the requests."""
    faults = [
        Fault.status(500, share=0.2, seed=1),
        Fault.reset_after_commit(share=0.2, seed=2),
        Fault.latency(0.05, share=0.5, seed=3),
    ]
    with Emulator() as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(*faults)
        reports = reporter(emulator, api_key=emulator.api_key, max_attempts=1000)
        reports.record(200, envelope)
        assert reports.client.flush(40), reports.stats()

        assert sorted(str(event.idempotency_key) for event in emulator.events()) == sorted(reports.ids)
        reports.client.close()


# -- N18: redirects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["other host", "itself", "file", "nowhere"])
def test_N18_a_redirect(status: int, where: str, serve: Serve, reporter: MakeReporter, books: Books) -> None:
    """Not followed and not delivered: the usage is kept, the other host hears nothing, and the problem says why."""
    other = serve(always=books.behaviour())
    location = {"other host": f"{other.url}/usage?t=secret", "itself": "/usage", "file": "file:///etc/passwd"}
    moved = answer(status, PAGE, {"Location": location[where]} if where in location else {})
    accept, mended = books.behaviour(), threading.Event()
    server = serve(always=lambda exchange: (accept if mended.is_set() else moved)(exchange))
    reports = reporter(server)
    reports.record(9)
    reports.wait_for_problem("redirect")
    assert books.booked == {}
    assert other.connections == 0

    mended.set()
    reports.check_delivered_once(books)

    assert "secret" not in reports.errors[0]


# -- N23 to N25 --------------------------------------------------------------------------------------------------

LENIENT: Dict[str, Any] = {
    "a new period": documents.envelope(period="HOURLY"),
    "the year 9999": documents.envelope(createdAt="9999-12-31T23:59:59.999Z"),
    "the year 1": documents.envelope(updatedAt="0001-01-01T00:00:00Z"),
    "no optional field": {k: v for k, v in documents.envelope().items() if k != "resetDay"},
    "a new field": documents.envelope(colour={"deep": [1]}),
}


@pytest.mark.parametrize("what", LENIENT)
def test_N23_answers_of_a_later_service(what: str, serve: Serve) -> None:
    """What is new or odd, and readable, is read."""
    with X402Client(KEY, serve(says(LENIENT[what])).url) as client:
        assert client.get_envelope("env_1").id == "env_1"


@pytest.mark.parametrize("date", [NOW, "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "junk"])
def test_N23_the_clock_of_the_service_does_not_matter(
    date: str, serve: Serve, reporter: MakeReporter, books: Books
) -> None:
    """Delivered at once, whatever its `Date` says."""
    server = serve(always=books.behaviour(says(documents.usage(timestamp="0001-01-01T00:00:00Z"), 201, {"Date": date})))
    reports = reporter(server)
    reports.record(5)

    reports.check_delivered_once(books)


def test_N24_an_unknown_outcome_that_is_older_than_a_day(make_bench: MakeBench) -> None:
    """It is sent again under its own key, also after 25 hours: for how long a service remembers keys nobody has said.

    The README says so; `stats().oldest_pending_age` shows what waits for that long, and `retries` how often it was
    tried.
    """
    bench: Bench = make_bench(default=APIConnectionError("reset after it was sent"))
    bench.record(5)
    bench.run_until(lambda: bench.flusher.retries >= 3)
    bench.clock.advance(25 * HOUR)
    bench.run_until(lambda: bench.flusher.retries >= 5)

    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert set(bench.deliver.keys()) == {"rec-1-0"}
    assert len({body for _, body in bench.deliver.attempts}) == 1
    assert bench.flusher.retries == len(bench.deliver.keys()) - 1


def test_N24_an_unknown_outcome_that_is_older_than_the_window(make_bench: MakeBench) -> None:
    """Where it is known for how long the service remembers keys, it is held after that, and counted; new ones pass."""
    bench: Bench = make_bench(default=APIConnectionError("reset after it was sent"), hold_after=24 * HOUR)
    bench.record(5)
    bench.run_until(lambda: bench.flusher.retries >= 3)
    bench.clock.advance(25 * HOUR)
    attempts = len(bench.deliver.keys())

    bench.deliver.default = None
    bench.record(7)
    bench.run_until(bench.is_empty)

    counts = bench.writer.counts()
    assert bench.deliver.keys()[attempts:] == ["rec-2-0"]
    assert (counts.held, counts.pending, counts.delivered) == (Tally(1, 5), Tally(1, 5), Tally(1, 7))
    assert [one.post.key for one in bench.observer.was_held] == ["rec-1-0"]


def test_N25_a_service_that_ignores_keys(reporter: MakeReporter) -> None:
    """It books as many too many as answers were lost, no more, and the buffer counted them."""
    with Emulator(idempotency=False) as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(Fault.reset_after_commit(times=7))
        reports = reporter(emulator, api_key=emulator.api_key)
        reports.record(100, envelope)
        assert reports.client.flush(20)

        assert emulator.ledger().events == 107
        stats = reports.stats()
        assert (stats.delivered.events, stats.retries, stats.unknown_resends) == (100, 7, 7)
        reports.client.close()


def test_N25_and_whose_usage_is_held_instead(reporter: MakeReporter) -> None:
    """Nothing is booked twice: what was booked unseen is found in `get_usage`, and what was not is sent again."""
    with Emulator(idempotency=False) as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(Fault.reset_after_commit(times=7), Fault.reset_before_commit(times=5))
        reports = reporter(emulator, api_key=emulator.api_key, on_unknown="hold", key_in_metadata="x402_key")
        reports.record(100, envelope)
        assert reports.client.flush(20).pending == 12

        assert reports.client.reconcile(min_age=0) == (7, 5, 0)
        assert reports.client.flush(20)

        assert emulator.ledger().events == 100
        assert sorted(str((event.metadata or {})["x402_key"]) for event in emulator.events()) == sorted(reports.ids)
        assert reports.stats().unknown_resends == 0
        reports.client.close()
