"""When the envelopes that this process has heard of start anew, for a buffer that delivers to them.

A buffer knows no envelope by itself. It learns of one from `X402Client.budget`, `X402Client.on_budget` and
`UsageBuffer.watch`; about all others it makes no promise.
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from typing import Callable, Dict, List, NamedTuple, Optional

from x402tools._batch import Post
from x402tools._periods import Period, period_around
from x402tools._store import Tally
from x402tools.models import Envelope

# Seconds before a reset within which nothing waits for flush_interval any more, and how long it waits instead.
LEAD = 2.0
INTERVAL_NEAR_RESET = 0.1


class _Known(NamedTuple):
    kind: str
    reset_day: Optional[int]
    period: Period  # the one that was current when it was last asked for


class Resets:
    """Needs no lock: each change is one assignment.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: Dict[str, _Known] = {}
        self.late = Tally()  # changed by the flusher's thread alone

    def learn(self, envelope: Envelope) -> Period:
        """Remembers when this envelope resets; returns its current period.

        Raises:
            ValidationError: its period is of a kind that this version does not know.
        """
        period = period_around(envelope.period, envelope.reset_day, self._now())
        self._known[envelope.id] = _Known(envelope.period, envelope.reset_day, period)
        return period

    def knows(self, envelope: Envelope) -> bool:
        """Whether it would learn nothing new."""
        known = self._known.get(envelope.id)
        return known is not None and (known.kind, known.reset_day) == (envelope.period, envelope.reset_day)

    def seconds_to_flush(self) -> float:
        """How long what is stored may wait so that it is delivered before the next reset; infinity when none is known.

        The last moments are not promised: what is recorded within a tenth of a second of a reset may be late.
        """
        if not self._known:
            return math.inf
        now = self._now()
        left = min((self._current(name, now).resets_at - now).total_seconds() for name in list(self._known))
        return left - LEAD if left > LEAD else INTERVAL_NEAR_RESET

    def delivered(self, posts: List[Post]) -> None:
        """Counts those that were recorded before a reset and are delivered after it."""
        if not self._known:
            return
        now = self._now()
        for post in posts:
            if post.envelope_id not in self._known:
                continue
            if post.recorded_at < self._current(post.envelope_id, now).started_at.timestamp():
                self.late = self.late.plus(Tally(post.events, post.amount))

    def _current(self, envelope_id: str, now: datetime) -> Period:
        known = self._known[envelope_id]
        if not known.period.started_at <= now < known.period.resets_at:
            known = known._replace(period=period_around(known.kind, known.reset_day, now))
            self._known[envelope_id] = known
        return known.period

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), timezone.utc)
