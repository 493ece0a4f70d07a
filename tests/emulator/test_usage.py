"""The calls on usage, as they look on the wire."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.emulator.wire import ask, record
from x402tools.testing import Emulator

MEBIBYTE = 1024 * 1024


def test_a_record_is_answered_whole(emulator: Emulator) -> None:
    """POST /usage answers 201 with every field."""
    envelope_id = emulator.create_envelope()
    metadata = {"user": "ü\U0001f600", "half": "\ud800", "deep": {"list": [1, None, 2.5]}}

    answer = ask(emulator, "POST", "/usage", {"envelopeId": envelope_id, "amount": 3, "metadata": metadata})

    booked = answer.json
    assert answer.status == 201
    assert set(booked) == {"id", "envelopeId", "amount", "timestamp", "metadata"}
    assert (booked["envelopeId"], booked["amount"], booked["metadata"]) == (envelope_id, 3, metadata)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", booked["timestamp"])


@pytest.mark.parametrize(("sent", "booked"), [(0, 0), (2**53 - 1, 2**53 - 1), (4116.0, 4116)])
def test_whole_numbers_are_amounts(emulator: Emulator, sent: Any, booked: int) -> None:
    """From 0 to the greatest exact number of JavaScript; 4116.0 is the whole number 4116, as in JSON Schema."""
    envelope_id = emulator.create_envelope()

    answer = record(emulator, envelope_id, sent)

    assert (answer.status, answer.json["amount"]) == (201, booked)
    assert type(answer.json["amount"]) is int


@pytest.mark.parametrize("amount", [-1, 1.5, 2**53, 1e300, True, "1", None, [], {}])
def test_anything_else_is_not(emulator: Emulator, amount: Any) -> None:
    """An amount that is not a whole number in range is refused with 400, and nothing is booked."""
    envelope_id = emulator.create_envelope()

    answer = record(emulator, envelope_id, amount)

    assert answer.status == 400
    assert answer.json["error"].startswith("amount")
    assert emulator.ledger().events == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
@pytest.mark.parametrize("field", ["amount", "metadata"])
def test_numbers_that_json_does_not_have_are_refused(emulator: Emulator, number: str, field: str) -> None:
    """What Python's reader would let through is 400 all the same, but for a whole number of any length in metadata."""
    values = {"envelopeId": f'"{emulator.create_envelope()}"', "amount": "1"}
    values[field] = number if field == "amount" else f'{{"n": {number}}}'
    body = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"

    answer = ask(emulator, "POST", "/usage", body.encode("ascii"))

    is_long_metadata = field == "metadata" and number.isdigit()
    assert answer.status == 400 or (is_long_metadata and answer.status == 201)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"amount": 1} trailing']
)
def test_a_body_that_is_no_json_object_is_refused(emulator: Emulator, body: bytes) -> None:
    """400 with a message on the body, and the emulator lives on."""
    answer = ask(emulator, "POST", "/usage", body)

    assert answer.status == 400
    assert answer.json["error"].startswith("the body")


@pytest.mark.parametrize("envelope_id", [None, 7, "", "e" * 256, "\ud800"])
def test_an_envelope_id_that_can_be_none_is_refused(emulator: Emulator, envelope_id: Any) -> None:
    """An id of the wrong type or length is 400, not 404."""
    answer = record(emulator, envelope_id)

    assert answer.status == 400
    assert answer.json["error"].startswith("envelopeId")


@pytest.mark.parametrize("metadata", [[], "text", 1, False])
def test_metadata_must_be_an_object(emulator: Emulator, metadata: Any) -> None:
    """Anything but an object, null or nothing is 400."""
    document = {"envelopeId": emulator.create_envelope(), "amount": 1, "metadata": metadata}

    answer = ask(emulator, "POST", "/usage", document)

    assert (answer.status, answer.json) == (400, {"error": "metadata must be an object"})


def test_an_unknown_envelope_is_404(emulator: Emulator) -> None:
    """A record for an envelope that is not there is refused, in JSON."""
    answer = record(emulator, "nowhere")

    assert (answer.status, answer.json) == (404, {"error": "Envelope not found"})


def test_a_body_above_a_mebibyte_is_413(emulator: Emulator) -> None:
    """The client can send all of it, gets an answer, and the connection is not broken."""
    document = {"envelopeId": emulator.create_envelope(), "amount": 1, "metadata": {"filler": "x" * MEBIBYTE}}

    answer = ask(emulator, "POST", "/usage", document)

    assert answer.status == 413
    assert emulator.ledger().events == 0


def test_usage_is_a_bare_list_in_the_order_of_booking(emulator: Emulator) -> None:
    """GET /usage lists all of it, GET /usage?envelopeId= that of one envelope."""
    one, other = emulator.create_envelope(), emulator.create_envelope()
    for envelope_id, amount in ((one, 1), (other, 2), (one, 3)):
        record(emulator, envelope_id, amount)

    everything = ask(emulator, "GET", "/usage").json
    of_one = ask(emulator, "GET", f"/usage?envelopeId={one}").json

    assert [usage["amount"] for usage in everything] == [1, 2, 3]
    assert [usage["amount"] for usage in of_one] == [1, 3]
    assert ask(emulator, "GET", "/usage?envelopeId=nowhere").json == []


def test_an_empty_history_is_an_empty_list(emulator: Emulator) -> None:
    """GET /usage with nothing booked is `[]`."""
    assert ask(emulator, "GET", "/usage").body == b"[]"


def test_the_newest_usage_may_come_first() -> None:
    """The order of the list is a choice, and it holds across the pages in which the list is read."""
    with Emulator(choices={"newest_usage_first": True}) as emulator:
        envelope_id = emulator.create_envelope()
        for amount in (1, 2, 3):
            record(emulator, envelope_id, amount)

        amounts = [usage["amount"] for usage in ask(emulator, "GET", "/usage").json]

    assert amounts == [3, 2, 1]


def test_statistics_are_sums(emulator: Emulator) -> None:
    """GET /usage/stats adds up all usage and tells of each envelope's current period."""
    used, unused = emulator.create_envelope("used", limit=100), emulator.create_envelope("unused", period="YEARLY")
    record(emulator, used, 40)
    record(emulator, used, 2)

    stats = ask(emulator, "GET", "/usage/stats").json

    assert {name: stats[name] for name in ("totalUsage", "envelopeCount", "activeEnvelopes")} == {
        "totalUsage": 42,
        "envelopeCount": 2,
        "activeEnvelopes": 1,
    }
    assert [(entry["envelopeId"], entry["used"]) for entry in stats["periodUsage"]] == [(used, 42), (unused, 0)]
    assert set(stats["periodUsage"][0]) == {"envelopeId", "name", "used", "limit", "period", "periodStart"}
    assert stats["periodUsage"][1]["periodStart"].endswith("-01-01T00:00:00.000Z")


def test_sums_beyond_64_bits_are_exact() -> None:
    """The database could not add these up by itself; a restart would have to."""
    without_limits = Emulator(choices={"enforce_limits": False})
    greatest, times = 2**53 - 1, 1100

    with without_limits as emulator:
        envelope_id = emulator.create_envelope()
        body = json.dumps({"envelopeId": envelope_id, "amount": greatest}).encode("ascii")
        for _ in range(times):
            assert ask(emulator, "POST", "/usage", body).status == 201
        # A change of the envelope has its usage counted again from the database.
        ask(emulator, "PUT", f"/envelopes/{envelope_id}", {"name": "counted again"})

        stats = ask(emulator, "GET", "/usage/stats").json

    assert stats["totalUsage"] == stats["periodUsage"][0]["used"] == greatest * times
