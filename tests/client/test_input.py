"""Amounts, metadata and the fields of an envelope: what is not right is refused in the call, and nothing is sent."""

from __future__ import annotations

import datetime
import decimal
import fractions
from typing import Any, Dict, List

import pytest

from tests.client import documents
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import Exchange, refuses, says
from x402tools import ValidationError


class WholeNumber:
    """What a number of numpy looks like: no int, but can be made one."""

    def __index__(self) -> int:
        return 5

    def __int__(self) -> int:
        return 5


class SubclassOfInt(int):
    """An int with something added, such as an IntEnum."""


def circular() -> Dict[str, Any]:
    """Metadata that contains itself."""
    metadata: Dict[str, Any] = {}
    metadata["self"] = metadata
    return metadata


def nested(depth: int) -> Dict[str, Any]:
    """Lists within lists, so many of them."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"value": value}


AMOUNTS = [
    -1, True, False, 1.0, 1.5, 0.0, "5", "", b"5", decimal.Decimal(5), fractions.Fraction(5), WholeNumber(),
    SubclassOfInt(5), None, float("nan"), float("inf"), -float("inf"), 10**30, -(10**30), 10**5000, 2**63, 2**53, [5],
    {}, 5j,
]  # fmt: skip

METADATA = {
    "list": [1],
    "empty list": [],
    "text": "a",
    "empty text": "",
    "number": 5,
    "zero": 0,
    "False": False,
    "pairs": [("a", 1)],
    "key that is a number": {1: "a"},
    "keys that JSON makes one": {1: "a", "1": "b"},
    "key that is None": {None: 1},
    "key that is True": {True: 1},
    "key that is a float": {1.5: 1},
    "key that is bytes": {b"a": 1},
    "key that is a tuple": {(1, 2): 1},
    "inner key that is a number": {"a": {1: "a"}},
    "key in a list that is a number": {"a": [{1: "a"}]},
    "set": {"a": {1}},
    "bytes": {"a": b"x"},
    "datetime": {"a": datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)},
    "Decimal": {"a": decimal.Decimal("1.5")},
    "object": {"a": object()},
    "function": {"a": len},
    "complex": {"a": 5j},
    "NaN": {"a": float("nan")},
    "infinity": {"a": float("inf")},
    "minus infinity, deep": {"a": [{"b": -float("inf")}]},
    "circular": circular(),
    "33 deep": nested(33),
    "a hundred thousand deep": nested(100_000),
    "65 kB": {"a": "x" * 65_536},
    "10 MB": {"a": "x" * 10_000_000},
    "a million keys": dict.fromkeys(map(str, range(1_000_000)), 1),
    "a million numbers": {"a": [0.5] * 1_000_000},
    "lone surrogate": {"a": "\ud800"},
    "lone surrogate, deep": {"a": [["\udfff"]]},
    "lone surrogate as a key": {"\ud800": 1},
}

GOOD_METADATA: List[Dict[str, Any]] = [
    {"a": None, "b": True, "c": False, "d": 0, "e": -1, "f": 1.5, "g": "", "h": [], "i": {}},
    {"a": 2**53, "b": -(2**63), "c": 2**63, "d": 10**40},
    {"": 1},
    {"ü": "日本 🙂", "\u2028": "\x00\x1f"},
    {"a": {"b": {"c": [1, [2, [3]]]}}},
    {f"k{i}": i for i in range(200)},
    {"a": "x" * 65_000},
    nested(30),
]


@pytest.mark.parametrize("amount", AMOUNTS, ids=lambda amount: repr(amount)[:30] if not isinstance(amount, int) else "")
def test_amount_that_is_none_is_refused(amount: Any, serve: Serve, connect: Connect) -> None:
    """A ValidationError that names the argument, whether or not 1.0.0 would have sent it."""
    server = serve()

    with pytest.raises(ValidationError, match="amount") as caught:
        connect(server).record_usage("env_1", amount)

    assert caught.value.status_code is None
    assert len(str(caught.value)) < 300
    assert server.connections == 0


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_json_cannot_say_is_refused(kind: str, serve: Serve, connect: Connect) -> None:
    """A ValidationError in the call, with a message that can be logged."""
    server = serve()

    with pytest.raises(ValidationError, match="metadata") as caught:
        connect(server).record_usage("env_1", 1, METADATA[kind])

    assert caught.value.status_code is None
    assert len(str(caught.value)) < 400
    assert server.connections == 0


@pytest.mark.parametrize("kind", ["65 kB", "10 MB", "a million numbers"])
def test_size_limit_is_named(kind: str, serve: Serve, connect: Connect) -> None:
    """Whoever runs into it learns what it is."""
    with pytest.raises(ValidationError, match="65536"):
        connect(serve()).record_usage("env_1", 1, METADATA[kind])


@pytest.mark.parametrize("metadata", GOOD_METADATA, ids=lambda metadata: repr(metadata)[:30])
def test_metadata_arrives_as_it_was(metadata: Dict[str, Any], serve: Serve, connect: Connect) -> None:
    """Everything JSON can say comes through unchanged."""
    server = serve(says(documents.usage()))

    connect(server).record_usage("env_1", 1, metadata)

    assert server.requests[0].json["metadata"] == metadata


def test_metadata_is_not_changed(serve: Serve, connect: Connect) -> None:
    """The caller's own dict stays the caller's."""
    metadata = {"a": [1, 2], "b": {"c": "d"}}
    server = serve(says(documents.usage()))

    connect(server).record_usage("env_1", 1, metadata)

    assert metadata == {"a": [1, 2], "b": {"c": "d"}}


def test_metadata_changed_between_attempts_is_sent_as_it_was(serve: Serve, connect: Connect) -> None:
    """The second attempt repeats the first, whatever the caller has done to the dict in the meantime."""
    metadata: Dict[str, Any] = {"a": 1, "b": [1]}

    def change_it(exchange: Exchange) -> bool:
        metadata["a"] = 2
        metadata["b"] = []
        return refuses(503)(exchange)

    server = serve(change_it, says(documents.usage()))

    connect(server).record_usage("env_1", 1, metadata)

    first, second = server.requests
    assert first.body == second.body
    assert second.json["metadata"] == {"a": 1, "b": [1]}


ENVELOPE_FIELDS = [
    ("name", ""), ("name", 5), ("name", b"N"), ("name", "x" * 1001), ("name", "\ud800"), ("name", ["N"]),
    ("limit", -1), ("limit", 1.0), ("limit", True), ("limit", "5"), ("limit", 2**53), ("limit", float("nan")),
    ("period", ""), ("period", "daily"), ("period", "HOURLY"), ("period", 5), ("period", ["DAILY"]), ("period", {}),
    ("reset_day", -1), ("reset_day", 1.0), ("reset_day", True), ("reset_day", "1"), ("reset_day", 367),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), ENVELOPE_FIELDS, ids=lambda part: ascii(part)[:20])
def test_field_of_an_envelope_that_is_none_is_refused(field: str, value: Any, serve: Serve, connect: Connect) -> None:
    """When it is created and when it is changed; the message names the argument, and nothing is sent."""
    server = serve()
    client = connect(server)
    good = {"name": "N", "limit": 1, "period": "DAILY"}

    with pytest.raises(ValidationError, match=field):
        client.create_envelope(**{**good, field: value})
    with pytest.raises(ValidationError, match=field):
        client.update_envelope("env_1", **{field: value})

    assert server.connections == 0


@pytest.mark.parametrize("field", ["name", "limit", "period"])
def test_field_that_an_envelope_needs_is_asked_for(field: str, serve: Serve, connect: Connect) -> None:
    """None is no value for a field of a new envelope."""
    server = serve()
    fields: Dict[str, Any] = {"name": "N", "limit": 1, "period": "DAILY", field: None}

    with pytest.raises(ValidationError, match=field):
        connect(server).create_envelope(**fields)

    assert server.connections == 0


@pytest.mark.parametrize("name", ["", None, 5, b"N", "x" * 1001, "\ud800"], ids=lambda name: ascii(name)[:20])
def test_name_of_a_key_that_is_none_is_refused(name: Any, serve: Serve, connect: Connect) -> None:
    """The name of an API key is text of some length."""
    server = serve()

    with pytest.raises(ValidationError, match="name"):
        connect(server).create_api_key(name)

    assert server.connections == 0
