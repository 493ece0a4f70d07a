"""The calendar of envelopes: when the period around a moment began, and when it ends. Pure; all of it in UTC.

The description of the API says of the reset day only that ``reset_day=1`` means "the 1st of each month". The rest is
our reading of it, and the emulator's, which was written apart from this:

    DAILY    begins at midnight; the reset day means nothing
    WEEKLY   begins on the reset day of the week, 1 for Monday to 7 for Sunday (greater ones mean Sunday)
    MONTHLY  begins on the reset day of the month, or on its last day where it is shorter: with 31, on February 28th
             or 29th, April 30th and so on
    YEARLY   begins on the reset day of the year: 1 is January 1st, 32 February 1st; the last day where it is shorter

No reset day, or 0, means 1. A period begins at 00:00 UTC and ends where the next begins, so it has 23 or 25 hours
nowhere and never.
"""

from __future__ import annotations

import calendar
from datetime import date, datetime, time, timedelta, timezone
from typing import Callable, Dict, List, NamedTuple, Optional

from x402tools.errors import ValidationError

_SUNDAY = 7


class Period(NamedTuple):
    """From `started_at`, which belongs to it, to `resets_at`, which belongs to the next; aware datetimes in UTC."""

    started_at: datetime
    resets_at: datetime


def period_around(kind: str, reset_day: Optional[int], moment: datetime) -> Period:
    """The period that an aware datetime falls into.

    Args:
        kind: "DAILY", "WEEKLY", "MONTHLY" or "YEARLY".
        reset_day: see the head of this file.
        moment: not in the first or the last year that datetime knows.

    Raises:
        ValidationError: the kind is none of these. A service may have kinds that this version does not know.
    """
    first_days = _FIRST_DAYS.get(kind)
    if first_days is None:
        raise ValidationError(f"this version knows no period {kind!r}, so it cannot tell when that resets")
    today = moment.astimezone(timezone.utc).date()
    starts = sorted(first_days(today, max(reset_day or 1, 1)))
    return Period(
        _midnight(max(day for day in starts if day <= today)), _midnight(min(day for day in starts if day > today))
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), timezone.utc)


# Each of these gives the first days of the periods around a day: at least one not after it and one after it.


def _days(today: date, reset_day: int) -> List[date]:  # noqa: ARG001 - all of them have the same shape
    return [today, today + timedelta(days=1)]


def _weeks(today: date, reset_day: int) -> List[date]:
    in_this_week = today + timedelta(days=min(reset_day, _SUNDAY) - today.isoweekday())
    return [in_this_week + timedelta(weeks=weeks) for weeks in (-1, 0, 1)]


def _months(today: date, reset_day: int) -> List[date]:
    months = [today.year * 12 + today.month - 1 + offset for offset in (-1, 0, 1)]
    return [_day_of_month(month // 12, month % 12 + 1, reset_day) for month in months]


def _years(today: date, reset_day: int) -> List[date]:
    return [_day_of_year(today.year + offset, reset_day) for offset in (-1, 0, 1)]


def _day_of_month(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, calendar.monthrange(year, month)[1]))


def _day_of_year(year: int, day: int) -> date:
    return date(year, 1, 1) + timedelta(days=min(day, 366 if calendar.isleap(year) else 365) - 1)


_FIRST_DAYS: Dict[str, Callable[[date, int], List[date]]] = {
    "DAILY": _days,
    "WEEKLY": _weeks,
    "MONTHLY": _months,
    "YEARLY": _years,
}
