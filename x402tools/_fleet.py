"""May this process send now, as far as the other processes are concerned that deliver from the same store?

The gate (`_gate`) is what this process learned from its own POSTs. What the service tells one process holds for all of
them: `Retry-After` and a refused key (401, 403) are passed on through the store, and asked for before POSTs go out; so
is the rate that all of them keep together. A file has one process that delivers, and always says yes.

    one is told to wait ──shut──► nobody sends until then ──► one process sends one ──answered──► all go on
                                          ▲                              │
                                          └────────────failed────────────┘

An outage is not passed on: it may be the network of one host. Not thread-safe: the flusher's alone.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

from x402tools._store import Store
from x402tools._verdict import Verdict

# Seconds between two questions at the least, when the store says no and not for how long.
_SHORTEST_WAIT = 0.02


class Fleet:
    """What the processes that deliver from one store tell each other.

    Attributes:
        reason: why none of them sends, or only one, as far as this process knows; None when they do.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._ask_at = 0.0
        self._to_tell: Optional[Tuple[str, float]] = None  # the reason, and until when
        self._answered = False
        self.reason: Optional[str] = None

    def failed(self, verdict: Verdict, seconds: float) -> None:
        """A POST of this process has closed its gate for so long; is passed on when it says something of the others."""
        if seconds > 0 and (verdict.wait is not None or verdict.locked_out):
            self._to_tell = verdict.reason or "the service asked to wait", self._clock() + seconds

    def answered(self) -> None:
        """The service dealt with a POST of this process, so it is there and accepts the key."""
        self._answered = self.reason is not None

    def tell(self) -> None:
        """Passes on what is new."""
        if self._to_tell is not None:
            reason, until = self._to_tell
            self._store.shut(reason, max(until - self._clock(), 0.0))
            self._to_tell, self._answered, self.reason = None, False, reason
        elif self._answered:
            self._store.reopen()
            self._answered, self.reason, self._ask_at = False, None, 0.0

    def allowed(self, most: int) -> int:
        """How many POSTs of `most` may go out now; they count as sent."""
        if most <= 0 or self.seconds_closed() > 0:
            return 0
        posts, wait, self.reason = self._store.allowance(most)
        if posts < most:
            self._ask_at = self._clock() + max(wait, _SHORTEST_WAIT)
        return posts

    def seconds_closed(self) -> float:
        """How long it is of no use to ask."""
        return max(self._ask_at - self._clock(), 0.0)
