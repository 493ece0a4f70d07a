"""N1 to N6, N20, N22 and N26 of the fault catalogue: no answer, half an answer, and whoever stands in between."""

from __future__ import annotations

import gc
import logging
import pathlib
import socket
import ssl
import threading
import time
import warnings
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.buffer.helpers import wait_until
from tests.client.conftest import Serve
from tests.client.scripted_server import Behaviour, closed_port, drip, hang, head, raw, refuses, reset
from tests.faults.process_child import run
from tests.faults.reporting import KEY, PATIENCE, Books, MakeReporter, sent_keys
from x402tools import APITimeoutError, X402Client
from x402tools.testing import Emulator

CERTIFICATES = pathlib.Path(__file__).parents[1] / "client" / "data"
SELF_SIGNED, EXPIRED = str(CERTIFICATES / "self_signed.pem"), str(CERTIFICATES / "expired.pem")


def test_N01_refused_until_the_service_is_back(
    reporter: MakeReporter, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Queued, one line for the whole outage and one for its end, and then delivered once each."""
    caplog.set_level(logging.INFO, "x402tools")
    emulator = Emulator(db=tmp_path / "books.db").start()
    envelope = emulator.create_envelope()
    emulator.stop()

    reports = reporter(emulator, api_key=emulator.api_key)
    reports.record(50, envelope)
    reports.wait_for_problem("refused")
    wait_until(lambda: reports.stats().retries > 9, "it was tried again")
    with emulator.start():
        assert reports.client.flush(15)
        assert sorted(str(event.idempotency_key) for event in emulator.events()) == sorted(reports.ids)

    lines = [record.getMessage() for record in caplog.records if record.name == "x402tools"]
    assert len(lines) == 2, lines
    assert "refused" in lines[0]
    assert "go on" in lines[1]
    assert len(reports.errors) == 1


# A connection to a multicast address is refused by the machine's own routing: no packet leaves it.
NOBODY = {"host unreachable": "http://224.0.0.1:9", "no such host": "http://no-such-host.invalid"}


@pytest.mark.parametrize("what", NOBODY)
def test_N01_N02_nobody_is_there(what: str, reporter: MakeReporter) -> None:
    """Kept and tried again; nothing is dead however often, and close does not wait for it."""
    reports = reporter(NOBODY[what])
    reports.record(20)
    wait_until(lambda: reports.stats().retries >= 2, "it was tried again", 60)
    before = time.monotonic()
    left = reports.buffer.close(0.3)

    assert time.monotonic() - before < 1.5
    assert left.pending == 20
    assert reports.dead == []


SLOW_RESOLVER = """
import socket
asked, threads = [], []
def resolve(*arguments, **named):
    asked.append(arguments)
    time.sleep(30)
    raise socket.gaierror("no answer")
socket.getaddrinfo = resolve  # before anything of ours is loaded into the program
client = make(flush_interval=0.01, max_concurrency=4)
longest = 0
for number in range(2000):
    began = time.perf_counter()
    client.record_usage(envelope, 1)
    longest = max(longest, time.perf_counter() - began)
    threads.append(threading.active_count())
    number % 100 or threading.Event().wait(0.02)
say(len(asked) <= 4, max(threads) <= 9,  # ours beside the main one: writer, flusher, desk, SQL, four senders
     longest < 1, client.buffer.stats().pending.events)
began = time.monotonic()
client.close(0.5)
say(time.monotonic() - began < 1)
"""


def test_N02_a_resolver_that_takes_half_a_minute(tmp_spool: pathlib.Path) -> None:
    """A look-up cannot be given up, so no more of them than senders; recording and ending do not wait for one."""
    finished = run(SLOW_RESOLVER, tmp_spool, "http://localhost:9", "env_1")

    assert finished.lines == ["True True True 2000", "True"], finished.errors
    assert finished.seconds < 2


@pytest.fixture
def full_backlog() -> Iterator[socket.socket]:
    """A server that accepts nobody and whose queue is full: the next connection gets no answer at all."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        try:
            yield listener
        finally:
            for one in waiting:
                one.close()


def test_N03_connecting_takes_no_longer_than_it_may(full_backlog: socket.socket, reporter: MakeReporter) -> None:
    """The client's call ends at the connect time-out, certainly not processed; the buffer keeps and says so."""
    url = f"http://127.0.0.1:{full_backlog.getsockname()[1]}"
    with X402Client(KEY, url, timeout=(0.3, 5, 20), max_retries=0) as client:
        before = time.monotonic()
        with pytest.raises(APITimeoutError, match="no connection") as caught:
            client.record_usage("env_1", 1)
        assert time.monotonic() - before < 0.3 + 0.5
    assert caught.value.maybe_processed is False

    reports = reporter(url, timeout=(0.2, 5, 20))
    reports.record(10)
    reports.wait_for_problem("no connection in time")
    assert reports.stats().pending.events == 10


LOST_ANSWERS: Dict[str, Callable[[], Behaviour]] = {
    "N04 silence": hang,
    "N04 reset": reset,
    "N04 closed": lambda: raw(b""),
    "N06 half a status line": lambda: raw(b"HTTP/1.1 20"),
    "N06 a head that drips": lambda: drip(b"HTTP/1.1 201 Created\r\nX-Slow: ", b"x", 0.05),
}


@pytest.mark.parametrize("what", LOST_ANSWERS)
def test_N04_N06_booked_but_the_answer_is_lost(what: str, serve: Serve, reporter: MakeReporter, books: Books) -> None:
    """Nobody can know: the same bytes go again under the same key, and the service has one record."""
    server = serve(books.behaviour(LOST_ANSWERS[what]()), always=books.behaviour())
    reports = reporter(server, timeout=(1, 0.3, 5))
    reports.record()

    reports.check_delivered_once(books)

    assert sent_keys(server) == [reports.ids[0]] * 2
    assert books.repeats == reports.stats().retries == reports.stats().unknown_resends == 1


@pytest.mark.parametrize("what", LOST_ANSWERS)
def test_N04_N06_and_is_not_repeated_where_that_is_not_wanted(
    what: str, serve: Serve, reporter: MakeReporter, books: Books
) -> None:
    """With on_unknown="hold" it is sent once and held, and the next one is delivered."""
    server = serve(books.behaviour(LOST_ANSWERS[what]()), always=books.behaviour())
    reports = reporter(server, timeout=(1, 0.3, 5), on_unknown="hold", max_concurrency=1)
    reports.record(2)

    flushed = reports.client.flush(PATIENCE)

    stats = reports.stats()
    assert sent_keys(server) == reports.ids
    assert (flushed.pending, stats.held.events, stats.delivered.events) == (1, 1, 1)
    assert (stats.retries, stats.unknown_resends) == (0, 0)


SHORT_BODIES: Dict[str, Callable[[], Behaviour]] = {
    "half a header": lambda: raw(b"HTTP/1.1 201 Created\r\nContent-Le"),
    "a short body": lambda: raw(head(201, {"Content-Length": "100"}) + b'{"id":"use_1"'),
    "no body": lambda: raw(head(201, {"Content-Length": "100"})),
    "a cut chunk": lambda: raw(head(201, {"Transfer-Encoding": "chunked"}) + b"10\r\n{"),
    "no chunk": lambda: raw(head(201, {"Transfer-Encoding": "chunked"})),
    "a chunk that is none": lambda: raw(head(201, {"Transfer-Encoding": "chunked"}) + b"zz\r\n{}\r\n"),
    "broken compression": lambda: raw(head(201, {"Content-Length": "4", "Content-Encoding": "gzip"}) + b"junk"),
    "a body that drips": lambda: drip(head(201, {"Content-Length": "1000000"}), b" ", 0.05),
    "a body that stops": lambda: drip(head(201, {"Content-Length": "1000000"}) + b"{", b"", 0.05),
}


@pytest.mark.parametrize("what", SHORT_BODIES)
def test_N06_a_201_whose_body_is_not_whole(what: str, serve: Serve, reporter: MakeReporter, books: Books) -> None:
    """The status came whole, so it is delivered: sent once, and what comes next is not spoilt by it."""
    server = serve(books.behaviour(SHORT_BODIES[what]()), always=books.behaviour())
    reports = reporter(server, timeout=(0.3, 0.3, 5), max_concurrency=1)
    reports.record(3)

    reports.check_delivered_once(books)

    assert len(server.requests) == 3
    assert books.repeats == 0


# -- N20: TLS ----------------------------------------------------------------------------------------------------


def tls(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize(
    ("certificate", "trusted", "host", "word"),
    [
        (SELF_SIGNED, "", "127.0.0.1", "self.signed"),
        (EXPIRED, EXPIRED, "127.0.0.1", "expired"),
        (SELF_SIGNED, SELF_SIGNED, "localhost", "localhost"),
        (SELF_SIGNED, "/no/such/bundle.pem", "127.0.0.1", "bundle"),
    ],
    ids=["self-signed", "expired", "wrong host", "missing bundle"],
)
def test_N20_a_server_that_cannot_prove_who_it_is(
    certificate: str, trusted: str, host: str, word: str, serve: Serve, reporter: MakeReporter, monkeypatch: Any
) -> None:
    """Nothing is sent and nothing is lost; the problem says what is wrong."""
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", trusted)
    server = serve(tls=tls(certificate))
    reports = reporter(server.url.replace("127.0.0.1", host))
    reports.record(12)

    wait_until(lambda: len(reports.errors) == 1, "it is told", PATIENCE)

    assert any(part in reports.errors[0] for part in (word, word.replace(".", " "), word.replace(".", "-")))
    assert KEY not in reports.errors[0]
    assert server.requests == []
    assert reports.stats().pending.events == 12


def speak_plainly(connection: socket.socket, _: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("what", ["plain port", "stalled handshake", "dripping handshake"])
def test_N20_a_port_that_does_not_speak_tls(what: str, serve: Serve, reporter: MakeReporter) -> None:
    """Each attempt ends in time, everything is kept, and close is not held up."""

    def drip_a_record(connection: socket.socket, released: threading.Event) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # the head of a handshake record of 16 KiB
        while not released.wait(0.02):
            connection.sendall(b"\x02")

    behave: Dict[str, Callable[[socket.socket, threading.Event], Any]] = {
        "plain port": speak_plainly,
        "stalled handshake": lambda _, released: released.wait(20),
        "dripping handshake": drip_a_record,
    }
    server = serve(instead=behave[what])
    reports = reporter(server, timeout=(0.2, 0.2, 5))
    reports.record(10)

    wait_until(lambda: len(reports.errors) == 1, "it is told", PATIENCE)

    assert reports.stats().pending.events == 10


def test_N20_a_head_that_drips_through_tls(serve: Serve, monkeypatch: Any, deadline: Any) -> None:
    """Its time limit holds within TLS as well."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", SELF_SIGNED)
    server = serve(always=drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.02), tls=tls(SELF_SIGNED))
    with X402Client(KEY, server.url, timeout=(2, 0.3, 20), max_retries=0) as client, pytest.raises(APITimeoutError):
        deadline(client.get_usage_stats, seconds=3)


# -- N22: the machine's settings ---------------------------------------------------------------------------------


def test_N22_a_proxy_of_the_environment_delivers(
    serve: Serve, reporter: MakeReporter, books: Books, monkeypatch: Any, tmp_path: pathlib.Path
) -> None:
    """It gets every POST, with our bearer whatever a netrc says; the service itself is not spoken to."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login thief password thief\nmachine 127.0.0.1 login thief password thief\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    proxy, server = serve(always=books.behaviour()), serve()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    reports = reporter(server)
    reports.record(5)

    reports.check_delivered_once(books)

    assert {request.target for request in proxy.requests} == {f"{server.url}/usage"}
    assert {request.headers["authorization"] for request in proxy.requests} == {f"Bearer {KEY}"}
    assert server.connections == 0


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_N22_no_proxy(variable: str, serve: Serve, reporter: MakeReporter, books: Books, monkeypatch: Any) -> None:
    """A host that is excepted is delivered to directly."""
    server = serve(always=books.behaviour())
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv(variable, "example.com, 127.0.0.1")
    reports = reporter(server)
    reports.record(3)

    reports.check_delivered_once(books)


def test_N22_a_proxy_that_is_down(reporter: MakeReporter, serve: Serve, monkeypatch: Any) -> None:
    """Everything is kept, and the problem names the proxy, so that nobody looks for the fault at the service."""
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@127.0.0.1:{closed_port()}")
    server = serve()
    reports = reporter(server)
    reports.record(10)

    reports.wait_for_problem("proxy")

    assert "hunter2" not in reports.errors[0]
    assert reports.stats().pending.events == 10
    assert server.connections == 0


def test_N22_a_proxy_that_wants_to_know_who_asks(
    reporter: MakeReporter, serve: Serve, books: Books, monkeypatch: Any
) -> None:
    """407 is no verdict on the usage: nothing is dead, and all of it goes when the proxy lets it pass."""
    may_pass = threading.Event()
    accept, refuse = books.behaviour(), refuses(407, "who are you?")
    proxy = serve(always=lambda exchange: (accept if may_pass.is_set() else refuse)(exchange))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    reports = reporter("http://127.0.0.1:1")
    reports.record(10)
    reports.wait_for_problem("who are you?")

    may_pass.set()
    reports.check_delivered_once(books)

    assert reports.dead == []


def test_N22_a_tunnel_that_drips(serve: Serve, monkeypatch: Any, deadline: Any) -> None:
    """What a proxy says to CONNECT is bounded like any other head; the key is not told to it."""
    proxy = serve(always=drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.02))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    failed: List[str] = []
    with X402Client(KEY, "https://billing.invalid", timeout=(0.3, 0.3, 20), max_retries=0) as client:

        def call() -> None:
            try:
                client.get_usage_stats()
            except Exception as error:  # noqa: BLE001 - a proxy's failure or a time-out, by the release of urllib3
                failed.append(type(error).__name__)

        deadline(call, seconds=3)
    with warnings.catch_warnings():  # Python 3.8 itself forgets to close what it reads the proxy's answer from
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

    assert len(failed) == 1
    assert [request.method for request in proxy.requests] == ["CONNECT"]
    assert KEY not in repr(proxy.requests)
