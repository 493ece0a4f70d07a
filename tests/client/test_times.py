"""Times are read in every form of ISO 8601 the contract allows, on every Python."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from tests.client import documents
from x402tools import Usage
from x402tools.models import parse_time

UTC = timezone.utc
NINE_DIGITS = "123456789"


def at(hour: int = 12, minute: int = 34, second: int = 56, microsecond: int = 0, zone: timezone = UTC) -> datetime:
    return datetime(2025, 11, 5, hour, minute, second, microsecond, zone)


def zone(hours: int, minutes: int = 0) -> timezone:
    return timezone(timedelta(hours=hours, minutes=minutes))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-11-05T12:34:56.789Z", at(microsecond=789000)),
        ("2025-11-05T12:34:56Z", at()),
        ("2025-11-05T12:34:56z", at()),
        ("2025-11-05t12:34:56Z", at()),
        ("2025-11-05 12:34:56Z", at()),
        ("2025-11-05T12:34:56,789Z", at(microsecond=789000)),
        ("2025-11-05T12:34:56+00:00", at()),
        ("2025-11-05T12:34:56-00:00", at()),
        ("2025-11-05T14:34:56+02:00", at(14, zone=zone(2))),
        ("2025-11-05T14:34:56+0200", at(14, zone=zone(2))),
        ("2025-11-05T14:34:56+02", at(14, zone=zone(2))),
        ("2025-11-05T18:04:56.5+05:30", at(18, 4, 56, 500000, zone(5, 30))),
        ("2025-11-05T09:04:56-03:30", at(9, 4, zone=zone(-3, -30))),
        ("2025-11-05T12:34Z", at(second=0)),
        ("2025-11-05T12:34:56", at()),
        ("2025-11-05", at(0, 0, 0)),
        ("20251105T123456Z", at()),
        ("20251105T123456.789Z", at(microsecond=789000)),
        (" 2025-11-05T12:34:56Z ", at()),
    ],
)
def test_form_is_read(text: str, moment: datetime) -> None:
    """The moment is right and aware, and the offset is the one that was written."""
    read = parse_time(text)

    assert read == moment
    assert read.utcoffset() == moment.utcoffset()


@pytest.mark.parametrize("digits", range(1, 10))
@pytest.mark.parametrize("ending", ["Z", "+01:00", ""])
def test_any_fraction_is_read(digits: int, ending: str) -> None:
    """One to nine digits; what is finer than a microsecond is cut off, not rounded."""
    read = parse_time(f"2025-11-05T12:34:56.{NINE_DIGITS[:digits]}{ending}")

    assert read.microsecond == int(NINE_DIGITS[:digits].ljust(6, "0")[:6])
    assert read.second == 56


@pytest.mark.parametrize(
    "text",
    [
        "", "Z", "now", "5", "2025", "2025-11", "2025-11-05T", "2025-11-05T12", "2025-11-05T12:34:56.Z",
        "2025-11-05T12:34:56.1234567890Z", "2025-13-05T12:34:56Z", "2025-02-30T12:34:56Z", "2025-11-05T25:00:00Z",
        "2025-11-05T12:60:00Z", "2025-11-05T12:34:56+99:00", "2025-11-05T12:34:56 Z", "2025-11-05T12:34:56ZZ",
        "05.11.2025 12:34", "Wed, 05 Nov 2025 12:34:56 GMT", "0000-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_anything_else_is_a_value_error(text: str) -> None:
    """No guess is made."""
    with pytest.raises(ValueError):  # noqa: PT011 - strptime-like, its text is not promised
        parse_time(text)


def test_models_use_it() -> None:
    """A model's times are read by the same rules."""
    usage = Usage.from_dict(documents.usage(timestamp="2025-11-05T13:34:56.123456789+01:00"))

    assert usage.timestamp == at(microsecond=123456)
