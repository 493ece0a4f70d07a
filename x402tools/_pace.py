"""How many POSTs may be under way, between 1 and `max_concurrency`. Pure: moments and times are passed in.

    grows    with every answer: up to a mark twice as many a round trip, beyond it slowly at first
    falls    when the service refuses for load (429, 503), and when answers take far longer than they can; the mark
             falls with it
    one      once the gate has closed: what opens it again is one POST, and from there on it grows

It begins with `_FIRST`, not with one: a short program has little time, and where the service is away the gate closes
all the same. How much it grows is drawn, so that many processes that were stopped by one outage do not march in step.

A fall has an effect after a round trip only. What was sent before the last one says nothing about what came of it, and
is passed over. An answer is slow by comparison with what this service has shown that it can do; one that stays slow
with a single POST under way is not slow because of us, so that is what it can do from then on.
"""

from __future__ import annotations

import random
from typing import Callable, List

# At the start, where nothing is known of the service: a thousand processes with 64 each would be a herd.
_FIRST = 8

# After a refusal. Little at first, so that the service is used in full between two of them; when what is left is
# refused within half a round trip too, it is far too much.
_FALL, _FURTHER_FALL = 0.9, 0.7
_AFTER_OUTAGE = 0.5  # of what it was: so far it grows fast again

# Beyond the mark: the first one more takes ten round trips, so that a service at its limit has to refuse few, each
# further one half as many as the one before, and no less than one.
_FIRST_GAIN, _LARGEST_GAIN = 0.1, 1.0  # POSTs a round trip

# A window of answers is slow when its median is above so many times the lowest median, so many seconds (a service that
# answers within them is fast) and so many for each POST that may be under way: beside a busy thread each answer waits
# for the interpreter lock for as long as that, and all of them in turn.
_SLOW_TIMES, _SLOW_SECONDS, _SWITCH_INTERVAL = 2.0, 0.1, 0.005
_WINDOW = 10  # answers at the least, and not fewer than may be under way

# The largest fall because of slow answers: they come late, so what they say is somewhat old.
_LARGEST_FALL = 0.5


class Pace:
    """Grows additively, falls multiplicatively.

    Args:
        most: POSTs under way at the most.
        draw: yields numbers from 0 to 1.
    """

    def __init__(self, most: int, draw: Callable[[], float] = random.random) -> None:
        self._most = float(most)
        self._draw = draw
        self._exact = min(self._most, float(_FIRST))
        self._mark = self._most
        self._gain = _FIRST_GAIN
        self._fell_at = float("-inf")
        self._answers = 0  # to POSTs that were sent since
        self._times: List[float] = []  # of the present window
        self._lowest = float("inf")  # median of a window

    @property
    def limit(self) -> int:
        """How many may be under way."""
        return int(self._exact)

    def answered(self, now: float, sent_at: float, seconds: float) -> None:
        """The service has dealt with a POST, in so many seconds."""
        if sent_at < self._fell_at:
            return
        self._answers += 1
        self._times.append(seconds)
        if len(self._times) >= max(_WINDOW, self.limit):
            # Not by `statistics`, which takes longer to import than most of this package.
            median, self._times = sorted(self._times)[len(self._times) // 2], []
            self._compare(now, median)
        if self._lowest < float("inf"):  # not before it is known what is fast
            self._grow()

    def refused(self, now: float, sent_at: float) -> bool:
        """The service did not take a POST because it has too much to do; whether one at a time is too much too."""
        if sent_at < self._fell_at:
            return False
        is_too_much = self._exact == 1.0 and not self._answers
        self._fall(now, _FALL if self._answers * 2 >= self._exact else _FURTHER_FALL)
        return is_too_much

    def start_over(self, now: float) -> None:
        """Nothing gets through: goes on with one, once something does."""
        self._fall(now, _AFTER_OUTAGE)
        self._exact = 1.0

    def _grow(self) -> None:
        drawn = 0.5 + self._draw()
        if self._exact < self._mark:
            self._exact += drawn
        else:
            self._exact += drawn * self._gain / self._exact
            if self._exact >= self._mark + 1:
                self._mark, self._gain = self._exact, min(self._gain * 2, _LARGEST_GAIN)
        self._exact = min(self._exact, self._most)

    def _fall(self, now: float, factor: float) -> None:
        self._exact = self._mark = max(self._exact * factor, 1.0)
        self._gain = _FIRST_GAIN
        self._fell_at = now
        self._answers = 0
        self._times = []

    def _compare(self, now: float, median: float) -> None:
        allowed = self._lowest * _SLOW_TIMES + _SLOW_SECONDS + self._exact * _SWITCH_INTERVAL
        if median > allowed and self.limit > 1:
            self._fall(now, max(allowed / median, _LARGEST_FALL))
        elif median > allowed:
            self._lowest = median
        else:
            self._lowest = min(self._lowest, median)
