"""When periods begin, and that a limit holds for one period at a time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Optional

import pytest

from tests.emulator.wire import ask, record
from x402tools.emulator.choices import Choices
from x402tools.emulator.periods import period_start
from x402tools.emulator.refusal import Refusal
from x402tools.emulator.state import Books
from x402tools.testing import Emulator


def _at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("period", "reset_day", "now", "start"),
    [
        ("DAILY", None, "2025-11-05 00:00", "2025-11-05"),
        ("DAILY", 9, "2025-11-05 23:59", "2025-11-05"),
        ("WEEKLY", None, "2025-11-05 12:00", "2025-11-03"),  # a Wednesday; Monday by default
        ("WEEKLY", 1, "2025-11-03 00:00", "2025-11-03"),
        ("WEEKLY", 3, "2025-11-05 00:00", "2025-11-05"),
        ("WEEKLY", 4, "2025-11-05 12:00", "2025-10-30"),
        ("WEEKLY", 31, "2025-11-05 12:00", "2025-11-02"),  # no such day of the week: its last one
        ("MONTHLY", None, "2025-11-30 12:00", "2025-11-01"),
        ("MONTHLY", 15, "2025-11-14 23:59", "2025-10-15"),
        ("MONTHLY", 15, "2025-11-15 00:00", "2025-11-15"),
        ("MONTHLY", 31, "2025-11-30 00:00", "2025-11-30"),  # November has no 31st
        ("MONTHLY", 31, "2025-11-29 12:00", "2025-10-31"),
        ("MONTHLY", 31, "2025-02-28 00:00", "2025-02-28"),
        ("MONTHLY", 30, "2024-02-29 00:00", "2024-02-29"),  # a leap year
        ("MONTHLY", 30, "2024-02-28 12:00", "2024-01-30"),
        ("MONTHLY", 31, "2025-03-30 12:00", "2025-02-28"),
        ("MONTHLY", 29, "2025-03-01 12:00", "2025-02-28"),
        ("MONTHLY", 10, "2025-01-09 12:00", "2024-12-10"),  # over the turn of the year
        ("YEARLY", None, "2025-11-05 12:00", "2025-01-01"),
        ("YEARLY", 31, "2025-01-30 12:00", "2024-01-31"),
        ("YEARLY", 31, "2025-01-31 00:00", "2025-01-31"),
    ],
)
def test_a_period_begins_at_midnight_utc(period: str, reset_day: Optional[int], now: str, start: str) -> None:
    """On the reset day, or on the last day of a period that has no such day."""
    assert period_start(period, reset_day, _at(now)) == _at(f"{start} 00:00")


def test_another_zone_does_not_move_a_period() -> None:
    """It is the UTC date that counts."""
    late_in_new_york = datetime(2025, 10, 31, 22, 0, tzinfo=timezone(timedelta(hours=-4)))

    assert period_start("MONTHLY", 1, late_in_new_york) == _at("2025-11-01 00:00")


def test_no_period_begins_after_now_and_none_is_skipped() -> None:
    """Day by day over five years: a start is not in the future, never goes back, and is the start of itself."""
    for period in ("DAILY", "WEEKLY", "MONTHLY", "YEARLY"):
        for reset_day in (None, 1, 5, 28, 29, 30, 31):
            previous = _at("2000-01-01 00:00")
            for day in range(5 * 366):
                now = _at("2023-01-01 12:00") + timedelta(days=day)

                start = period_start(period, reset_day, now)

                assert previous <= start <= now
                assert period_start(period, reset_day, start) == start
                previous = start


def test_an_unknown_period_is_an_error() -> None:
    """Not a silent default."""
    with pytest.raises(ValueError, match="HOURLY"):
        period_start("HOURLY", 1, _at("2025-11-05 12:00"))


class _Clock:
    """Time that a test sets."""

    def __init__(self, now: str) -> None:
        self.now = _at(now)

    def __call__(self) -> float:
        return self.now.timestamp()


def _book(books: Books, envelope: Any, amount: int) -> None:
    with books.transaction():
        books.add_usage(envelope, amount, None, None)


def test_what_was_used_is_forgotten_at_the_end_of_the_month() -> None:
    """With the 31st as reset day, November's period begins on the 30th, to the second."""
    clock = _Clock("2025-11-29 23:59")
    books = Books(clock=clock)
    envelope = books.add_envelope("n", 10, "MONTHLY", 31)
    _book(books, envelope, 10)
    with pytest.raises(Refusal):
        _book(books, envelope, 1)

    clock.now += timedelta(minutes=1)
    _book(books, envelope, 10)

    assert books.used(envelope)[1] == 10
    assert books.total().units == 20
    books.close()


def test_a_record_over_the_limit_is_402_and_not_booked_in_part(emulator: Emulator) -> None:
    """The limit itself may be reached; beyond it the whole record is refused."""
    envelope_id = emulator.create_envelope(limit=10)
    record(emulator, envelope_id, 6)

    over, exact, none = (record(emulator, envelope_id, amount) for amount in (5, 4, 0))

    assert over.status == 402
    assert over.json["error"].startswith("Usage limit exceeded")
    assert (exact.status, none.status) == (201, 201)
    assert emulator.ledger().units == 10


def test_a_raised_limit_counts_at_once(emulator: Emulator) -> None:
    """PUT of a higher limit lets the next record in."""
    envelope_id = emulator.create_envelope(limit=10)
    record(emulator, envelope_id, 10)

    ask(emulator, "PUT", f"/envelopes/{envelope_id}", {"limit": 11})

    assert record(emulator, envelope_id, 1).status == 201


def test_a_new_period_begins_when_the_clock_says_so(emulator: Emulator) -> None:
    """The emulator's clock can be put forward over the control surface."""
    envelope_id = emulator.create_envelope(limit=10, period="DAILY")
    record(emulator, envelope_id, 10)

    emulator.set_clock_offset(86_400)

    assert record(emulator, envelope_id, 10).status == 201
    assert ask(emulator, "GET", "/usage/stats").json["periodUsage"][0]["used"] == 10


def test_limits_may_only_count() -> None:
    """Whether they are enforced is a choice, as is the status of the refusal."""
    with Emulator(choices={"enforce_limits": False}) as emulator:
        assert record(emulator, emulator.create_envelope(limit=1), 5).status == 201
    with Emulator(choices={"limit_exceeded_status": 400}) as emulator:
        assert record(emulator, emulator.create_envelope(limit=1), 5).status == 400


def test_a_choice_that_is_none_is_refused() -> None:
    """Neither a wrong name nor a wrong type passes."""
    with pytest.raises(ValueError, match="no such choice"):
        Choices().with_settings({"enforce_limit": False})
    with pytest.raises(ValueError, match="takes bool"):
        Choices().with_settings({"enforce_limits": "perhaps"})
    assert Choices().with_settings({"enforce_limits": "false", "invalid_body_status": "422"}) == Choices(
        enforce_limits=False, invalid_body_status=422
    )
