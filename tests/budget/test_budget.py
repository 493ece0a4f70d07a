"""What is left of an envelope: used, pending here, and the call when a share of it is reached."""

from __future__ import annotations

import pathlib
import queue
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List

import pytest

from tests.buffer.helpers import wait_until
from x402tools import (
    APIConnectionError,
    Budget,
    EnvelopeNotFoundError,
    UsageBuffer,
    UsageStats,
    ValidationError,
    X402Client,
)
from x402tools._budget import BudgetWatch, _told_by
from x402tools._periods import Period, period_around
from x402tools.models import Envelope
from x402tools.testing import Emulator, RecordingClient

PATIENCE = 20.0


@pytest.fixture
def client(emulator: Emulator, tmp_spool: pathlib.Path) -> Iterator[X402Client]:
    """A client with a buffer that delivers within moments."""
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool, flush_interval=0.02)) as client:
        yield client


@pytest.fixture
def keeping_client(emulator: Emulator, tmp_spool: pathlib.Path) -> Iterator[X402Client]:
    """A client whose buffer stores, and leaves the delivering to another process that is not there."""
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool, deliver=False)) as client:
        yield client


def today() -> Period:
    """The current period of a daily envelope."""
    return period_around("DAILY", None, datetime.now(timezone.utc))


def test_a_budget_is_used_pending_and_what_remains(emulator: Emulator, keeping_client: X402Client) -> None:
    """Of this envelope alone, in this period alone."""
    envelope_id, other_id = emulator.create_envelope(limit=100, period="DAILY"), emulator.create_envelope()
    emulator.set_clock_offset(-3 * 86_400)
    keeping_client.record_usage(envelope_id, 40, buffered=False)  # three days ago
    emulator.set_clock_offset(0)
    keeping_client.record_usage(envelope_id, 30, buffered=False)
    before = today()
    for _ in range(5):
        keeping_client.record_usage(envelope_id, 2)
        keeping_client.record_usage(other_id, 50)

    budget = keeping_client.budget(envelope_id)

    if before != today():
        pytest.skip("midnight in UTC went by")
    assert budget == Budget(envelope_id, 100, 30, 10, 60, *before)
    assert budget.share == pytest.approx(0.4)


def test_pending_falls_as_used_rises(emulator: Emulator, client: X402Client) -> None:
    """Once everything is delivered, all of it is used."""
    envelope_id = emulator.create_envelope(limit=100)
    for _ in range(10):
        client.record_usage(envelope_id, 7)

    assert client.flush(PATIENCE)

    budget = client.budget(envelope_id)
    assert (budget.used, budget.pending, budget.remaining) == (70, 0, 30)


def test_what_is_settled_of_a_batch_is_not_pending(tmp_spool: pathlib.Path) -> None:
    """A batch is pending in part while some of its POSTs wait."""

    def deliver(body: bytes, _: str) -> None:
        if b"stuck" in body:
            raise APIConnectionError("it is not to be reached")

    with UsageBuffer(tmp_spool, exit_timeout=0) as buffer:
        for _ in range(10):
            buffer.record("done", 1)
            buffer.record("stuck", 2)
        before = [buffer.pending_units(name) for name in ("done", "stuck", "nothing")]

        buffer.attach(deliver, "http://127.0.0.1:1")
        wait_until(lambda: buffer.stats().delivered.events == 10, "half of it was delivered")

        assert before == [10, 20, 0]
        assert [buffer.pending_units(name) for name in ("done", "stuck", "nothing")] == [0, 20, 0]


def test_without_a_buffer_nothing_is_pending(emulator: Emulator, x402_client: X402Client) -> None:
    """And a budget can be overdrawn, when the limit was lowered."""
    envelope_id = emulator.create_envelope(limit=100)
    x402_client.record_usage(envelope_id, 60)
    x402_client.update_envelope(envelope_id, limit=50)

    budget = x402_client.budget(envelope_id)

    assert (budget.used, budget.pending, budget.remaining, budget.share) == (60, 0, 0, 1.2)
    with pytest.raises(EnvelopeNotFoundError):
        x402_client.budget("nowhere")
    with pytest.raises(ValidationError, match="buffer"):
        x402_client.on_budget(envelope_id, 0.5, print)


def test_statistics_that_say_nothing_are_made_up_for(emulator: Emulator) -> None:
    """The records of the period are added up then."""
    client = RecordingClient()  # its periodUsage is empty
    envelope = client.create_envelope("One", 100, "YEARLY")
    for amount in (5, 6):
        client.record_usage(envelope.id, amount)
    client.record_usage("another", 50)

    assert client.get_usage_stats().period_usage == []
    assert client.budget(envelope.id).used == 11


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ({"used": 5, "periodStart": "2024-01-15T00:00:00.000Z"}, 5),
        ({"used": 5}, 5),
        ({"used": 5, "periodStart": "2024-01-01T00:00:00.000Z"}, None),  # another calendar than ours
        ({"used": 5, "periodStart": "soon"}, None),
        ({"used": "5"}, None),
        ({"used": True}, None),
        ({"used": -1}, None),
        ({"usage": 5}, None),
    ],
)
def test_only_plain_statistics_are_believed(said: Dict[str, Any], used: Any) -> None:
    """The list is of objects that the description does not describe."""
    moment = datetime(2024, 1, 20, tzinfo=timezone.utc)
    envelope = Envelope("env_1", "One", 100, "MONTHLY", "org", moment, moment, 15)
    others: List[Any] = [{"envelopeId": "env_2", "used": 9}, "nothing", None]
    stats = UsageStats(0, 1, 1, [*others, {"envelopeId": "env_1", **said}])

    assert _told_by(stats, envelope, period_around("MONTHLY", 15, moment)) == used
    assert _told_by(UsageStats(0, 1, 1, others), envelope, period_around("MONTHLY", 15, moment)) is None


def test_the_callback_comes_once_when_the_share_is_reached(emulator: Emulator, client: X402Client) -> None:
    """On a thread of its own, with the budget as it is counted here, and not again in the same period."""
    envelope_id = emulator.create_envelope(limit=100)
    told: queue.SimpleQueue[Budget] = queue.SimpleQueue()
    watch = client.on_budget(envelope_id, 0.8, told.put)
    wait_until(lambda: watch.budget is not None, "the service was asked")

    for _ in range(79):
        client.record_usage(envelope_id, 1)
    client.flush(PATIENCE)
    wait_until(lambda: _level(watch) == 79, "all of it was counted along")
    assert told.empty()
    for _ in range(10):
        client.record_usage(envelope_id, 1)

    budget = told.get(timeout=PATIENCE)
    assert 80 <= budget.used + budget.pending <= 89
    assert (budget.limit, budget.remaining) == (100, 100 - budget.used - budget.pending)
    wait_until(lambda: _level(watch) == 89, "the rest was counted along")
    watch.look()
    assert told.empty()


def _level(watch: BudgetWatch) -> int:
    budget = watch.budget
    return budget.used + budget.pending if budget is not None else -1


def test_what_others_used_is_noticed_at_the_next_look(emulator: Emulator, client: X402Client) -> None:
    """A look is made when something is recorded and the last one is old."""
    envelope_id = emulator.create_envelope(limit=100)
    told: queue.SimpleQueue[Budget] = queue.SimpleQueue()
    watch = client.on_budget(envelope_id, 0.5, told.put, refresh=0.01)
    wait_until(lambda: watch.budget is not None, "the service was asked")
    client.record_usage(envelope_id, 60, buffered=False)  # as another machine would

    deadline = time.monotonic() + PATIENCE
    while told.empty() and time.monotonic() < deadline:
        client.record_usage(envelope_id, 0)  # counts nothing
        client.record_usage(envelope_id, 1)
        client.flush(PATIENCE)

    assert told.get(timeout=1).used >= 60


def test_a_new_period_tells_again(emulator: Emulator, keeping_client: X402Client) -> None:
    """What was known is of the last period then, and the service is asked at once."""
    envelope_id = emulator.create_envelope(limit=100, period="DAILY")
    told: queue.SimpleQueue[Budget] = queue.SimpleQueue()
    watch = keeping_client.on_budget(envelope_id, 0.5, told.put)
    wait_until(lambda: watch.budget is not None, "the service was asked")
    keeping_client.record_usage(envelope_id, 50)
    first = told.get(timeout=PATIENCE)
    assert watch._known is not None
    day = timedelta(days=1)
    yesterday = Budget(envelope_id, 100, 50, 0, 50, first.period_started_at - day, first.period_started_at)

    watch._known = yesterday  # as if midnight had come since the last look
    watch._told = {yesterday.period_started_at: None}
    keeping_client.record_usage(envelope_id, 1)

    second = told.get(timeout=PATIENCE)
    assert second.period_started_at == first.period_started_at
    assert second.used + second.pending >= 50


def test_a_callback_that_raises_and_a_service_that_is_away_disturb_nobody(
    emulator: Emulator, client: X402Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are logged, and usage is recorded and delivered as ever."""
    envelope_id = emulator.create_envelope(limit=10)
    called: queue.SimpleQueue[Budget] = queue.SimpleQueue()

    def fail(budget: Budget) -> None:
        called.put(budget)
        raise RuntimeError("a mistake of the callback")

    client.on_budget(envelope_id, 0.1, fail)
    client.on_budget("nowhere", 0.1, fail)
    client.record_usage("nowhere", 0)
    client.record_usage(envelope_id, 5)

    called.get(timeout=PATIENCE)
    assert client.flush(PATIENCE)
    wait_until(lambda: "nowhere is not known" in caplog.text, "the log told of the unknown envelope")
    wait_until(lambda: "a mistake of the callback" in caplog.text, "the log told of the callback")
    assert emulator.ledger().units == 5


def test_a_cancelled_watch_is_silent(emulator: Emulator, client: X402Client) -> None:
    """Whatever is recorded."""
    envelope_id = emulator.create_envelope(limit=10)
    told: queue.SimpleQueue[Budget] = queue.SimpleQueue()
    watch = client.on_budget(envelope_id, 0.5, told.put)
    wait_until(lambda: watch.budget is not None, "the service was asked")

    watch.cancel()
    client.record_usage(envelope_id, 10)

    assert client.flush(PATIENCE)
    watch.look()
    assert told.empty()


@pytest.mark.parametrize(
    "arguments",
    [("env_1", 0, print), ("env_1", 1.1, print), ("env_1", "0.5", print), ("env_1", 0.5, "x"), ("", 0.5, print)],
)
def test_a_watch_checks_its_arguments(keeping_client: X402Client, arguments: Any) -> None:
    """Before anything is asked."""
    with pytest.raises(ValidationError):
        keeping_client.on_budget(*arguments)
    with pytest.raises(ValidationError, match="refresh"):
        keeping_client.on_budget("env_1", 0.5, print, refresh=0)
