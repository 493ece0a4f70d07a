"""When the period of an envelope began, and when it ends. Pure functions; all of it in UTC.

The description says only that ``reset_day=1`` means "the 1st of each month". The rest is a choice: a period begins at
midnight UTC; resetDay runs from 1 to 31; a period that has no such day resets on its last one (the 31st on the 28th of
February). A week begins on Monday = 1 and ends on Sunday = 7; a year begins on that day of January; DAILY ignores
the reset day.
"""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta, timezone
from typing import Optional

PERIODS = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
DAYS_OF_WEEK = 7
DAYS_OF_JANUARY = 31


def period_start(period: str, reset_day: Optional[int], now: datetime) -> datetime:
    """Return the moment at which the period that contains ``now`` began.

    Args:
        period: one of :data:`PERIODS`.
        reset_day: 1 to 31, or None, which means 1.
        now: an aware time.

    Raises:
        ValueError: the period is unknown.
    """
    day = reset_day or 1
    midnight = now.astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "DAILY":
        return midnight
    if period == "WEEKLY":
        days_into_week = (midnight.isoweekday() - min(day, DAYS_OF_WEEK)) % DAYS_OF_WEEK
        return midnight - timedelta(days=days_into_week)
    if period == "MONTHLY":
        return _month_start(midnight, day)
    if period == "YEARLY":
        return _year_start(midnight, day)
    raise ValueError(f"no such period: {period!r}")


def period_end(period: str, reset_day: Optional[int], now: datetime) -> datetime:
    """Return the moment at which the period that contains ``now`` ends, which is the start of the next.

    Takes and raises what :func:`period_start` does.
    """
    start = period_start(period, reset_day, now)
    if period == "DAILY":
        return start + timedelta(days=1)
    if period == "WEEKLY":
        return start + timedelta(days=DAYS_OF_WEEK)
    if period == "YEARLY":
        return start.replace(year=start.year + 1)
    first_of_next_month = (start.replace(day=1) + timedelta(days=DAYS_OF_JANUARY)).replace(day=1)
    return _on_day(first_of_next_month, reset_day or 1)


def _month_start(midnight: datetime, day: int) -> datetime:
    start = _on_day(midnight.replace(day=1), day)
    if start <= midnight:
        return start
    last_of_previous_month = midnight.replace(day=1) - timedelta(days=1)
    return _on_day(last_of_previous_month.replace(day=1), day)


def _on_day(first: datetime, day: int) -> datetime:
    """That day of the month, or the month's last one."""
    return first.replace(day=min(day, calendar.monthrange(first.year, first.month)[1]))


def _year_start(midnight: datetime, day: int) -> datetime:
    start = midnight.replace(month=1, day=min(day, DAYS_OF_JANUARY))
    if start <= midnight:
        return start
    return start.replace(year=start.year - 1)
