"""How long the POSTs of a process take: a histogram with fixed bounds, cheap enough to be kept always."""

from __future__ import annotations

import logging
from bisect import bisect_left
from typing import Callable, List, NamedTuple, Tuple

log = logging.getLogger("x402tools")

# Seconds; those that OpenTelemetry recommends for HTTP, and two more up to beyond the default time-out of an answer.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 60.0)

Watcher = Callable[[float], object]


class AttemptTimes(NamedTuple):
    """How long attempts at POSTs took, failed ones included.

    Attributes:
        counts: how many took up to each of the bounds and longer than the one before; the last one, longer than all.
        total: seconds, of all together.
        bounds: seconds.
    """

    counts: Tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    total: float = 0.0
    bounds: Tuple[float, ...] = BOUNDS

    @property
    def attempts(self) -> int:
        """How many there were."""
        return sum(self.counts)


class Stopwatch:
    """Where the flusher's thread, and nobody else, says how long each attempt took."""

    def __init__(self, watchers: Tuple[Watcher, ...] = ()) -> None:
        self._counts: List[int] = [0] * (len(BOUNDS) + 1)
        self._total = 0.0
        self._watchers = watchers  # replaced, never changed: the thread may be reading it

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._total += seconds
        for watcher in self._watchers:
            try:
                watcher(seconds)
            except Exception:  # somebody else's code, in the middle of noting that a POST was answered
                self._watchers = tuple(one for one in self._watchers if one is not watcher)
                log.exception("what watches the time of POSTs failed, and is not called any more; deliveries go on")

    def watch(self, watcher: Watcher) -> None:
        """Has it called with the seconds of each attempt from now on."""
        self._watchers = (*self._watchers, watcher)

    def anew(self) -> Stopwatch:
        """One that begins at zero and has the same watchers, for a forked child."""
        return Stopwatch(self._watchers)

    def times(self) -> AttemptTimes:
        """What was said so far."""
        return AttemptTimes(tuple(self._counts), self._total)
