"""The calendar of envelopes: a table of what it promises, and day by day against the emulator's, written apart."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Optional

import pytest

from x402tools import ValidationError
from x402tools._periods import period_around
from x402tools.emulator.periods import period_end, period_start


def utc(text: str) -> datetime:
    """`2024-02-29` or `2024-02-29 23:59`."""
    form = "%Y-%m-%d %H:%M" if " " in text else "%Y-%m-%d"
    return datetime.strptime(text, form).replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("kind", "reset_day", "moment", "started_at", "resets_at"),
    [
        ("DAILY", None, "2024-02-29 00:00", "2024-02-29", "2024-03-01"),
        ("DAILY", 15, "2023-12-31 23:59", "2023-12-31", "2024-01-01"),
        ("WEEKLY", None, "2024-02-29 12:00", "2024-02-26", "2024-03-04"),  # a Thursday, in the week of Monday
        ("WEEKLY", 1, "2024-02-26 00:00", "2024-02-26", "2024-03-04"),
        ("WEEKLY", 7, "2024-02-29 12:00", "2024-02-25", "2024-03-03"),  # from Sunday to Sunday
        ("WEEKLY", 4, "2024-02-28 23:59", "2024-02-22", "2024-02-29"),
        ("WEEKLY", 31, "2024-02-29 12:00", "2024-02-25", "2024-03-03"),
        ("MONTHLY", None, "2024-02-29 12:00", "2024-02-01", "2024-03-01"),
        ("MONTHLY", 0, "2024-02-29 12:00", "2024-02-01", "2024-03-01"),
        ("MONTHLY", 15, "2024-01-14 23:59", "2023-12-15", "2024-01-15"),
        ("MONTHLY", 15, "2024-01-15 00:00", "2024-01-15", "2024-02-15"),
        ("MONTHLY", 31, "2024-02-28 12:00", "2024-01-31", "2024-02-29"),  # a leap year
        ("MONTHLY", 31, "2024-02-29 00:00", "2024-02-29", "2024-03-31"),
        ("MONTHLY", 31, "2023-02-28 00:00", "2023-02-28", "2023-03-31"),
        ("MONTHLY", 31, "2024-04-30 00:00", "2024-04-30", "2024-05-31"),  # a month of 30 days
        ("MONTHLY", 30, "2023-03-01 00:00", "2023-02-28", "2023-03-30"),
        ("MONTHLY", 29, "2023-02-28 12:00", "2023-02-28", "2023-03-29"),
        ("YEARLY", None, "2024-12-31 23:59", "2024-01-01", "2025-01-01"),
        ("YEARLY", 15, "2024-01-14 23:59", "2023-01-15", "2024-01-15"),
        ("YEARLY", 60, "2024-02-29 00:00", "2024-02-29", "2025-03-01"),  # the 60th day
        ("YEARLY", 366, "2023-12-31 12:00", "2023-12-31", "2024-12-31"),
        ("YEARLY", 366, "2025-01-01 00:00", "2024-12-31", "2025-12-31"),
    ],
)
def test_periods_begin_and_end(
    kind: str, reset_day: Optional[int], moment: str, started_at: str, resets_at: str
) -> None:
    """Month ends, leap years, the turn of the year."""
    period = period_around(kind, reset_day, utc(moment))

    assert (period.started_at, period.resets_at) == (utc(started_at), utc(resets_at))


@pytest.mark.parametrize("reset_day", [None, 1, 2, 5, 7, 15, 28, 29, 30, 31])
@pytest.mark.parametrize("kind", ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"])
def test_the_emulator_has_the_same_calendar(kind: str, reset_day: Optional[int]) -> None:
    """At the first and the last second of every day from 2023 to 2028, two leap years among them."""
    day = utc("2023-01-01")

    while day.year < 2029:
        for moment in (day, day + timedelta(hours=23, minutes=59, seconds=59)):
            ours = period_around(kind, reset_day, moment)
            assert ours == (period_start(kind, reset_day, moment), period_end(kind, reset_day, moment))
        day += timedelta(days=1)


def test_other_time_zones_mean_the_same_moment() -> None:
    """It is January in UTC while it is still December in New York."""
    new_york = timezone(timedelta(hours=-5))

    period = period_around("MONTHLY", 1, datetime(2023, 12, 31, 22, 0, tzinfo=new_york))

    assert period.started_at == utc("2024-01-01")


def test_a_period_of_another_kind_is_refused() -> None:
    """It is named, rather than guessed."""
    with pytest.raises(ValidationError, match="HOURLY"):
        period_around("HOURLY", 1, utc("2024-01-01"))
