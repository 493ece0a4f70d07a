"""Every kind of fault, seen from the other end of the connection; and the rules that draw them."""

from __future__ import annotations

import email.utils
import http.client
import socket
import time
from typing import Any, Tuple

import pytest

from tests.emulator.wire import ask, dial, raw_post, record
from x402tools.emulator.faults import BadFault, FaultScript
from x402tools.emulator.faults import Fault as Rule
from x402tools.testing import Emulator, EmulatorError, Fault


def _exchange(emulator: Emulator, fault: str) -> Tuple[bytes, Any]:
    """POST one unit under the fault; the bytes until the end of the connection, and the error that ended it if any."""
    envelope_id = emulator.create_envelope()
    received = b""
    with dial(emulator) as connection:
        connection.sendall(raw_post(emulator, envelope_id, fault))
        try:
            while True:
                piece = connection.recv(65536)
                if not piece:
                    return received, None
                received += piece
        except OSError as error:
            return received, error


def test_a_status_is_answered_and_nothing_is_booked(emulator: Emulator) -> None:
    """Any error status, with a JSON body, on a connection that stays open."""
    envelope_id = emulator.create_envelope()

    answer = record(emulator, envelope_id, fault="status;status=503")

    assert answer.status == 503
    assert "error" in answer.json
    assert "retry-after" not in answer.headers
    assert emulator.ledger().events == 0


def test_retry_after_is_seconds_or_a_date(emulator: Emulator) -> None:
    """`Retry-After` has two forms, and a client must read both."""
    envelope_id = emulator.create_envelope()
    now = time.time()

    seconds = record(emulator, envelope_id, fault="status;status=429;retry_after=2")
    date = record(emulator, envelope_id, fault="status;status=429;retry_after=date:60")

    assert (seconds.status, seconds.headers["retry-after"]) == (429, "2")
    assert date.headers["retry-after"].endswith(" GMT")
    ahead = email.utils.parsedate_to_datetime(date.headers["retry-after"]).timestamp() - now
    assert 58 <= ahead <= 70


def test_latency_delays_and_then_books(emulator: Emulator) -> None:
    """The answer is the usual one, later."""
    envelope_id = emulator.create_envelope()
    began = time.monotonic()

    answer = record(emulator, envelope_id, fault="latency;seconds=0.2")

    assert answer.status == 201
    assert time.monotonic() - began >= 0.2
    assert emulator.ledger().events == 1


@pytest.mark.parametrize(("kind", "booked"), [("reset_before", 0), ("reset_after", 1)])
def test_a_reset_is_a_reset_and_not_an_end(emulator: Emulator, kind: str, booked: int) -> None:
    """The client gets RST and no byte; whether the record was booked is what the two kinds differ in."""
    received, error = _exchange(emulator, kind)

    assert received == b""
    assert isinstance(error, ConnectionResetError)
    assert emulator.ledger().events == booked


def test_a_truncated_answer_ends_short_of_its_length(emulator: Emulator) -> None:
    """The record is booked, its answer is cut, and the connection ends in order."""
    received, error = _exchange(emulator, "truncated")

    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert error is None
    assert head.startswith(b"HTTP/1.1 201")
    assert 0 < len(body) < length
    assert emulator.ledger().events == 1


@pytest.mark.parametrize(("kind", "status", "booked"), [("html", 502, 0), ("html_ok", 200, 1)])
def test_a_page_comes_in_place_of_json(emulator: Emulator, kind: str, status: int, booked: int) -> None:
    """As proxies do, also with a status that says all is well."""
    answer = record(emulator, emulator.create_envelope(), fault=kind)

    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.body.startswith(b"<!DOCTYPE html>")
    assert emulator.ledger().events == booked


def test_a_dripping_answer_arrives_whole_and_slowly(emulator: Emulator) -> None:
    """Byte by byte, so that no time-out between two bytes ever runs out."""
    envelope_id = emulator.create_envelope()
    sizes = []
    with dial(emulator) as connection:
        connection.sendall(raw_post(emulator, envelope_id, "drip;seconds=0.3"))
        began = time.monotonic()
        response = http.client.HTTPResponse(connection)
        response.begin()
        while True:
            piece = response.read1(65536)
            if not piece:
                break
            sizes.append(len(piece))

    assert time.monotonic() - began >= 0.3
    assert len(sizes) > 50
    assert emulator.ledger().events == 1


def test_a_hanging_request_is_never_answered(emulator: Emulator) -> None:
    """The connection just ends after its time."""
    began = time.monotonic()

    received, error = _exchange(emulator, "hang;seconds=0.2")

    assert (received, error) == (b"", None)
    assert time.monotonic() - began >= 0.2
    assert emulator.ledger().events == 0


def test_a_client_that_leaves_a_hanging_request_leaves_nothing_behind(emulator: Emulator) -> None:
    """Its time-out is its own; the emulator serves on and stops at once, hanging requests or not."""
    envelope_id = emulator.create_envelope()
    with dial(emulator) as connection:
        connection.settimeout(0.1)
        connection.sendall(raw_post(emulator, envelope_id, "hang;seconds=600"))
        with pytest.raises(socket.timeout):
            connection.recv(1)
        began = time.monotonic()

        emulator.stop()

    assert time.monotonic() - began < 2


def test_a_slow_request_is_booked_though_the_client_has_left(emulator: Emulator) -> None:
    """Latency beyond the client's time-out is the other uncertain case."""
    envelope_id = emulator.create_envelope()
    with dial(emulator) as connection:
        connection.sendall(raw_post(emulator, envelope_id, "latency;seconds=0.1"))

    # This request waits longer than that one did.
    ask(emulator, "GET", "/envelopes", fault="latency;seconds=0.4")

    assert emulator.ledger().events == 1


def test_a_fault_in_the_header_that_is_none_is_400(emulator: Emulator) -> None:
    """A typing error must not pass for a fault that was not drawn."""
    answer = ask(emulator, "GET", "/envelopes", fault="statsu")

    assert answer.status == 400
    assert "kind must be one of" in answer.json["error"]


def test_rules_hold_for_their_method_and_path_and_as_often_as_they_say(emulator: Emulator) -> None:
    """A rule that is spent, or that does not fit, lets the request through."""
    envelope_id = emulator.create_envelope()
    emulator.set_faults(
        Fault.status(500, method="POST", path="/usage", times=2),
        Fault.status(418, path="/envelopes/*"),
    )

    statuses = [record(emulator, envelope_id).status for _ in range(3)]

    assert statuses == [500, 500, 201]
    assert ask(emulator, "GET", "/usage").status == 200
    assert ask(emulator, "GET", f"/envelopes/{envelope_id}").status == 418
    assert emulator.faults_fired() == [2, 1]


def test_cleared_faults_are_gone(emulator: Emulator) -> None:
    """After DELETE every request goes through; the control surface was never touched by any of them."""
    emulator.set_faults(Fault.unavailable())

    emulator.clear_faults()

    assert ask(emulator, "GET", "/envelopes").status == 200
    assert emulator.faults_fired() == []


def test_faults_may_hold_from_the_start() -> None:
    """Also in a thread, and with the seed that makes them repeatable."""
    with Emulator(faults=[Fault.rate_limited(retry_after=1, path="/envelopes")]) as emulator:
        answer = ask(emulator, "GET", "/envelopes")

    assert (answer.status, answer.headers["retry-after"]) == (429, "1")


def test_a_share_is_drawn_from_its_seed() -> None:
    """The same seed draws the same requests, and about that share of them."""
    one, other = (FaultScript([Rule("status", share=0.2, seed=7)]) for _ in range(2))

    drawn = [one.draw("POST", "/usage") is not None for _ in range(2000)]

    assert drawn == [other.draw("POST", "/usage") is not None for _ in range(2000)]
    assert 0.15 < sum(drawn) / len(drawn) < 0.25


def test_the_first_rule_that_is_drawn_happens() -> None:
    """Rules stand in order; a spent one gives way to the next."""
    script = FaultScript([Rule("html", times=1), Rule("hang")])

    kinds = [fault.kind for fault in (script.draw("GET", "/usage") for _ in range(3)) if fault is not None]

    assert kinds == ["html", "hang", "hang"]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"kind": "nonsense"}, "kind"),
        ({"kind": "status", "share": 0}, "share"),
        ({"kind": "status", "share": 1.1}, "share"),
        ({"kind": "status", "share": "much"}, "share"),
        ({"kind": "status", "times": -1}, "times"),
        ({"kind": "status", "status": 200}, "status"),
        ({"kind": "status", "status": 600}, "status"),
        ({"kind": "status", "retry_after": "soon"}, "retry_after"),
        ({"kind": "status", "retry_after": "date:soon"}, "retry_after"),
        ({"kind": "status", "retry_after": -1}, "retry_after"),
        ({"kind": "hang", "seconds": -1}, "seconds"),
        ({"kind": "hang", "seconds": float("nan")}, "seconds"),
        ({"kind": "hang", "path": 7}, "path"),
        ({"kind": "hang", "seed": "x"}, "seed"),
        ({"kind": "hang", "colour": "red"}, "colour"),
        ({}, "kind"),
        ([], "kind"),
    ],
)
def test_a_rule_that_cannot_be_carried_out_is_refused(document: Any, field: str) -> None:
    """When it is made, with the name of the field."""
    with pytest.raises(BadFault, match=field):
        Rule.from_json(document)


def test_a_bad_rule_changes_nothing(emulator: Emulator) -> None:
    """The rules before it stay in force, and the test is told."""
    emulator.set_faults(Fault.unavailable())

    with pytest.raises(EmulatorError, match="share"):
        emulator.set_faults(Fault.status(500, share=2.0))

    assert ask(emulator, "GET", "/envelopes").status == 503


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(500, share=0.25, times=3, method="POST", path="/usage", seed=1),
        Fault.rate_limited(retry_after=1.5),
        Fault.unavailable(retry_after="date:2"),
        Fault.latency(0.5),
        Fault.reset_before_commit(),
        Fault.reset_after_commit(),
        Fault.truncated(),
        Fault.html_error(),
        Fault.html_ok(),
        Fault.drip(1),
        Fault.hang(),
    ],
)
def test_every_helper_says_the_same_in_json_and_in_short(fault: Fault) -> None:
    """What tests write by hand, what a header holds and what the emulator reads are one rule."""
    assert Rule.from_text(fault.to_header()) == Rule.from_json(fault.to_json())
