"""What `record` hands back at once, what it refuses, and what is sent later: exactly what was passed to it."""

from __future__ import annotations

import math
import pathlib
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, stored_posts
from x402tools import Usage, UsageBuffer, X402Client
from x402tools.errors import BufferClosedError, QueueFullError, ValidationError
from x402tools.testing import Emulator


@pytest.fixture
def buffer(tmp_spool: pathlib.Path) -> Iterator[UsageBuffer]:
    """A buffer without a destination: it stores."""
    with UsageBuffer(tmp_spool, exit_timeout=0.5) as made:
        yield made


def test_a_record_is_a_usage_that_is_pending(buffer: UsageBuffer) -> None:
    """Code written for the synchronous call finds the fields it knows."""
    before = datetime.now(timezone.utc)

    usage = buffer.record("env_1", 5, {"endpoint": "/api/users"})

    assert isinstance(usage, Usage)
    assert (usage.envelope_id, usage.amount, usage.metadata) == ("env_1", 5, {"endpoint": "/api/users"})
    assert usage.pending is True
    assert usage.id
    assert before - timedelta(seconds=1) <= usage.timestamp <= datetime.now(timezone.utc)
    assert usage.timestamp.tzinfo is not None


def test_a_record_compares_and_prints_as_a_usage(buffer: UsageBuffer) -> None:
    """Also before anybody has looked at one of its fields."""
    usage = buffer.record("env_1", 5)
    twin = buffer.record("env_1", 5)

    assert "env_1" in repr(usage)
    assert usage == Usage(usage.id, "env_1", 5, usage.timestamp, None, True) or type(usage) is not Usage
    assert usage != twin


def test_the_id_is_the_idempotency_key_and_the_fields_are_sent(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """The whole way: what the service books has the key, the envelope, the amount and the metadata of the record."""
    envelope = emulator.create_envelope()
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool)) as client:
        plain = client.record_usage(envelope, 5)
        rich = client.record_usage(envelope, 7, {"path": "/ü", "tags": ["a", {"b": None}], "n": 1.5})
        flushed = client.flush(10)

    booked = {event.idempotency_key: event for event in emulator.events()}
    assert flushed
    assert set(booked) == {plain.id, rich.id}
    assert (booked[plain.id].amount, booked[plain.id].metadata) == (5, None)
    assert (booked[rich.id].amount, booked[rich.id].metadata) == (7, rich.metadata)


def test_ids_are_never_the_same(tmp_path: pathlib.Path) -> None:
    """From eight threads, from two buffers, from a buffer that was opened again."""
    ids: List[str] = []

    for name in ("one.db", "two.db", "one.db"):
        with UsageBuffer(tmp_path / name, exit_timeout=0.5) as buffer:
            found: List[List[str]] = [[] for _ in range(8)]
            threads = [
                threading.Thread(target=lambda mine=mine: mine.extend(buffer.record("e", 1).id for _ in range(200)))
                for mine in found
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            ids.extend(one for mine in found for one in mine)

    assert len(ids) == len(set(ids)) == 3 * 8 * 200


def test_a_key_of_ones_own(buffer: UsageBuffer, tmp_spool: pathlib.Path) -> None:
    """It is the id, and the POST is sent under it."""
    usage = buffer.record("env_1", 5, idempotency_key="order-4711")
    buffer.close()

    assert usage.id == "order-4711"
    assert [post.key for post in stored_posts(tmp_spool)] == ["order-4711"]


def test_a_key_that_comes_twice_is_booked_once(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """The service sees the same key both times; the ledger counts both as delivered."""
    envelope = emulator.create_envelope()
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool)) as client:
        for _ in range(2):
            client.record_usage(envelope, 5, idempotency_key="order-4711")
        flushed = client.flush(10)
        delivered = client.buffer.stats().delivered if client.buffer else None

    assert flushed
    assert delivered == (2, 10)
    assert (emulator.ledger().events, emulator.ledger().repeats_dropped) == (1, 1)


def test_metadata_is_what_it_was_at_the_call(buffer: UsageBuffer, tmp_spool: pathlib.Path) -> None:
    """Whatever the caller does with his dict afterwards, flat or nested; and whatever he does with the record's."""
    flat: Dict[str, Any] = {"a": 1}
    nested: Dict[str, Any] = {"list": [1, {"deep": True}]}
    first, second = buffer.record("env", 1, flat), buffer.record("env", 2, nested)

    flat["a"] = 2
    flat["b"] = object()
    nested["list"].append(3)
    nested["list"][1]["deep"] = False
    seen = first.metadata, second.metadata
    assert first.metadata is not None
    first.metadata["a"] = 99
    buffer.close()

    assert seen[1] == {"list": [1, {"deep": True}]}
    posts = stored_posts(tmp_spool)
    assert [b'"metadata":{"a":1}' in posts[0].body(), b'"deep":true' in posts[1].body()] == [True, True]


CIRCULAR: Dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
DEEP: Dict[str, Any] = {}
_inner = DEEP
for _ in range(5000):
    _inner["x"] = {}
    _inner = _inner["x"]

REFUSED: Dict[str, Dict[str, Any]] = {
    "a negative amount": {"amount": -1},
    "a bool for an amount": {"amount": True},
    "a float for an amount": {"amount": 1.0},
    "text for an amount": {"amount": "5"},
    "no amount": {"amount": None},
    "an amount beyond JSON": {"amount": 2**53},
    "an absurd amount": {"amount": 10**30},
    "no envelope": {"envelope_id": ""},
    "a number for an envelope": {"envelope_id": 5},
    "None for an envelope": {"envelope_id": None},
    "a list for an envelope": {"envelope_id": ["env"]},
    "a dot for an envelope": {"envelope_id": "."},
    "a line end in an envelope": {"envelope_id": "env\r\n"},
    "a lone surrogate in an envelope": {"envelope_id": "\ud800"},
    "a page for an envelope": {"envelope_id": "e" * 10_000},
    "a list for metadata": {"metadata": [1]},
    "text for metadata": {"metadata": "a"},
    "a number for a key": {"metadata": {1: 2}},
    "bytes in metadata": {"metadata": {"a": b"x"}},
    "a set in metadata": {"metadata": {"a": {1}}},
    "NaN in metadata": {"metadata": {"a": math.nan}},
    "infinity deep in metadata": {"metadata": {"a": [{"b": math.inf}]}},
    "a lone surrogate in metadata": {"metadata": {"a": "\ud800"}},
    "an object in metadata": {"metadata": {"a": object()}},
    "a circle in metadata": {"metadata": CIRCULAR},
    "a well in metadata": {"metadata": DEEP},
    "a book in metadata": {"metadata": {"a": "x" * 70_000}},
    "an empty key": {"idempotency_key": ""},
    "a key with a space": {"idempotency_key": "a b"},
    "a key with a line end": {"idempotency_key": "a\n"},
    "a key that is not ASCII": {"idempotency_key": "ä"},
    "a page for a key": {"idempotency_key": "k" * 256},
    "a number for a key of one's own": {"idempotency_key": 5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_stored(buffer: UsageBuffer, name: str) -> None:
    """ValidationError in the caller, which is a ValueError too; the ledger has not moved."""
    arguments: Dict[str, Any] = {"envelope_id": "env_1", "amount": 1, **REFUSED[name]}

    with pytest.raises(ValidationError):
        buffer.record(**arguments)

    assert buffer.stats().recorded == (0, 0)


@pytest.mark.parametrize("amount", [0, 1, 2**53 - 1])
def test_amounts_from_zero_to_the_largest_are_taken(buffer: UsageBuffer, amount: int) -> None:
    """And counted to the last unit."""
    buffer.record("env_1", amount)

    assert buffer.stats().recorded == (1, amount)


@pytest.mark.parametrize(
    "options",
    [
        {"durability": "maybe"},
        {"on_queue_full": "explode"},
        {"flush_at": 0},
        {"flush_at": True},
        {"flush_interval": -1},
        {"flush_interval": math.nan},
        {"flush_interval": "1"},
        {"max_concurrency": 0},
        {"max_queue_size": 0},
        {"max_disk_bytes": 0},
        {"max_attempts": 0},
        {"exit_timeout": -0.1},
        {"exit_timeout": math.inf},
    ],
    ids=str,
)
def test_bad_options_are_refused(tmp_spool: pathlib.Path, options: Dict[str, Any]) -> None:
    """The message names the option, and no file is made."""
    with pytest.raises(ValidationError, match=next(iter(options))):
        UsageBuffer(tmp_spool, **options)

    assert not tmp_spool.exists()


def test_a_buffer_serves_one_base_url(buffer: UsageBuffer) -> None:
    """A second client with the same URL is welcome, one with another is refused."""
    deliver = ScriptedDelivery()
    buffer.attach(deliver, URL)
    buffer.attach(deliver, URL)

    with pytest.raises(ValidationError, match="base_url"):
        buffer.attach(deliver, URL + "/other")


def test_record_after_close_is_refused(buffer: UsageBuffer) -> None:
    """One clear error, and nothing stored; looking at the ledger still works."""
    buffer.record("env_1", 1)
    buffer.close()

    with pytest.raises(BufferClosedError):
        buffer.record("env_1", 1)
    with pytest.raises(BufferClosedError):
        buffer.flush(1)

    assert buffer.stats().recorded == (1, 1)
    assert len(buffer) == 1


def test_an_empty_buffer_is_still_true(buffer: UsageBuffer) -> None:
    """`if buffer:` asks whether there is one, not whether it is empty."""
    assert len(buffer) == 0
    assert buffer


def test_the_key_never_reaches_the_spool(tmp_path: pathlib.Path) -> None:
    """Nor anything else of the client's."""
    with X402Client("sk_very_secret", URL, buffer=UsageBuffer(tmp_path / "usage.db", exit_timeout=0.2)) as client:
        client.record_usage("env_1", 1)
        described = repr(client) + repr(client.buffer)

    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"very_secret" not in content
    assert "very_secret" not in described


def test_recording_is_quick(buffer: UsageBuffer) -> None:
    """Two thousand records take a fraction of a second; the median call a few microseconds."""
    calls = []

    for _ in range(2000):
        before = time.perf_counter()
        buffer.record("env_1", 1, {"endpoint": "/api/users", "status": 200})
        calls.append(time.perf_counter() - before)

    print(f"median {sorted(calls)[1000] * 1e6:.1f} µs, 99 % {sorted(calls)[1980] * 1e6:.0f} µs")
    assert sorted(calls)[1000] < 100e-6


def test_errors_say_whether_trying_again_can_help() -> None:
    """None of the buffer's own can be mended by trying again."""
    assert not QueueFullError("full").retryable
    assert not BufferClosedError("closed").retryable
