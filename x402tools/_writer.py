"""The thread that takes events from the intake to the store, many in one commit.

With `durability="interval"` this thread alone commits, every few milliseconds; with "commit" too, where callers note in
a journal what they record (`_journal`). With "fsync", or without a journal, the callers commit: whoever gets the lock
commits for everybody who is waiting (a group commit), and the thread only repeats what failed and syncs about once a
second what was not synced.

What cannot be written stays in the memory of the store (`_reserve`), and this thread has it try again until it works.
When the store has enough of that, events stay in the intake, until `max_queue_size` is reached there too.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, List, Optional, Sequence

from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._bell import Flag
from x402tools._desk import Desk, InBetweenError
from x402tools._event import Event
from x402tools._intake import Intake
from x402tools._line import Line, Place
from x402tools._partition import split
from x402tools._reserve import Reserve
from x402tools._store import Tally
from x402tools._threads import LastingThread
from x402tools.errors import SpoolError

log = logging.getLogger("x402tools")

# Seconds from the beginning of a commit to that of the next. With the commit itself, an event is on disk about 10 ms
# after it was recorded. A commit of few events costs nearly as much CPU as one of many, so not more often than that.
COMMIT_EVERY = 0.01
_SHORTEST_PAUSE = 0.005  # seconds after a commit that took long

# After this many empty looks the thread sleeps until it is woken, which costs the waking call some microseconds; so
# it does not while there is traffic.
_LOOKS_BEFORE_SLEEP = 100

_PATIENCE = 1.0  # seconds that a caller waits for the one that commits, before it sees to its event itself
_LONGEST_SLEEP = 1.0  # seconds; the thread looks again by itself
_LOOK_AROUND_EVERY = 1.0  # seconds after which it syncs, and looks for what killed processes have left
_LOOK_EVERY = 0.02  # seconds between looks of a caller that waits for the commit of another, which wakes it
_FIRST_RETRY, _LONGEST_RETRY = 0.05, 1.0  # seconds between attempts to store while the store fails

_NEXT_COMMIT = 0.5  # seconds that a commit at the end gives to the one after it, whatever the deadline: the disk works

# So many batches (of 500 events) go into one commit at the most; the callers' lock waits for it.
_BATCHES_PER_COMMIT = 20
_BYTES_PER_COMMIT = 1024 * 1024  # by so much, and one batch, a commit may pass the limit of the spool


class Writer:
    """Moves events from the intake into the store.

    Args:
        intake: where they come from.
        store: where they go.
        desk: where the main thread's commits are made.
        durability: "interval", "commit" or "fsync".
        on_stored: called with the number of events after each commit.
        on_trouble: called when storing begins to fail, and with None when it works again.
        on_mended: called with what was done about a spool that was damaged or gone, or without a journal.
        on_taken: called with the events of each batch, with the lock held.
        as_stored: what of the events is written down; they themselves, unless they are to carry their time.
        partitions: into so many parts the store is split: each batch is of one.
    """

    def __init__(
        self,
        intake: Intake,
        store: Reserve,
        desk: Desk,
        durability: str,
        on_stored: Callable[[int], None],
        on_trouble: Callable[[Optional[SpoolError]], None],
        on_mended: Callable[[str], None],
        encode: Callable[..., EncodedBatch] = _batch.encode,
        on_taken: Callable[[Sequence[Event]], None] = lambda _: None,
        as_stored: Callable[[Sequence[Event]], Sequence[Event]] = lambda events: events,
        partitions: int = 1,
    ) -> None:
        self._intake = intake
        self._store = store
        self._desk = desk
        self._callers_commit = durability != "interval" and not intake.is_journalled
        self._is_synced_later = durability == "commit" and not intake.is_journalled
        self._on_stored = on_stored
        self._on_trouble = on_trouble
        self._on_mended = on_mended
        self._encode = encode
        self._on_taken = on_taken
        self._as_stored = as_stored
        self._partitions = partitions
        self._lock = threading.RLock()  # guards taking from the intake, and the fields below
        self._unstored: List[EncodedBatch] = []
        self._committing = False
        self._begun = self._done = 0  # commits; the last one done has the number of the last one begun
        self._line = Line()
        # Held by the caller that commits for all, also while it waits for the disk; nobody waits for it for long. One
        # that a thread can take twice, because a `__del__` may come in between.
        self._leading = threading.RLock()
        self._is_leading = False
        self._unsynced = False
        self._held = 0  # events that the intake was told of as held elsewhere
        self._in_trouble = False
        self._stopping = Flag()
        self.thread = LastingThread(self._run, "x402tools-writer")

    def start(self) -> None:
        """Starts the thread, if that is possible; see `LastingThread.start`."""
        self.thread.start()

    @property
    def trouble(self) -> Optional[str]:
        """Why storing fails at the moment, or None."""
        return str(self._store.trouble) if self._store.trouble is not None else None

    def commit(self) -> bool:
        """Hands everything that was recorded before this call to the store; True when the store has it all, on disk
        or, while the disk fails, in memory.

        What is recorded during the call is left to the next one: under steady traffic it would never end otherwise.
        """
        try:
            complete = self._desk.run(self._commit)
        except InBetweenError:
            return False
        # Not at the desk, and without the lock: this writes log lines, and a log handler may be what records.
        self._report()
        return complete

    def _commit(self) -> bool:
        try:
            with self._lock:
                return self._commit_now()
        finally:
            self._line.let_go(self._done)

    def _commit_now(self) -> bool:
        """Call with the lock held, and let those in line go when it is free."""
        self._intake.dropped()  # adds them up, or they would become many while the store fails
        if self._committing:  # a `__del__` recorded in the middle of a commit; the next one takes it along
            return False
        self._committing = True
        self._begun += 1
        try:
            self._intake.bring_in(everything=self._stopping.is_set() or not self.thread.is_alive())
            left = self._hand_over()
            self._done = self._begun
            if not (self._unstored or self._store.is_behind):
                self._intake.stored()
            return not left
        finally:
            self._committing = False

    def wait_for_commit(self) -> None:
        """What a caller does whose event has to be stored before it goes on; does not wait for a store that fails.

        A group commit: one of the callers commits for all, and the others wait for that, see `_line`. A commit takes
        along what was put before it began, so a caller has to see the end of one that began after it put its event.
        """
        if self._in_trouble:
            return
        begun = self._begun
        try:
            has_tried = self._desk.run(lambda: self._wait_for_commit_after(begun))
        except InBetweenError:
            return
        if has_tried:
            self._report()  # as in `commit`

    def _wait_for_commit_after(self, begun: int) -> bool:
        """Whether this caller was one that committed."""
        place = self._line.join(begun)
        try:
            if not self._leading.acquire(blocking=False) and not self._becomes_the_next(place, begun):
                if self._done <= begun:
                    self._commit()  # beside the one that hangs: the store knows how long to wait for it
                    return True
                return False
            try:
                if self._done <= begun and not self._is_leading:  # else a `__del__` came in between
                    self._commit_for_all(begun)
            finally:
                self._leading.release()
                self._line.let_go(self._done)
        finally:
            self._line.leave(place)
        return True

    def _becomes_the_next(self, place: Place, begun: int) -> bool:
        """Waits until this caller's event is stored, or for its turn to commit; False when it has not got that."""
        give_up = time.monotonic() + _PATIENCE
        while self._done <= begun and time.monotonic() < give_up:
            place.wait(_LOOK_EVERY)
            if self._done <= begun and self._leading.acquire(blocking=False):
                return True
        return False

    def _commit_for_all(self, begun: int) -> None:
        self._is_leading = True
        try:
            self._line.gather()
            if self._done <= begun:
                with self._lock:
                    self._commit_now()  # once: what the store has no room for is left to the thread
        finally:
            self._is_leading = False

    def waiting(self) -> Tally:
        """What is recorded and not in the store; call with `lock` held for a count that misses nothing."""
        unstored = Tally(sum(batch.events for batch in self._unstored), sum(batch.units for batch in self._unstored))
        return unstored.plus(self._intake.waiting())

    def noted(self) -> int:
        """How many events of those a journal has. Asked before `waiting`, they are among them."""
        return sum(batch.events for batch in self._unstored if batch.is_noted) + self._intake.noted()

    @property
    def lock(self) -> threading.RLock:
        """Held, nothing moves from memory to the store."""
        return self._lock

    def stop(self, deadline: float) -> None:
        """Ends the thread and hands everything to the store, also beyond what it usually keeps in memory.

        Args:
            deadline: a moment of `time.monotonic()`. One attempt is made in any case.
        """
        self._stopping.set()
        self._intake.wake()
        self.thread.join(deadline - time.monotonic())
        self.commit()

    def give_up(self, deadline: float) -> List[Post]:
        """After `stop`: has the store write down what it keeps until the deadline; returns the events it could not."""
        retry = threading.Event()  # never set: only waited on
        while not self.commit() or self._store.is_behind:
            if time.monotonic() + _FIRST_RETRY >= deadline:
                return self._desk.run(self._store.give_up)
            retry.wait(_FIRST_RETRY)
        return []

    def _run(self) -> None:
        empty_looks, retry = 0, _FIRST_RETRY
        next_look = time.monotonic() + _LOOK_AROUND_EVERY
        while not self._stopping.is_set():
            busy, began = self._intake.ready() > 0, time.monotonic()
            if not self._safely(self._turn) or self._in_trouble:
                self._stopping.wait(retry)
                retry = min(2 * retry, _LONGEST_RETRY)
                continue
            retry = _FIRST_RETRY
            if time.monotonic() >= next_look:
                self._safely(self._look_around)
                next_look = time.monotonic() + _LOOK_AROUND_EVERY
            empty_looks = 0 if busy else empty_looks + 1
            if self._callers_commit:
                self._intake.rest(_LOOK_AROUND_EVERY)
            elif empty_looks < _LOOKS_BEFORE_SLEEP:
                self._stopping.wait(max(began + COMMIT_EVERY - time.monotonic(), _SHORTEST_PAUSE))
            else:
                self._intake.sleep(_LONGEST_SLEEP)

    def _turn(self) -> bool:
        complete = self.commit()
        self._intake.tend(self._lock)
        return complete

    def _look_around(self) -> bool:
        self._sync()
        self._store.take_over(0)
        return True

    def _safely(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception:  # the edge of the thread: it must outlive anything, MemoryError included
            log.exception("the writer failed unexpectedly; the events stay in memory and it tries again")
            return False

    def _hand_over(self) -> int:
        """Takes to the store what is recorded by now, as much as it has room for; how many events it had not."""
        left, tried = self._intake.ready(), False
        while (left or self._unstored) and self._may_take(tried):
            left = min(left - self._store_some(left), self._intake.ready())
            tried = True
        dropped = self._intake.take_dropped()
        if dropped.events:
            self._store.append([], dropped)
        elif not tried:
            self._store.catch_up()  # also notices, at the latest after a second, that the file is gone
        else:
            return left
        self._account()
        return left

    def _may_take(self, tried: bool) -> bool:
        """A store that fails is tried once a turn; at the end it has to take everything, as nobody else will."""
        return self._stopping.is_set() or (self._store.has_room and not (tried and self._store.trouble))

    def _store_some(self, most: int) -> int:
        """Stores what is here and up to `most` events of the intake; how many it took from there."""
        taken = 0
        while taken < most and self._intake.ready() and self._has_room_in_commit():
            # So many more with several partitions, that the batches are as large.
            taken += self._take(min(_batch.MOST_EVENTS * self._partitions, most - taken))
        self._store.append(self._unstored, Tally())
        stored = sum(batch.events for batch in self._unstored)
        self._unstored = []  # after an interrupt they are appended once more, which is harmless
        self._unsynced = True
        if self._stopping.is_set() and self._store.trouble is None:
            self._store.go_on(_NEXT_COMMIT)
        self._account()
        self._on_stored(stored)
        return taken

    def _has_room_in_commit(self) -> bool:
        size = sum(len(batch.value) for batch in self._unstored)
        return len(self._unstored) < _BATCHES_PER_COMMIT and size < _BYTES_PER_COMMIT

    def _take(self, most: int) -> int:
        """Makes batches of up to so many events of the intake, to be stored; how many events they have."""
        events = self._intake.take(most)
        try:
            batches = self._encoded(events)
        except BaseException:  # out of memory, or an interrupt in the caller's thread: nothing may go missing
            self._intake.give_back(events)
            raise
        if self._intake.took_noted is not False:
            batches = [batch._replace(is_noted=self._intake.took_noted) for batch in batches]
        self._unstored += batches
        self._intake.held_elsewhere(len(events))
        self._held += len(events)
        self._on_taken(events)
        return len(events)

    def _encoded(self, events: List[Event]) -> List[EncodedBatch]:
        """The batches of these events. Each has a number of its own, as a repetition is known by it: how many events
        were taken with it, or in several partitions one below that for each of the others."""
        parts = [events] if self._partitions == 1 else split(events, self._partitions)
        recorder, first = self._intake.recorder, self._intake.taken - len(parts) + 1
        return [self._encode(recorder, number, self._as_stored(part)) for number, part in enumerate(parts, first)]

    def _account(self) -> None:
        """Events that were taken and are still in memory, here or in the store, leave less room for new ones."""
        held = sum(batch.events for batch in self._unstored) + self._store.in_memory
        self._intake.held_elsewhere(held - self._held)
        has_more_room, self._held = held < self._held, held
        if has_more_room:
            self._intake.made_room()

    def _sync(self) -> None:
        if not self._is_synced_later:
            return
        with self._lock:
            if not self._unsynced:
                return
            try:
                self._store.sync()
                self._unsynced = False
            except SpoolError:
                pass  # the store says why; it is tried again
        self._report()  # without the lock, as in `commit`

    def _report(self) -> None:
        for notice in self._store.take_notices():
            self._on_mended(notice)
        of_journal = self._intake.take_notice()  # asked by whoever commits: nobody else may come to it before the end
        if of_journal is not None:
            self._on_mended(of_journal)
        trouble = self._store.trouble
        if (trouble is not None) != self._in_trouble:
            self._in_trouble = trouble is not None
            self._on_trouble(trouble)
