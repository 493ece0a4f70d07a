"""May POSTs be sent now? One gate before all of them, so that a service in trouble is left alone. See `_pace` for how
many at once.

    open       all may pass
    closed     nobody passes until a moment; what closed it says which
    half open  the moment has come: one passes (the pace starts over), and its answer opens the gate or closes it for
               longer

Closed by: `Retry-After`; a refused key (401, 403); 429 for POSTs that come one at a time; failures of many POSTs with
nothing delivered in between. One POST that fails again and again does not close it, because it may be the POST that is
at fault, and others would wait for it: that is told (`reason`), and it waits by itself. Time is passed in, so that a
test needs none.
"""

from __future__ import annotations

import random
from typing import Callable, Hashable, Optional, Set

from x402tools._retry import Backoff
from x402tools._verdict import Verdict

# So many POSTs that fail with no success in between are an outage rather than bad luck: with a fifth of all POSTs
# failing by chance it happens once in 400,000.
OUTAGE_AFTER = 8

# Seconds. A service that restarts is found again soon; one that is down for an hour is asked twice a minute.
_FIRST_PAUSE, _LONGEST_PAUSE, _SHORTEST_PAUSE = 0.2, 30.0, 0.05

# No Retry-After is obeyed for longer, in seconds: a wrong header must not stop deliveries for a day.
LONGEST_RETRY_AFTER = 300.0

# All who were told the same moment would come at it together: some come later, by up to this part of the time and so
# many seconds.
_SPREAD, _LARGEST_SPREAD = 0.1, 1.0


class Gate:
    """Opened by an answer that makes sense, closed by failures. `draw` yields numbers from 0 to 1."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, _SHORTEST_PAUSE)
        self._failures = 0  # since the last answer that made sense
        self._failing: Set[Hashable] = set()  # whose they were
        self._closings = 0  # in that time
        self._shut = False  # closed, or half open
        self._opens_at = 0.0
        self._asked_until = 0.0  # what the service asked for; no answer to an earlier POST shortens it
        self.reason: Optional[str] = None  # what is wrong, also when it is open all the same; None when nothing is

    def seconds_closed(self, now: float) -> float:
        """How long nobody may pass, from `now`; 0 when it is open or half open."""
        return max(self._opens_at - now, 0.0) if self._shut else 0.0

    @property
    def trying_out(self) -> bool:
        """True when the next POST is the one whose answer opens the gate or closes it for longer."""
        return self._shut

    def answered(self, now: float) -> None:
        """The service dealt with a POST, so it is there and accepts the key."""
        self._failures = self._closings = 0
        self._failing.clear()
        if now >= self._asked_until:
            self._shut, self.reason = False, None

    def failed(self, verdict: Verdict, now: float, post: Hashable, *, is_too_much: bool = False) -> None:
        """A POST has to be tried again, for what the verdict says; `post` tells it from the others.

        `is_too_much`: the service refuses for load what comes one at a time.
        """
        if self.seconds_closed(now) > 0 and verdict.wait is None:
            return  # sent before the gate closed: it says nothing new
        self._failures += 1
        if len(self._failing) < OUTAGE_AFTER:
            self._failing.add(post)
        if verdict.wait is not None:
            wait = min(verdict.wait, LONGEST_RETRY_AFTER)
            self._asked_until = max(self._asked_until, now + wait)
            self._close(verdict.reason, now + wait + min(wait * _SPREAD, _LARGEST_SPREAD) * self._draw())
        elif verdict.locked_out or is_too_much or self._shut or len(self._failing) >= OUTAGE_AFTER:
            self._closings += 1
            self._close(verdict.reason, now + self._pauses.seconds(self._closings))
        elif self._failures >= OUTAGE_AFTER:
            self.reason = verdict.reason

    def _close(self, reason: str, until: float) -> None:
        self._shut, self.reason = True, reason or "the service asked to wait"
        self._opens_at = max(self._opens_at, until)
