"""The client that only records: what it answers is what the real one answers."""

from __future__ import annotations

import inspect
from typing import Any, Callable, List

import pytest

from x402tools import (
    EnvelopeNotFoundError,
    NotFoundError,
    RateLimitError,
    Usage,
    UsageLimitExceededError,
    ValidationError,
    X402Client,
)
from x402tools.testing import RecordingClient

METHODS = sorted(
    name for name, value in vars(X402Client).items() if inspect.isfunction(value) and not name.startswith("_")
)


@pytest.fixture(params=["real", "recording"])
def client(request: pytest.FixtureRequest) -> X402Client:
    """The real client before the emulator, and the fake: a contract test holds for both."""
    if request.param == "recording":
        return RecordingClient()
    found: X402Client = request.getfixturevalue("x402_client")
    return found


@pytest.mark.parametrize("name", METHODS)
def test_signatures_are_those_of_the_client(name: str) -> None:
    """A mistake in a call shows up in a unit test."""
    fake, real = getattr(RecordingClient, name), getattr(X402Client, name)

    assert inspect.signature(fake) == inspect.signature(real)


def test_usage_is_recorded_and_listed(client: X402Client) -> None:
    """With its metadata, in order, by envelope and in all."""
    one = client.create_envelope("One", 100, "MONTHLY", 1)
    other = client.create_envelope("Other", 100, "DAILY")

    answers = [
        client.record_usage(one.id, 5, {"a": 1}),
        client.record_usage(other.id, 6),
        client.record_usage(one.id, 7),
    ]

    assert [(usage.envelope_id, usage.amount, usage.metadata, usage.pending) for usage in answers] == [
        (one.id, 5, {"a": 1}, False),
        (other.id, 6, None, False),
        (one.id, 7, None, False),
    ]
    assert client.get_usage() == answers
    assert list(client.iter_usage(one.id)) == [answers[0], answers[2]]
    stats = client.get_usage_stats()
    assert (stats.total_usage, stats.envelope_count, stats.active_envelopes) == (18, 2, 2)


def test_envelopes_and_keys_live_as_usual(client: X402Client) -> None:
    """Made, listed, changed and deleted; what is not there is an error of its kind."""
    envelope = client.create_envelope("One", 100, "MONTHLY", 31)
    changed = client.update_envelope(envelope.id, limit=200)
    key = client.create_api_key("Production Key")
    keys = [found.id for found in client.get_api_keys()]

    client.delete_api_key(key.id)

    assert (changed.limit, changed.name, changed.reset_day, changed.created_at) == (200, "One", 31, envelope.created_at)
    assert client.get_envelopes() == [client.get_envelope(envelope.id)] == [changed]
    assert key.id in keys
    assert key.id not in [found.id for found in client.get_api_keys()]
    client.delete_envelope(envelope.id)
    assert client.get_envelopes() == []
    calls: List[Callable[[], Any]] = [
        lambda: client.get_envelope(envelope.id),
        lambda: client.update_envelope(envelope.id, name="x"),
        lambda: client.delete_envelope(envelope.id),
    ]
    for call in calls:
        with pytest.raises(EnvelopeNotFoundError):
            call()
    with pytest.raises(NotFoundError):
        client.delete_api_key(key.id)


def test_one_key_records_once(client: X402Client) -> None:
    """As the service does it."""
    envelope = client.create_envelope("One", 100, "MONTHLY")

    first = client.record_usage(envelope.id, 5, idempotency_key="order-1")
    second = client.record_usage(envelope.id, 5, idempotency_key="order-1")

    assert first == second
    assert client.get_usage() == [first]


@pytest.mark.parametrize(
    "arguments", [("env_1", -1), ("env_1", 1.5), ("env_1", True), ("", 1), (None, 1), ("env_1", 1, {"a": object()})]
)
def test_arguments_are_checked(client: X402Client, arguments: Any) -> None:
    """Before anything is recorded."""
    with pytest.raises(ValidationError):
        client.record_usage(*arguments)

    assert client.get_usage() == []


def test_what_was_recorded_can_be_looked_at() -> None:
    """Of any envelope, without making one first."""
    client = RecordingClient()

    client.record_usage("env_1", 5, {"endpoint": "/api/users"})

    (usage,) = client.recorded
    assert isinstance(usage, Usage)
    assert (usage.envelope_id, usage.amount, usage.metadata) == ("env_1", 5, {"endpoint": "/api/users"})


def test_a_failure_is_raised_as_often_as_asked_for() -> None:
    """And records nothing; for all calls it lasts until `clear`."""
    client = RecordingClient()

    client.fail_with(UsageLimitExceededError("limit", 402))
    with pytest.raises(UsageLimitExceededError):
        client.record_usage("env_1", 1)
    client.record_usage("env_1", 2)
    client.fail_with(RateLimitError("slow down", 429), times=None)
    for _ in range(3):
        with pytest.raises(RateLimitError):
            client.get_envelopes()
    recorded = [usage.amount for usage in client.recorded]
    client.clear()

    assert recorded == [2]
    assert client.recorded == client.get_usage() == []
