"""The calls on envelopes, as they look on the wire."""

from __future__ import annotations

import re

import pytest

from tests.emulator.wire import ask, record
from x402tools.testing import Emulator

JAVASCRIPT_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NEW = {"name": "API Calls", "limit": 10000, "period": "MONTHLY", "resetDay": 1}


def test_a_new_envelope_is_answered_whole(emulator: Emulator) -> None:
    """POST /envelopes answers 201 with every field, in camelCase, and times as JavaScript prints them."""
    answer = ask(emulator, "POST", "/envelopes", NEW)

    made = answer.json
    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    assert set(made) == {"id", "name", "limit", "period", "resetDay", "organizationId", "createdAt", "updatedAt"}
    assert {field: made[field] for field in NEW} == NEW
    assert JAVASCRIPT_TIME.fullmatch(made["createdAt"])
    assert JAVASCRIPT_TIME.fullmatch(made["updatedAt"])


def test_the_reset_day_may_be_left_out(emulator: Emulator) -> None:
    """Without resetDay the envelope has null there."""
    answer = ask(emulator, "POST", "/envelopes", {"name": "n", "limit": 0, "period": "DAILY"})

    assert (answer.status, answer.json["resetDay"]) == (201, None)


def test_envelopes_are_a_bare_list_in_the_order_they_were_made(emulator: Emulator) -> None:
    """GET /envelopes is a list and nothing around it."""
    first, second = emulator.create_envelope("first"), emulator.create_envelope("second")

    answer = ask(emulator, "GET", "/envelopes")

    assert [envelope["id"] for envelope in answer.json] == [first, second]


def test_one_envelope_is_the_one_in_the_list(emulator: Emulator) -> None:
    """GET /envelopes/{id} shows what the list shows."""
    envelope_id = emulator.create_envelope()

    answer = ask(emulator, "GET", f"/envelopes/{envelope_id}")

    assert answer.status == 200
    assert [answer.json] == ask(emulator, "GET", "/envelopes").json


def test_an_update_changes_only_what_it_names(emulator: Emulator) -> None:
    """PUT leaves absent fields alone."""
    envelope_id = ask(emulator, "POST", "/envelopes", NEW).json["id"]

    answer = ask(emulator, "PUT", f"/envelopes/{envelope_id}", {"limit": 20000})

    assert answer.status == 200
    assert {field: answer.json[field] for field in NEW} == {**NEW, "limit": 20000}


def test_a_null_reset_day_clears_it(emulator: Emulator) -> None:
    """PUT with resetDay null is not the same as PUT without it."""
    envelope_id = ask(emulator, "POST", "/envelopes", NEW).json["id"]

    answer = ask(emulator, "PUT", f"/envelopes/{envelope_id}", {"resetDay": None})

    assert answer.json["resetDay"] is None


def test_a_deleted_envelope_is_gone_and_its_usage_is_not(emulator: Emulator) -> None:
    """DELETE answers 204 with no body; what was booked stays booked."""
    envelope_id = emulator.create_envelope()
    record(emulator, envelope_id, 7)

    answer = ask(emulator, "DELETE", f"/envelopes/{envelope_id}")

    assert (answer.status, answer.body) == (204, b"")
    assert ask(emulator, "GET", f"/envelopes/{envelope_id}").status == 404
    assert record(emulator, envelope_id).status == 404
    assert emulator.ledger().units == 7
    assert [usage["amount"] for usage in ask(emulator, "GET", "/usage").json] == [7]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_unknown_envelope_is_404(emulator: Emulator, method: str) -> None:
    """Every call on an envelope that is not there says so, in JSON."""
    answer = ask(emulator, method, "/envelopes/nowhere", {})

    assert (answer.status, answer.json) == (404, {"error": "Envelope not found"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "n" * 256}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"limit": -1}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": "10"}, "limit"),
        ({"limit": 2**53}, "limit"),
        ({"period": "HOURLY"}, "period"),
        ({"period": ["DAILY"]}, "period"),
        ({"resetDay": 0}, "resetDay"),
        ({"resetDay": 32}, "resetDay"),
        ({"resetDay": "1"}, "resetDay"),
    ],
)
@pytest.mark.parametrize("call", ["create", "update"])
def test_a_bad_field_is_named(emulator: Emulator, call: str, changes: object, field: str) -> None:
    """A value that is not allowed is refused with 400 and a message that begins with the field."""
    assert isinstance(changes, dict)
    method, path = ("POST", "/envelopes") if call == "create" else ("PUT", f"/envelopes/{emulator.create_envelope()}")
    before = ask(emulator, "GET", "/envelopes").json

    answer = ask(emulator, method, path, {**NEW, **changes})

    assert answer.status == 400
    assert answer.json["error"].startswith(field)
    assert ask(emulator, "GET", "/envelopes").json == before


@pytest.mark.parametrize("field", ["name", "limit", "period"])
def test_a_missing_field_is_named(emulator: Emulator, field: str) -> None:
    """name, limit and period are required of a new envelope."""
    document = {name: value for name, value in NEW.items() if name != field}

    answer = ask(emulator, "POST", "/envelopes", document)

    assert (answer.status, answer.json) == (400, {"error": f"{field} is required"})
