"""I1 to I10 of the fault catalogue: what callers pass, refused at the call with a word about what would be right."""

from __future__ import annotations

import decimal
import pickle
import threading
from typing import Any, Dict, Iterator

import pytest

from x402tools import UsageBuffer, ValidationError, X402Client
from x402tools.testing import Emulator

SECRET = "sk_not_to_be_seen"


@pytest.fixture
def buffer(tmp_path: Any) -> Iterator[UsageBuffer]:
    with UsageBuffer(tmp_path / "usage.db", deliver=False) as buffer:
        yield buffer


AMOUNTS = [-1, True, 1.0, 1.5, "5", decimal.Decimal(5), None, float("nan"), float("inf"), 10**30, 2**63, 2**53]


@pytest.mark.parametrize("amount", AMOUNTS, ids=repr)
def test_I01_amounts_that_are_none(amount: Any, buffer: UsageBuffer) -> None:
    """Refused by name, and nothing is stored."""
    with pytest.raises(ValidationError, match="amount"):
        buffer.record("env", amount)

    assert len(buffer) == 0


@pytest.mark.parametrize("amount", [0, 1, 2**53 - 1])
def test_I01_amounts_that_are(amount: int, buffer: UsageBuffer) -> None:
    """Zero and the largest exact number are accepted."""
    assert buffer.record("env", amount).pending

    assert buffer.stats().recorded.units == amount


IDS = ["", ".", "..", "a\r\nb", "a\0b", "x" * 10_000, "\ud800", b"env", 5, None]


@pytest.mark.parametrize("envelope_id", IDS, ids=ascii)
def test_I02_ids_that_are_none(envelope_id: Any, buffer: UsageBuffer) -> None:
    """Refused by name, and nothing is stored."""
    with pytest.raises(ValidationError, match="envelope_id"):
        buffer.record(envelope_id, 1)

    assert len(buffer) == 0


def _deep() -> Dict[str, Any]:
    metadata: Dict[str, Any] = {}
    for _ in range(100_000):
        metadata = {"deeper": metadata}
    return metadata


def _circular() -> Dict[str, Any]:
    metadata: Dict[str, Any] = {}
    metadata["itself"] = metadata
    return metadata


METADATA = {
    "a list": lambda: [1], "a text": lambda: "x", "a key that is no str": lambda: {1: 1},
    "two keys": lambda: {1: 1, "1": 2},
    "a set": lambda: {"a": {1}}, "bytes": lambda: {"a": b"x"}, "a Decimal": lambda: {"a": decimal.Decimal(1)},
    "an object": lambda: {"a": object()}, "NaN": lambda: {"a": float("nan")}, "deep NaN": lambda: {"a": [float("inf")]},
    "circular": _circular, "deep": _deep, "10 MB": lambda: {"a": "x" * 10**7},
    "a million keys": lambda: {str(n): n for n in range(10**6)}, "a lone surrogate": lambda: {"a": "\ud800"},
}  # fmt: skip


@pytest.mark.parametrize("what", METADATA)
def test_I03_metadata_that_is_none(what: str, buffer: UsageBuffer) -> None:
    """Refused at the call, and nothing is stored."""
    with pytest.raises(ValidationError, match="metadata"):
        buffer.record("env", 1, METADATA[what]())

    assert len(buffer) == 0


def test_I04_metadata_changed_afterwards(tmp_path: Any) -> None:
    """What was passed at the time of the call is sent, flat or nested."""
    with Emulator() as emulator:
        with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_path / "usage.db")) as client:
            envelope = emulator.create_envelope()
            flat, nested = {"a": 1}, {"a": [1]}
            client.record_usage(envelope, 1, flat)
            client.record_usage(envelope, 1, nested)
            flat["a"], nested["a"][0] = 2, 2
            assert client.flush(10)

        assert sorted(str(event.metadata) for event in emulator.events()) == ["{'a': 1}", "{'a': [1]}"]


def test_I04_metadata_changed_by_another_thread(buffer: UsageBuffer) -> None:
    """Stored or refused, never half, and never another exception."""
    metadata: Dict[str, Any] = {"list": []}
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            metadata[str(number % 50)] = number
            metadata.pop(str((number + 25) % 50), None)

    thread = threading.Thread(target=change)
    thread.start()
    stored = 0
    for _ in range(2000):
        try:
            stored += buffer.record("env", 1, metadata).pending
        except ValidationError:
            pass
    stop.set()
    thread.join(10)

    assert len(buffer) == stored


def test_I05_the_key_is_seen_nowhere(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a repr, in vars, in the spool, in a log; and the client is not pickled."""
    with X402Client(SECRET, "http://127.0.0.1:9", buffer=UsageBuffer(tmp_path / "usage.db", exit_timeout=0)) as client:
        client.record_usage("env", 1, {"who": "somebody"})
        result = client.flush(0.5)
        seen = [repr(client), repr(client.buffer), repr(vars(client)), str(vars(client.buffer)), str(result)]
        with pytest.raises(TypeError, match="make one in each process"):
            pickle.dumps(client)

    spool = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET not in "".join(seen) + caplog.text
    assert "somebody" not in caplog.text
    assert SECRET.encode() not in spool


@pytest.mark.parametrize("key", [SECRET + "\n", SECRET + " x", SECRET + "€", SECRET + "\0", "", b"bytes", 5])
def test_I06_keys_that_are_none(key: Any) -> None:
    """Refused when the client is made, without repeating them."""
    with pytest.raises(ValidationError) as refused:
        X402Client(key)

    assert SECRET not in str(refused.value)


URLS = ["http://x.example", "ftp://x.example", "x.example", "https://u:p@x.example", "https://x.example?q=1"]
URLS += ["https://x.example#f", "https://x.example:99999", "https://x.example\\y", "", "https://"]


@pytest.mark.parametrize("url", URLS)
def test_I07_base_urls_that_are_none(url: str) -> None:
    """Refused when the client is made."""
    with pytest.raises(ValidationError, match="base_url"):
        X402Client("sk", url or "://")


@pytest.mark.parametrize(
    "url", ["https://x.example/", "https://x.example/v1/", "https://[::1]:1/", "http://localhost:1"]
)
def test_I07_base_urls_that_are(url: str) -> None:
    """A path, an IPv6 address and this machine over http are accepted."""
    assert X402Client("sk", url).base_url == url.rstrip("/")


@pytest.mark.parametrize("key", ["", "x" * 10_000, "a b", "a\r\nb", "é", 5])
def test_I08_idempotency_keys_that_are_none(key: Any, buffer: UsageBuffer) -> None:
    """Refused at the call."""
    with pytest.raises(ValidationError, match="idempotency_key"):
        buffer.record("env", 1, idempotency_key=key)

    assert len(buffer) == 0


def test_I08_a_key_used_twice(tmp_path: Any) -> None:
    """With the same body booked once; with another body the second is a dead letter."""
    with Emulator() as emulator:
        with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_path / "usage.db")) as client:
            envelope = emulator.create_envelope()
            for amount in (1, 1, 2):
                client.record_usage(envelope, amount, idempotency_key="order-1")
                assert client.flush(10)
            assert client.buffer is not None
            assert [letter.status_code for letter in client.buffer.dead_letters()] == [409]

        assert emulator.ledger().events == 1


LIMITS = ["flush_at", "flush_interval", "max_concurrency", "max_queue_size", "max_disk_bytes", "max_attempts"]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1", None], ids=repr)
@pytest.mark.parametrize("limit", [*LIMITS, "exit_timeout"])
def test_I10_limits_that_are_none(limit: str, value: Any, tmp_path: Any) -> None:
    """Refused when the buffer is made, by name, and no file is made."""
    arguments: Any = {limit: value}

    with pytest.raises(ValidationError, match=limit):
        UsageBuffer(tmp_path / "usage.db", **arguments)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1"], ids=repr)
def test_I10_timeouts_that_are_none(value: Any, buffer: UsageBuffer) -> None:
    """Refused by flush and close too, which then have done nothing."""
    for call in (buffer.flush, buffer.close):
        with pytest.raises(ValidationError, match="timeout"):
            call(value)

    assert buffer.record("env", 1).pending
