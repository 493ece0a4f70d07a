"""The thread that takes events from the intake to the store, many in one commit.

With `durability="interval"` this thread alone commits, every few milliseconds. With "commit" and "fsync" the callers
commit: whoever gets the lock commits for everybody who is waiting (a group commit), and the thread only repeats what
failed and, for "commit", syncs about once a second.

A batch that could not be stored stays here, in memory and under its id, and is tried again until it is stored: the
store takes a batch of one id once, so trying again is harmless even when the failed attempt did store it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, List, Optional

from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._intake import Intake
from x402tools._store import Store, Tally
from x402tools.errors import SpoolError

log = logging.getLogger("x402tools")

# Seconds between two commits. With the commit itself, an event is on disk about 10 ms after it was recorded.
COMMIT_EVERY = 0.005

# After this many empty looks the thread sleeps until it is woken, which costs the waking call some microseconds; so
# it does not while there is traffic.
_LOOKS_BEFORE_SLEEP = 100

_LONGEST_SLEEP = 1.0  # seconds; the thread looks again by itself
_SYNC_EVERY = 1.0  # seconds
_FIRST_RETRY, _LONGEST_RETRY = 0.05, 1.0  # seconds between attempts to store while the store fails

# So many batches (of 500 events) go into one commit at the most; the callers' lock waits for it.
_BATCHES_PER_COMMIT = 20


class Writer:
    """Moves events from the intake into the store.

    Args:
        intake: where they come from.
        store: where they go.
        durability: "interval", "commit" or "fsync".
        on_stored: called with the number of events after each commit.
        on_trouble: called when storing begins to fail, and with None when it works again.
    """

    def __init__(
        self,
        intake: Intake,
        store: Store,
        durability: str,
        on_stored: Callable[[int], None],
        on_trouble: Callable[[Optional[SpoolError]], None],
    ) -> None:
        self._intake = intake
        self._store = store
        self._durability = durability
        self._on_stored = on_stored
        self._on_trouble = on_trouble
        self._lock = threading.RLock()  # guards taking from the intake, and the fields below
        self._unstored: List[EncodedBatch] = []
        self._batch_number = 0
        self._committing = False
        self._unsynced = False
        self._trouble: Optional[SpoolError] = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="x402tools-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def trouble(self) -> Optional[str]:
        """Why storing fails at the moment, or None."""
        return str(self._trouble) if self._trouble is not None else None

    def commit(self) -> bool:
        """Stores everything that was recorded before this call; True when it is stored.

        Who waits for the lock while another commits often finds nothing left to do: the other took its event along.
        What is recorded during the call is left to the next one: under steady traffic it would never end otherwise.
        """
        with self._lock:
            if self._committing:  # a signal handler recorded in the middle of a commit, which will see the event
                return False
            self._committing = True
            try:
                left = len(self._intake.events)
                while left or self._unstored:
                    left = min(left - self._store_some(left), len(self._intake.events))
                self._store_dropped()
            except SpoolError as error:
                self._set_trouble(error)
                return False
            finally:
                self._committing = False
            self._set_trouble(None)
            return True

    def wait_for_commit(self) -> None:
        """What a caller does whose event has to be stored before it goes on; does not wait for a store that fails, and
        not in the middle of the store's own work, where the thread's next look has to do."""
        if self._trouble is None and not self._store.is_entered():
            self.commit()

    def waiting(self) -> Tally:
        """What is recorded and not in the store; call with `lock` held for a count that misses nothing."""
        unstored = Tally(sum(batch.events for batch in self._unstored), sum(batch.units for batch in self._unstored))
        return unstored.plus(self._intake.waiting())

    @property
    def lock(self) -> threading.RLock:
        """Held, nothing moves from memory to the store."""
        return self._lock

    def stop(self, deadline: float) -> List[Post]:
        """Ends the thread and stores what is left; returns the events that could not be stored until the deadline.

        Args:
            deadline: a moment of `time.monotonic()`. One attempt is made in any case.
        """
        self._stopping.set()
        self._intake.wake()
        if self._thread.ident is not None:
            self._thread.join(max(deadline - time.monotonic(), 0.0))
        retry = threading.Event()  # never set: only waited on
        while not self.commit():
            if time.monotonic() + _FIRST_RETRY >= deadline:
                return self._give_up()
            retry.wait(_FIRST_RETRY)
        return []

    def _give_up(self) -> List[Post]:
        """Takes what is in memory out of the account of waiting events, and counts it as dropped."""
        with self._lock:
            rest = self._intake.take(len(self._intake.events))
            if rest:
                self._unstored.append(_batch.encode(self._intake.recorder, self._batch_number + 1, rest))
            lost = [post for batch in self._unstored for post in _batch.decode(batch.value)]
            self._unstored = []
            self._intake.give_back_dropped(Tally(len(lost), sum(post.amount for post in lost)))
            return lost

    def _run(self) -> None:
        empty_looks, retry = 0, _FIRST_RETRY
        next_sync = time.monotonic() + _SYNC_EVERY
        while not self._stopping.is_set():
            busy = bool(self._intake.events)
            if not self._commit_safely():
                self._stopping.wait(retry)
                retry = min(2 * retry, _LONGEST_RETRY)
                continue
            retry = _FIRST_RETRY
            if time.monotonic() >= next_sync:
                self._sync()
                next_sync = time.monotonic() + _SYNC_EVERY
            empty_looks = 0 if busy else empty_looks + 1
            if self._durability != "interval":
                self._stopping.wait(_SYNC_EVERY)
            elif empty_looks < _LOOKS_BEFORE_SLEEP:
                self._stopping.wait(COMMIT_EVERY)
            else:
                self._intake.sleep(_LONGEST_SLEEP)

    def _commit_safely(self) -> bool:
        try:
            return self.commit()
        except Exception:  # the edge of the thread: it must outlive anything, MemoryError included
            log.exception("the writer failed unexpectedly; the events stay in memory and it tries again")
            return False

    def _store_some(self, most: int) -> int:
        """Stores what is here and up to `most` events of the intake; how many it took from there."""
        taken = 0
        while taken < most and self._intake.events and len(self._unstored) < _BATCHES_PER_COMMIT:
            events = self._intake.take(min(_batch.MOST_EVENTS, most - taken))
            try:
                batch = _batch.encode(self._intake.recorder, self._batch_number + 1, events)
            except BaseException:  # out of memory, or an interrupt in the caller's thread: nothing may go missing
                self._intake.give_back(events)
                raise
            taken += len(events)
            self._batch_number += 1
            self._unstored.append(batch)
            self._intake.held_elsewhere(batch.events)
        self._store.append(self._unstored, Tally())
        stored = sum(batch.events for batch in self._unstored)
        self._unstored = []
        self._intake.held_elsewhere(-stored)
        self._unsynced = True
        self._intake.made_room()
        self._on_stored(stored)
        return taken

    def _store_dropped(self) -> None:
        dropped = self._intake.take_dropped()
        if not dropped.events:
            return
        try:
            self._store.append([], dropped)
        except SpoolError:
            self._intake.give_back_dropped(dropped)
            raise

    def _sync(self) -> None:
        if self._durability != "commit":
            return
        with self._lock:
            if not self._unsynced:
                return
            try:
                self._store.sync()
                self._unsynced = False
            except SpoolError as error:
                self._set_trouble(error)

    def _set_trouble(self, error: Optional[SpoolError]) -> None:
        changed = (error is None) != (self._trouble is None)
        self._trouble = error
        if changed:
            self._on_trouble(error)
