"""Each of the eleven calls does what it says, on the emulator's books."""

from __future__ import annotations

import importlib
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator

import pytest

import x402tools
from tests.client.conftest import Connect
from x402tools import ApiKey, Envelope, EnvelopeNotFoundError, NotFoundError, Usage, UsageStats, X402Client
from x402tools.testing import Emulator

# What 1.0.0 exported.
NAMES = (
    "APIError", "ApiKey", "AuthenticationError", "Envelope", "EnvelopeNotFoundError", "PeriodType", "RateLimitError",
    "Usage", "UsageLimitExceededError", "UsageStats", "ValidationError", "X402Client", "X402Error",
)  # fmt: skip


@pytest.fixture
def client(emulator: Emulator, connect: Connect) -> Iterator[X402Client]:
    """A client of the emulator."""
    return connect(emulator, emulator.api_key)


def is_recent(moment: datetime) -> bool:
    """Aware, in UTC, and of the last minute: the service's clock is this machine's."""
    return moment.utcoffset() == timedelta(0) and abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)


def test_create_envelope_returns_it_as_the_service_made_it(client: X402Client) -> None:
    """The envelope has what was asked for and what the service added: an id, an organization and times."""
    envelope = client.create_envelope("API Calls", 10000, "MONTHLY", 15)

    assert isinstance(envelope, Envelope)
    assert (envelope.name, envelope.limit, envelope.period, envelope.reset_day) == ("API Calls", 10000, "MONTHLY", 15)
    assert envelope.id
    assert envelope.organization_id
    assert is_recent(envelope.created_at)
    assert is_recent(envelope.updated_at)


@pytest.mark.parametrize("period", ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"])
def test_every_period_comes_back(client: X402Client, period: Any) -> None:
    """Each of the four periods is accepted by the client and the service."""
    envelope = client.create_envelope("Any", 1, period)

    assert client.get_envelope(envelope.id).period == period
    assert envelope.reset_day is None


def test_get_envelope_and_get_envelopes_agree(client: X402Client) -> None:
    """The list has what asking for each one gives."""
    made = [client.create_envelope(name, 10, "DAILY") for name in ("a", "b", "c")]

    listed = client.get_envelopes()

    assert listed == made
    assert [client.get_envelope(envelope.id) for envelope in made] == made


@pytest.mark.parametrize(
    "changes", [{"name": "New"}, {"limit": 7}, {"period": "DAILY"}, {"reset_day": 3}, {"name": "New", "limit": 0}]
)
def test_update_envelope_changes_only_what_is_given(client: X402Client, changes: Dict[str, Any]) -> None:
    """The other fields stay as they were."""
    before = client.create_envelope("Old", 10, "MONTHLY", 1)

    after = client.update_envelope(before.id, **changes)

    fields = ("name", "limit", "period", "reset_day")
    assert {field: getattr(after, field) for field in fields} == {
        **{field: getattr(before, field) for field in fields},
        **changes,
    }
    assert client.get_envelope(before.id) == after


def test_update_envelope_takes_positions(client: X402Client) -> None:
    """As in 1.0.0: name, limit, period and reset_day may be given by position."""
    envelope = client.create_envelope("Old", 10, "MONTHLY", 1)

    after = client.update_envelope(envelope.id, "New", 20, "DAILY", 2)

    assert (after.name, after.limit, after.period, after.reset_day) == ("New", 20, "DAILY", 2)


def test_delete_envelope_removes_it(client: X402Client) -> None:
    """It returns None, and the envelope is gone."""
    envelope = client.create_envelope("Any", 1, "DAILY")

    deleted = client.delete_envelope(envelope.id)  # type: ignore[func-returns-value]  # that it is None is the point

    assert deleted is None
    assert client.get_envelopes() == []
    with pytest.raises(EnvelopeNotFoundError):
        client.get_envelope(envelope.id)


def test_record_usage_books_one_record(emulator: Emulator, client: X402Client) -> None:
    """What comes back is what is on the books, and it is not pending."""
    envelope = client.create_envelope("Any", 100, "DAILY")

    usage = client.record_usage(envelope.id, 5, {"user_id": "u1", "nested": {"a": [1, 2.5, None, "ü"]}})

    (booked,) = emulator.events()
    assert isinstance(usage, Usage)
    assert (usage.id, usage.envelope_id, usage.amount) == (booked.id, envelope.id, 5)
    assert usage.metadata == booked.metadata == {"user_id": "u1", "nested": {"a": [1, 2.5, None, "ü"]}}
    assert usage.pending is False
    assert is_recent(usage.timestamp)


@pytest.mark.parametrize("metadata", [None, {}])
def test_metadata_that_says_nothing_is_none(client: X402Client, emulator: Emulator, metadata: Any) -> None:
    """No metadata and empty metadata are one and the same, as in 1.0.0."""
    envelope = client.create_envelope("Any", 100, "DAILY")

    usage = client.record_usage(envelope.id, 5, metadata)

    assert usage.metadata is None
    assert emulator.events()[0].metadata is None


@pytest.mark.parametrize("amount", [0, 1, 2**53 - 1])
def test_amounts_arrive_exactly(client: X402Client, emulator: Emulator, amount: int) -> None:
    """From nothing to the largest whole number every JSON reader keeps."""
    usage = client.record_usage(emulator.create_envelope(), amount)

    assert usage.amount == amount
    assert emulator.ledger().units == amount


def test_get_usage_lists_all_or_one_envelope(client: X402Client, emulator: Emulator) -> None:
    """Without an id (None, or "" as 1.0.0 took it) all records come, with one only that envelope's."""
    first, second = emulator.create_envelope(), emulator.create_envelope()
    made = [client.record_usage(envelope, amount) for envelope, amount in [(first, 1), (second, 2), (first, 3)]]

    everything = client.get_usage()

    assert everything == client.get_usage(None) == client.get_usage("") == made
    assert client.get_usage(first) == [made[0], made[2]]
    assert client.get_usage(envelope_id=second) == [made[1]]
    assert list(client.iter_usage(first)) == [made[0], made[2]]


def test_get_usage_of_nothing_is_empty(client: X402Client) -> None:
    """An empty list is an answer like any other."""
    assert client.get_usage() == []
    assert list(client.iter_usage()) == []


def test_get_usage_stats_adds_up(client: X402Client, emulator: Emulator) -> None:
    """The totals are those of the records."""
    used, _unused = emulator.create_envelope(), emulator.create_envelope()
    client.record_usage(used, 2)
    client.record_usage(used, 3)

    stats = client.get_usage_stats()

    assert isinstance(stats, UsageStats)
    assert (stats.total_usage, stats.envelope_count, stats.active_envelopes) == (5, 2, 1)
    assert [period["used"] for period in stats.period_usage] == [5, 0]


def test_api_keys_are_made_listed_used_and_deleted(emulator: Emulator, client: X402Client, connect: Connect) -> None:
    """A new key works until it is deleted."""
    made = client.create_api_key("Production Key")

    assert isinstance(made, ApiKey)
    assert made.name == "Production Key"
    assert is_recent(made.created_at)
    assert made.key in [key.key for key in client.get_api_keys()]
    assert connect(emulator, made.key).get_envelopes() == []

    deleted = client.delete_api_key(made.id)  # type: ignore[func-returns-value]  # that it is None is the point

    assert deleted is None
    assert made.id not in [key.id for key in client.get_api_keys()]
    with pytest.raises(x402tools.AuthenticationError):
        connect(emulator, made.key).get_envelopes()


def test_what_does_not_exist_is_not_found(client: X402Client) -> None:
    """Each call that names something says that it is not there; only an envelope is an EnvelopeNotFoundError."""
    for call in (client.get_envelope, client.update_envelope, client.delete_envelope):
        with pytest.raises(EnvelopeNotFoundError):
            call("env_none")
    with pytest.raises(EnvelopeNotFoundError):
        client.record_usage("env_none", 1)

    with pytest.raises(NotFoundError) as caught:
        client.delete_api_key("key_none")

    assert not isinstance(caught.value, EnvelopeNotFoundError)


def test_exceeded_limit_is_told(client: X402Client) -> None:
    """A record that does not fit into the envelope's limit is refused and not booked."""
    envelope = client.create_envelope("Small", 10, "DAILY")

    with pytest.raises(x402tools.UsageLimitExceededError):
        client.record_usage(envelope.id, 11)

    assert client.get_usage() == []


def test_wrong_key_is_told(emulator: Emulator, connect: Connect) -> None:
    """A key that the service does not know is an AuthenticationError."""
    with pytest.raises(x402tools.AuthenticationError):
        connect(emulator, "sk_wrong").get_envelopes()


@pytest.mark.parametrize("name", NAMES)
def test_name_of_the_first_release_is_importable(name: str) -> None:
    """`from x402tools import …` goes on working for everything 1.0.0 offered."""
    module = importlib.import_module("x402tools")

    assert hasattr(module, name)
    assert name in module.__all__
    assert name in dir(module)


def test_names_are_importable_with_a_star() -> None:
    """Everything in `__all__` is there."""
    namespace: Dict[str, Any] = {}

    exec("from x402tools import *", namespace)  # noqa: S102 - the one way to write it inside a function

    assert set(x402tools.__all__) <= set(namespace)


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    """The lazily imported names do not make a module that has everything."""
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(x402tools, "no_such_name")  # noqa: B009 - what is written in code is an error of the type checker
