"""What the API returns, as dataclasses.

The fields and their order are those of the published description of the API; `from_dict` takes the JSON
object of an answer and ignores fields it does not know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Literal, Optional, Tuple, cast

__all__ = ["ApiKey", "Envelope", "PeriodType", "Usage", "UsageStats"]

PeriodType = Literal["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]
PERIODS: Tuple[str, ...] = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")

# Compiled at the first use (`re` keeps it): importing this package must not cost a script what it may never need.
_ISO_8601 = (
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?"
    r"(Z|z|[+-]\d\d(?::?\d\d)?)?)?"
)


def parse_time(text: str) -> datetime:
    """An ISO 8601 time as an aware datetime; a time without an offset is UTC, as the wire contract says.

    `datetime.fromisoformat` reads neither `Z` nor every length of fraction before Python 3.11, hence our own.
    Digits beyond microseconds are cut off.

    Raises:
        ValueError: the text is not an ISO 8601 time.
    """
    match = re.fullmatch(_ISO_8601, text.strip())
    if match is None:
        raise ValueError(f"not an ISO 8601 time: {text[:40]!r}")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    microsecond = int(((fraction or "") + "000000")[:6])
    return datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), microsecond, _zone(offset)
    )


def _zone(offset: Optional[str]) -> timezone:
    if offset is None or offset in "Zz":
        return timezone.utc
    minutes = int(offset[1:3]) * 60 + int(offset[3:].lstrip(":") or 0)
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _optional_time(text: Optional[str]) -> Optional[datetime]:
    return parse_time(text) if text else None


@dataclass
class Envelope:
    """A limit on usage over a period that starts anew: `limit` units of usage per `period`."""

    id: str
    name: str
    limit: int
    period: PeriodType
    organization_id: str
    created_at: datetime
    updated_at: datetime
    reset_day: Optional[int] = None

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> Envelope:
        """From the JSON object of an answer."""
        return cls(
            id=data["id"],
            name=data["name"],
            limit=data["limit"],
            period=cast(PeriodType, data["period"]),
            organization_id=data["organizationId"],
            created_at=parse_time(data["createdAt"]),
            updated_at=parse_time(data["updatedAt"]),
            reset_day=data.get("resetDay"),
        )


# The two factories below are defaults like any other. They are factories because a plain default would also be a
# class attribute, and `_event.PendingUsage` fills in its fields only when one that is missing is first looked at.
def _no_metadata() -> Optional[Dict[str, Any]]:
    return None


@dataclass
class Usage:
    """One usage record: `amount` units of usage booked, or to be booked, on an envelope.

    From a synchronous call `id` and `timestamp` are the service's and `pending` is False. From a buffered call `id`
    is the event's own id, which is also its idempotency key, `timestamp` is the moment of recording, and `pending`
    is True; False there means that the buffer was full and the event was dropped.
    """

    id: str
    envelope_id: str
    amount: int
    timestamp: datetime
    metadata: Optional[Dict[str, Any]] = field(default_factory=_no_metadata)
    pending: bool = field(default_factory=bool)

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> Usage:
        """From the JSON object of an answer."""
        return cls(
            id=data["id"],
            envelope_id=data["envelopeId"],
            amount=data["amount"],
            timestamp=parse_time(data["timestamp"]),
            metadata=data.get("metadata"),
        )


@dataclass
class ApiKey:
    """A key of the API. `key` is a secret: it is masked in the repr and read only by asking for the attribute."""

    id: str
    key: str = field(repr=False)
    name: str
    organization_id: str
    created_at: datetime
    last_used: Optional[datetime] = None
    expires_at: Optional[datetime] = None

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> ApiKey:
        """From the JSON object of an answer."""
        return cls(
            id=data["id"],
            key=data["key"],
            name=data["name"],
            organization_id=data["organizationId"],
            created_at=parse_time(data["createdAt"]),
            last_used=_optional_time(data.get("lastUsed")),
            expires_at=_optional_time(data.get("expiresAt")),
        )


@dataclass
class UsageStats:
    """Totals over all envelopes of the organization, in units of usage and in numbers of envelopes."""

    total_usage: int
    envelope_count: int
    active_envelopes: int
    period_usage: List[Dict[str, Any]]

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> UsageStats:
        """From the JSON object of an answer."""
        return cls(
            total_usage=data["totalUsage"],
            envelope_count=data["envelopeCount"],
            active_envelopes=data["activeEnvelopes"],
            period_usage=data.get("periodUsage") or [],
        )
