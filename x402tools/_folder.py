"""When recorded events are folded and sealed: the flusher's work between the spool and the spool.

A window begins with the oldest event that is not sealed, and its events are read while they come. When it ends they
are sealed in one transaction, which also makes them gone as recorded ones: before it they are recorded, after it
sealed, and a crash in between is not possible. While nothing can be sent, or much is waiting to be, nothing is sealed
either: then the groups get bigger instead of the queue longer.

Belongs to the flusher's thread, except for `hurry`.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import Callable, List, Optional, Sequence

from x402tools import _batch
from x402tools._batch import EncodedBatch
from x402tools._fold import Fold
from x402tools._store import ChangedError, Part

# Batches (of 500 events) that are read in one turn; between two turns the flusher does its other work.
_AT_ONCE = 20

# POSTs in memory at the most; then they are sealed before the window ends, or the rest has to wait on disk.
_MOST_POSTS = 20_000


class Folder:
    """Folds and seals what the store has as recorded.

    Args:
        store: where it comes from and goes to; of one that is folded in parts, the one.
        new_fold: makes an empty fold.
        window: seconds from the oldest event of a group until it is sealed, at the most; 0 seals at once.
        look_every: seconds between looks for events of other processes.
        longest_wait: seconds for which an event may wait at the most at the moment, whatever the window is.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        store: Part,
        new_fold: Callable[[], Fold],
        *,
        window: float,
        look_every: float,
        longest_wait: Callable[[], float] = lambda: math.inf,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._new_fold = new_fold
        self._window = window
        self._look_every = look_every
        self._longest_wait = longest_wait
        self._clock = clock
        self._asked = self._answered = object()  # another one with each `hurry`; the last one that was done
        self.reset()

    def hurry(self) -> None:
        """Has everything that is recorded by now sealed as soon as something can be sent. Called from any thread."""
        self._asked = object()

    @property
    def is_hurried(self) -> bool:
        """Whether something that `hurry` was called for may not be sealed yet."""
        return self._asked is not self._answered

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing left to read, to seal or to sweep, as far as is known."""
        return not self._fold.events and self._sealing is None and not self._unswept

    def reset(self) -> None:
        """Forgets what was read: it is still in the store, or another process seals it."""
        self._fold = self._new_fold()
        self._read_up_to = 0
        self._caught_up = False
        self._due = 0.0  # the end of the window; counts when something was read
        self._look_at = 0.0
        self._sealing: Optional[List[EncodedBatch]] = None  # while nobody knows whether they are stored
        self._unswept = True

    def look_now(self) -> None:
        """Something was stored."""
        self._look_at = 0.0

    def turn(self, may_seal: bool) -> bool:
        """One step of the work; whether something was sealed.

        Raises:
            SpoolError: nothing is lost; call it again.
        """
        asked = self._asked
        if self.is_hurried and self._caught_up:
            self._look_at, self._caught_up = 0.0, False
        if self._may_read(self._clock()):
            self._read()
        sealed = self._is_due() and may_seal and self._seal()
        if self._caught_up and not self._fold.events and self._sealing is None:
            self._answered = asked
        if self._unswept:
            self._unswept = self._store.sweep()
        return sealed

    def next_turn(self, may_seal: bool) -> float:
        """The moment of the clock at which the next turn has something to do."""
        now = self._clock()
        if self._unswept:
            return now
        moments = [now + self._look_every]
        if self._sealing is None and self._fold.size < _MOST_POSTS:
            moments.append(self._look_at)
        if may_seal and self._fold.events:
            moments.append(now if self._is_due() else self._due)
        return min(moments)

    def _may_read(self, now: float) -> bool:
        return self._sealing is None and self._fold.size < _MOST_POSTS and now >= self._look_at

    def _read(self) -> None:
        batches = self._store.recorded(self._read_up_to, _AT_ONCE)
        if batches and not self._fold.events:
            age = min(max(time.time() - batches[0].stored_at, 0.0), self._window)
            self._due = self._clock() + max(min(self._window - age, self._longest_wait()), 0.0)
        for batch in batches:
            self._fold.add(batch.recorder, batch.rows)
            self._read_up_to = batch.sequence
        self._caught_up = len(batches) < _AT_ONCE
        self._look_at = self._clock() + self._look_every if self._caught_up else 0.0

    def _is_due(self) -> bool:
        if self._sealing is not None or self._fold.size >= _MOST_POSTS:
            return True
        if not self._fold.events:
            return False
        return (self.is_hurried and self._caught_up) or self._clock() >= self._due

    def _seal(self) -> bool:
        if self._sealing is None:
            self._sealing = _encoded(self._fold)
        try:
            self._store.seal(self._read_up_to, self._sealing)
            # Before any of it is sent: a power cut that undid the sealing would have the events folded once more, under
            # another key.
            self._store.sync()
        except ChangedError:  # what was read is still recorded, in another file
            self.reset()
            return False
        self._fold, self._sealing, self._unswept = self._new_fold(), None, True
        return True


def _encoded(fold: Fold) -> List[EncodedBatch]:
    posts = fold.posts()
    name = f"fold-{uuid.uuid4().hex}"
    starts: Sequence[int] = range(0, len(posts), _batch.MOST_EVENTS)
    return [_batch.encode_posts(f"{name}/{at}", posts[at : at + _batch.MOST_EVENTS]) for at in starts]
