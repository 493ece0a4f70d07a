"""What is left of an envelope: by asking the service, and between two askings by counting along.

**used** is what the service has booked in the current period. `GET /usage/stats` is asked first: its `periodUsage` is a
list of objects that the description does not describe, so an object is believed only where it plainly says it: the
envelope's id as `envelopeId`, a whole number as `used`, and, if it has a `periodStart`, the one that our own calendar
gives. Otherwise the usage records of the envelope are read, all of them because the API cannot filter by time, and
those of the period are added up; none is kept.

**pending** is what waits in this buffer's spool, whichever process recorded it. It is counted from the spool before
the service is asked: what is delivered in between counts twice rather than not at all, so a budget may look a moment's
deliveries too small, and never too large by what this spool knows. Usage that others wait with elsewhere is in neither.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

from x402tools import _event, _process
from x402tools._event import Event
from x402tools._periods import Period, period_around
from x402tools.errors import ValidationError, X402Error
from x402tools.models import Envelope, UsageStats, parse_time

if TYPE_CHECKING:
    from x402tools.client import X402Client

log = logging.getLogger("x402tools")


@dataclass(frozen=True)
class Budget:
    """How much of an envelope is left in its current period, in units of usage.

    Attributes:
        envelope_id: the envelope.
        limit: units per period.
        used: booked by the service in this period.
        pending: recorded here and not delivered yet; 0 without a buffer.
        remaining: what is left of the limit after both, never below 0.
        period_started_at, resets_at: the period; aware datetimes in UTC, see `_periods` for what a reset day means.
    """

    envelope_id: str
    limit: int
    used: int
    pending: int
    remaining: int
    period_started_at: datetime
    resets_at: datetime

    @property
    def share(self) -> float:
        """The part of the limit that is used or pending: 1.0 and above when nothing is left, for a limit of 0 too."""
        return (self.used + self.pending) / self.limit if self.limit > 0 else 1.0


def look(client: X402Client, envelope_id: str, counting_from_here: Optional[Callable[[], None]] = None) -> Budget:
    """The budget of an envelope as it is now; `counting_from_here` is called at the moment for which pending is
    counted, while nothing moves from memory to the spool. See `X402Client.budget` for what it raises."""
    envelope = client.get_envelope(envelope_id)
    buffer = client.buffer
    if buffer is None:
        period, pending = period_around(envelope.period, envelope.reset_day, datetime.now(timezone.utc)), 0
    else:
        period, pending = buffer.watch(envelope), buffer.pending_units(envelope_id, counting_from_here)
    used = _used(client, envelope, period)
    remaining = max(envelope.limit - used - pending, 0)
    return Budget(envelope.id, envelope.limit, used, pending, remaining, period.started_at, period.resets_at)


def _used(client: X402Client, envelope: Envelope, period: Period) -> int:
    told = _told_by(client.get_usage_stats(), envelope, period)
    if told is not None:
        return told
    records = client.iter_usage(envelope.id)
    return sum(usage.amount for usage in records if period.started_at <= usage.timestamp < period.resets_at)


def _told_by(stats: UsageStats, envelope: Envelope, period: Period) -> Optional[int]:
    """What the statistics say of the envelope, if they say it plainly."""
    for one in stats.period_usage:
        found: Any = one  # the members of the list come as the service sent them
        if not isinstance(found, dict) or found.get("envelopeId") != envelope.id:
            continue
        used: Any = found.get("used")
        is_plain = type(used) is int and used >= 0 and _is_start(found.get("periodStart"), period)
        return used if is_plain else None
    return None


def _is_start(said: Any, period: Period) -> bool:
    if said is None:
        return True
    try:
        return parse_time(str(said)) == period.started_at
    except ValueError:
        return False


class BudgetWatch:
    """Tells once a period when the usage of an envelope reaches a share of its limit; `X402Client.on_budget` makes it.

    Between two looks at the service it counts what this process records. Nothing happens while nothing is recorded: a
    look is made when an event is, and the last one is `refresh` seconds old, or from the period before.

    Attributes:
        budget: the budget as of now, as far as it is known here; None before the first look.
    """

    def __init__(
        self,
        client: X402Client,
        envelope_id: str,
        threshold: float,
        callback: Callable[[Budget], object],
        refresh: float,
    ) -> None:
        if type(threshold) not in (int, float) or not 0 < threshold <= 1:
            raise ValidationError("threshold must be a share of the limit, above 0 and up to 1")
        if not callable(callback):
            raise ValidationError(f"callback must be something to call, not {type(callback).__name__}")
        if type(refresh) not in (int, float) or not 0 < refresh <= 86400:
            raise ValidationError("refresh must be seconds above 0, up to a day")
        self.envelope_id = _event.check_id(envelope_id, "envelope_id")
        self._client = weakref.ref(client)  # a watch keeps nobody from being collected
        self._threshold = threshold
        self._callback = callback
        self._refresh = refresh
        self._known: Optional[Budget] = None
        self._since = 0  # units recorded here since that look; guarded by the writer's lock
        self._look_at = 0.0  # of time.monotonic()
        self._looking: Optional[Tuple[int, object]] = None  # the process that looks: a child does not wait for it
        self._over: Optional[Budget] = None  # the one that was the known one when its period was seen to be over
        self._told: Dict[datetime, object] = {}
        self._cancelled = False
        self._in_trouble = False

    @property
    def budget(self) -> Optional[Budget]:
        """See the class."""
        known, since = self._known, self._since
        if known is None:
            return None
        pending = known.pending + since
        return replace(known, pending=pending, remaining=max(known.limit - known.used - pending, 0))

    def cancel(self) -> None:
        """No more calls, except for one that is under way."""
        self._cancelled = True

    def look(self) -> Optional[Budget]:
        """Asks the service now, and returns the budget; None when the client is gone.

        Raises:
            APIError: the service could not be asked.
        """
        client = self._client()
        if client is None:
            return None
        # Before it is asked, so that a service that is away is not asked with every event.
        self._look_at = time.monotonic() + self._refresh
        self._known = look(client, self.envelope_id, self._count_from_here)
        self._judge()
        return self.budget

    def recorded(self, events: Sequence[Event]) -> None:
        """Counts along; called by whoever stores events, with the writer's lock held, so it only counts."""
        units = 0 if self._cancelled else units_of(self.envelope_id, events)
        if not units:
            return
        self._since += units
        known = self._known
        if known is None or datetime.now(timezone.utc) < known.resets_at:
            self.look_soon()
            self._judge()
        else:  # the next period: what is known is of the last one
            is_news, self._over = self._over is not known, known
            self.look_soon(at_once=is_news)

    def look_soon(self, *, at_once: bool = False) -> None:
        """Has a thread look, unless one does, or the last attempt is less than `refresh` seconds old."""
        mine = os.getpid(), object()
        is_due = at_once or time.monotonic() >= self._look_at
        if not is_due or (self._looking is not None and self._looking[0] == mine[0]):
            return
        self._looking = mine
        if not _process.in_background(self._look_contained):
            self._looking = None

    def _look_contained(self) -> None:
        try:
            self.look()
            self._in_trouble = False
        except X402Error as error:
            if not self._in_trouble:
                log.warning("the budget of %s is not known, it is asked for again: %s", self.envelope_id, error)
            self._in_trouble = True
        except Exception:  # the edge of a thread
            log.exception("looking at the budget of %s failed unexpectedly", self.envelope_id)
        finally:
            self._looking = None

    def _count_from_here(self) -> None:
        self._since = 0

    def _judge(self) -> None:
        budget, client = self.budget, self._client()
        if budget is None or client is None or client.buffer is None or self._cancelled:
            return
        if budget.used + budget.pending < self._threshold * budget.limit:
            return
        mine = object()
        if self._told.setdefault(budget.period_started_at, mine) is mine:  # atomic: of two threads one tells
            client.buffer.call_back(self._callback, budget)


class Watches:
    """All that count along with one buffer. Needs no lock, which a fork could leave locked: appending is atomic."""

    def __init__(self) -> None:
        self._all: List[BudgetWatch] = []

    def add(self, watch: BudgetWatch) -> None:
        self._all.append(watch)

    def recorded(self, events: Sequence[Event]) -> None:
        for watch in self._all:
            watch.recorded(events)


def units_of(envelope_id: str, events: Sequence[Event]) -> int:
    """The units among these events that are the envelope's."""
    return sum(event[2] for event in events if event[1] == envelope_id)
