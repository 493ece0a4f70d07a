"""What one process builds for a `UsageBuffer`: a store, the memory before it, and the threads. Where all the parts
meet. A forked child builds its own.

Nothing here knows the buffer it serves. So a buffer that nobody holds any more can be collected while the threads
run, and what it left is stored and delivered all the same.

The end, in its order and with one deadline: nothing more is taken in; memory is stored; the spool is delivered, and
what a failing disk kept in memory; the callbacks are called; the file is closed. After the end of the *process*
(`close_at_exit`) events are still accepted, from somebody's exit handler or `__del__`, and each is stored in the
calling thread, because by then no thread may run any more.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Callable, Iterable, List, Optional, Union

from x402tools import _process, _spool_file
from x402tools._batch import Post
from x402tools._bell import Bell
from x402tools._budget import Watches, units_of
from x402tools._desk import Desk, InBetweenError
from x402tools._event import Event
from x402tools._flusher import Flusher
from x402tools._intake import Intake
from x402tools._journal import JournalledIntake
from x402tools._reconcile import ReadUsage, Reconciler, Reconciliation
from x402tools._reports import Reports
from x402tools._reserve import Reserve
from x402tools._resets import Resets
from x402tools._senders import Deliver
from x402tools._settings import Settings
from x402tools._spool import Spool
from x402tools._stats import BufferStats, FlushResult, Health, PartHealth
from x402tools._store import DeadLetter, Store
from x402tools._timings import Stopwatch
from x402tools._writer import Writer
from x402tools.errors import BufferClosedError, SpoolError, ValidationError

if TYPE_CHECKING:
    from x402tools._redis_partitions import Partitions
    from x402tools._redis_store import Engine
    from x402tools._spill import Spilling

# Seconds between looks of flush() at a spool that another process delivers.
_LOOK_EVERY = 0.1

# A daemon thread that held the lock when the interpreter began to end never lets it go. Seconds.
_LATE_WAIT = 0.5

_CANNOT_COMPARE = (
    "reconcile() compares with get_usage by the key that each POST carries in its metadata, and needs a client and "
    'UsageBuffer(key_in_metadata="..."), set before the usage is recorded; or decide by hand, with settle=True or '
    "resend=True"
)

# To have an event stored before `record` returns: when its turn comes, the journal may work again and not have it. What
# comes in between a commit is left to the next one.
_ATTEMPTS = 3

# Seconds to wait for a thread that is about to store what a killed process left, by who wants to have it in the spool.
_TAKEOVER_PATIENCE = 5.0

_LAST_WORDS = 0.4  # seconds after the end of `close` for which a disk that does not answer is still waited for


class Parts:
    """Made working; `close` ends it.

    Args:
        settings: what the buffer was asked to be.
        resets: when envelopes reset, as far as this process knows.
        watches: what counts along with what is recorded.

    Raises:
        SpoolError: the spool cannot be made or used there.
    """

    def __init__(
        self,
        settings: Settings,
        stopwatch: Stopwatch,
        resets: Optional[Resets] = None,
        watches: Optional[Watches] = None,
    ) -> None:
        self._settings = settings
        self._stopwatch = stopwatch
        self._resets = resets or Resets()
        watches = watches or Watches()
        self._pid = os.getpid()
        self._settled = Bell()
        self._driving = threading.Lock()  # held by the thread that does a flusher's work; nobody waits for it
        self._closing = threading.RLock()  # guards _ended and the steps of close
        self._ended: Optional[FlushResult] = None
        self._at_exit = False
        self._late_numbers = itertools.count(1)
        self.store = Reserve(_opened(settings), may_resend=settings.hold_after is None)
        self._desk = Desk(self.store.is_in_use_here)
        self.intake = self._desk.run(lambda: _new_intake(settings))
        self.reports = Reports(settings.user, settings.path, self._settled.ring, stopwatch, self._resets.delivered)
        self.flusher: Optional[Flusher] = None
        self.writer = Writer(
            self.intake,
            self.store,
            self._desk,
            settings.durability,
            self._stored,
            self.reports.store_failed,
            self.reports.mended,
            settings.encode,
            watches.recorded,
            settings.as_stored,
            settings.partitions,
        )
        self.writer.start()
        if not self.writer.thread.is_alive():
            self.intake.attention = True  # so that callers look in: they store until a thread can be started
        self._desk.run(lambda: self.store.take_over(_TAKEOVER_PATIENCE))
        self._look_for_held()
        self._unregister = _process.at_exit(self.close_at_exit)

    def _look_for_held(self) -> None:
        """For `health`, which looks nowhere itself."""
        try:
            if self._desk.run(self.store.has_held):
                self._desk.run(self.store.counts)
        except SpoolError:
            pass  # whoever needs the store next is told

    def bind(self, base_url: str) -> None:
        """Says where the events of the spool go; see `Spool.bind`."""
        self._desk.run(lambda: self.store.bind(base_url))

    def deliver_to(self, deliver: Deliver) -> None:
        """Begins to deliver, unless another process shall; see `_flusher.Flusher` for `deliver`."""
        settings = self._settings
        if not settings.delivers:
            return
        self.flusher = Flusher(
            self.store,
            deliver,
            self.reports,
            concurrency=settings.max_concurrency,
            max_attempts=settings.max_attempts,
            flush_at=settings.flush_at,
            flush_interval=settings.flush_interval,
            new_fold=settings.new_fold,
            window=settings.coalesce_window if settings.coalesce else 0.0,
            hold_after=settings.hold_after,
            body=Post.body_with_time if settings.event_time == "body" else Post.body,
            longest_wait=self._resets.seconds_to_flush,
            parts=self.store.parts(),
        )
        self.flusher.start()

    def attend(self, event: Event) -> None:
        """The rest of a record that is not only an append; see `_intake`.

        Raises:
            BufferClosedError: the event came too late and was not stored.
        """
        has_thread = self.writer.thread.is_alive()
        if not has_thread and not self.intake.closed:
            self.writer.start()
        for _ in range(_ATTEMPTS):
            if self.intake.closed:
                self._attend_late(event)
                return
            if has_thread and self.intake.write(event):
                if self.intake.sleeps:
                    self.intake.wake()
                return
            self.writer.wait_for_commit()
            if self.intake.is_noted(event):
                return
            has_thread = self.writer.thread.is_alive()

    def _attend_late(self, event: Event) -> None:
        try:
            is_back = self._desk.run(lambda: self._withdraw(event))
        except InBetweenError:  # then without waiting for a commit that may be under way
            is_back = self.intake.withdraw(event)
        if not is_back:
            return  # the last commit took it along
        if not self._at_exit:
            raise BufferClosedError("the buffer is closed; this event was not stored")
        batch = self._settings.encode(self.intake.recorder, 0, [event])
        try:
            # Each under a name of its own: the store takes a lower number of the same recorder for a repetition, and of
            # two threads the one with the lower number may be the slower.
            self.store.append_alone(batch._replace(id=f"late-{self.intake.recorder}-{next(self._late_numbers)}/1"))
        except SpoolError as error:
            raise BufferClosedError(f"the process is ending and this event could not be stored: {error}") from error

    def _withdraw(self, event: Event) -> bool:
        locked = self.writer.lock.acquire(timeout=_LATE_WAIT if sys.is_finalizing() else -1)
        try:
            return self.intake.withdraw(event)
        finally:
            if locked:
                self.writer.lock.release()

    # -- draining ------------------------------------------------------------------------------------------------

    def flush(self, deadline: float) -> FlushResult:
        """Waits until what was recorded before this call is settled or held, or the deadline has passed.

        Raises:
            BufferClosedError: the end of the process has closed the buffer.
        """
        if self._ended is not None:
            raise BufferClosedError("the process is ending and the buffer is closed")
        return self.result() if self._desk.is_in_between() else self._drain(deadline)

    def _drain(self, deadline: float) -> FlushResult:
        self._desk.run(lambda: self.store.take_over(min(max(deadline - time.monotonic(), 0), _TAKEOVER_PATIENCE)))
        while not self.writer.commit():
            if time.monotonic() + _LOOK_EVERY >= deadline:
                return self.result()
            self._settled.wait(self._settled.rung, _LOOK_EVERY)
        newest_recorded, newest = self._desk.run(self.store.last_recorded), None
        if self.flusher is not None:
            self.flusher.hurry()
        while True:
            rung = self._settled.rung
            first = self._desk.run(self.store.first_recorded)
            if newest is None and (first is None or first > newest_recorded):  # all of it is sealed by now
                newest = self._desk.run(self.store.last_sequence)
            oldest = self._desk.run(self.store.first_sequence)
            if newest is not None and (oldest is None or oldest > newest):
                return self._only_held() if self._desk.run(self.store.has_held) else FlushResult(0)
            if self._ended is not None:  # by a signal handler, or another thread
                return self._ended
            left = deadline - time.monotonic()
            if left <= 0:
                return self.result()
            self._wait_or_work(rung, min(left, _LOOK_EVERY))

    def _only_held(self) -> FlushResult:
        held = self._desk.run(self.store.counts).held.events
        return FlushResult(held, self.problem() or _about_held(held))

    def _wait_or_work(self, rung: object, seconds: float) -> None:
        """Waits for a settlement. Where the flusher has no thread, does its work meanwhile."""
        flusher = self.flusher
        if flusher is None or flusher.ended or flusher.thread.is_alive() or not self._driving.acquire(blocking=False):
            self._settled.wait(rung, seconds)
            return
        try:
            flusher.start()  # here, so that nobody else does its work when it begins
            if not flusher.thread.is_alive():
                flusher.turn(seconds)
        finally:
            self._driving.release()

    def close_at_exit(self) -> None:
        """What happens by itself at the end of the process."""
        if self._pid == os.getpid():  # not in a forked child, where the parent's threads and its claim are not
            self.close(time.monotonic() + self._settings.exit_timeout, at_exit=True)

    def close(self, deadline: float, *, at_exit: bool = False) -> FlushResult:
        """Ends everything, as the head of this file tells; the second call returns what the first returned.

        Does nothing in the middle of a fork, see `_desk`: then `has_ended` is false.
        """
        if self._desk.is_in_between():
            return self.result()
        with self._closing:
            if self._ended is not None:
                return self._ended
            self._at_exit = at_exit
            self.intake.close()
            self.store.give_up_at(deadline + _LAST_WORDS)
            self.writer.stop(deadline)
            delivered = self._deliver_rest(deadline)
            lost = self.writer.give_up(deadline)  # after the flusher, which delivers from memory too
            self.reports.given_up(lost, f"the spool failed until the end ({self.writer.trouble})")
            self._desk.run(self._end_journal)
            return self._end(delivered, deadline)

    def _end_journal(self) -> None:
        is_still = self.writer.lock.acquire(timeout=_LATE_WAIT)  # or somebody is about to store something
        try:
            if self.intake.end(all_stored=is_still and not self.store.has_noted):
                self.store.forget_recorder(self.intake.recorder)
        finally:
            if is_still:
                self.writer.lock.release()

    def is_in_between(self) -> bool:
        """Whether the calling thread cannot wait for the store, see `_desk`."""
        return self._desk.is_in_between()

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    def _end(self, delivered: bool, deadline: float) -> FlushResult:
        """The last steps of `close`. A signal handler may have closed while the first ones ran, or does now: the lock
        lets its own thread in."""
        result = self.result() if self._ended is None else self._ended
        self.reports.calls.stop(deadline)
        if self._ended is None:
            self._ended = result
            self._desk.run(self.store.leave_noted)
            if delivered or (self.flusher is not None and self.flusher.ended):  # or else the flusher closes it
                self._desk.run(self.store.close)
            self._desk.close()
            self._unregister()
        self.store.give_up_at(None)  # who asks for the ledger after this, or settles late, has time again
        return self._ended

    def _deliver_rest(self, deadline: float) -> bool:
        """Delivers until the deadline; False when the flusher goes on after it, for what is under way."""
        flusher = self.flusher
        if flusher is None:
            return True
        if not flusher.ended and not flusher.thread.is_alive() and self.writer.trouble is None:
            try:
                self._drain(deadline)
            except SpoolError:
                pass  # what is stored stays stored, and `result` says what is wrong
        return flusher.stop(deadline)

    def abandon(self) -> None:
        """Has the parts closed soon, for a buffer that nobody holds any more; may run anywhere, and waits for nothing.

        Not at the desk: the main thread holds the lock of `close` while it waits there. If no thread can be started for
        it, the end of the process closes them.
        """
        self.intake.close()
        _process.in_background(lambda: self.close(time.monotonic() + self._settings.exit_timeout))

    def requeue(self, letters: Optional[Iterable[Union[DeadLetter, int]]]) -> int:
        """Delivers dead letters again, all of them for None; how many."""
        ids = None if letters is None else [one.id if isinstance(one, DeadLetter) else int(one) for one in letters]
        count = self._desk.run(lambda: self.store.requeue(_all_ids(self.store) if ids is None else ids))
        if self.flusher is not None:
            self.flusher.hurry()
        return count

    def reconcile(
        self, read_usage: Optional[ReadUsage], *, resend: bool, settle: bool, min_age: float
    ) -> Reconciliation:
        """Moves on what is held; see `UsageBuffer.reconcile`."""
        run = Reconciler(self.store, self._desk.run, min_age, lambda posts: self.reports.settled(posts, []))
        if resend:
            result = run.resend_all()
        elif settle:
            result = run.settle_all()
        else:
            key_field = self._settings.key_in_metadata
            if key_field is None or read_usage is None:
                raise ValidationError(_CANNOT_COMPARE)
            result = run.compare(read_usage, key_field)
        if self.flusher is not None:
            self.flusher.hurry()
        return result

    # -- looking -------------------------------------------------------------------------------------------------

    def result(self) -> FlushResult:
        """What is pending, and why."""
        problem = self.problem()
        try:
            counts = self._desk.run(self.store.counts)
            pending, held = counts.pending.events, counts.held.events
            problem = problem or (_about_held(held) if held else None)
        except SpoolError as error:
            pending, problem = 1, problem or str(error)  # not nothing: that would pass for delivered
        return FlushResult(pending + self.writer.waiting().events, problem)

    def problem(self) -> Optional[str]:
        """Why storing or delivering is at a halt, or None."""
        return self._store_trouble() or (self.flusher.gate_reason if self.flusher is not None else None)

    def _store_trouble(self) -> Optional[str]:
        """Why the store fails for the writer, or only for the flusher, which asks other things of it."""
        of_flusher = self.flusher.store_trouble if self.flusher is not None else None
        return self.writer.trouble or (None if of_flusher is None else str(of_flusher))

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        """See `Store.dead_letters`."""
        return self._desk.run(lambda: self.store.dead_letters(after, limit))

    def stats(self) -> BufferStats:
        """The ledger and how things stand."""
        return self._desk.run(self._stats)

    def _stats(self) -> BufferStats:
        with self.writer.lock:
            noted, waiting, dropped = self.writer.noted(), self.writer.waiting(), self.intake.dropped()
            counts = self.store.counts()
        flusher = self.flusher
        oldest = counts.oldest_pending_at
        return BufferStats(
            recorded=counts.recorded.plus(waiting).plus(dropped),
            delivered=counts.delivered,
            pending=counts.pending.plus(waiting),
            dead=counts.dead,
            dropped=counts.dropped.plus(dropped),
            in_memory=waiting.events - noted + counts.in_memory,
            in_flight=flusher.in_flight if flusher else 0,
            retries=flusher.retries if flusher else 0,
            oldest_pending_age=None if oldest is None else max(time.time() - oldest, 0.0),
            delivering=flusher.delivering if flusher else False,
            problem=self.problem(),
            spool_bytes=counts.size,
            set_aside=() if self._settings.engine else tuple(_spool_file.files_set_aside(self._settings.path)),
            held=counts.held,
            unknown_resends=flusher.unknown_resends if flusher else 0,
            late=self._resets.late,
            attempts=self._stopwatch.times(),
            in_flight_limit=flusher.in_flight_limit if flusher else 0,
        )

    def pending_units(self, envelope_id: str, counting_from_here: Optional[Callable[[], None]]) -> int:
        """Units of an envelope that are pending. With `counting_from_here`, which is called at the moment for which
        they are counted, without those that are not taken out of memory by then: they are counted when they are."""
        return self._desk.run(lambda: self._pending_units(envelope_id, counting_from_here))

    def _pending_units(self, envelope_id: str, counting_from_here: Optional[Callable[[], None]]) -> int:
        with self.writer.lock:
            up_to, recorded_up_to, waiting = self.store.last_sequence(), self.store.last_recorded(), 0
            if counting_from_here is None:
                waiting = units_of(envelope_id, self.intake.recorded())
            else:
                counting_from_here()
        return waiting + self.store.pending_of(envelope_id, up_to, recorded_up_to)

    def health(self) -> Health:
        """How the parts are, from what they know of themselves: looks at neither the disk nor the network."""
        if self.intake.closed:
            return idle("closed")
        writer, flusher, trouble = self.writer, self.flusher, self._store_trouble()
        stores = writer.thread.is_alive()
        gate = flusher.gate_reason if flusher is not None else None
        return Health(
            writer=PartHealth(stores, "running" if stores else "no thread", writer.thread.failure),
            flusher=PartHealth(True, "off") if flusher is None else _flusher_health(flusher),
            spool=PartHealth(trouble is None, "works" if trouble is None else "failing", trouble),
            gate=PartHealth(gate is None, "open" if gate is None else "closed", gate),
            held=_held_health(self.store.known_held),
        )

    def _stored(self, events: int) -> None:
        if self.flusher is not None:
            self.flusher.stored(events)


def _opened(settings: Settings) -> Union[Spool, Engine, Partitions, Spilling]:
    """What the reserve stands before."""
    if settings.engine is None:
        return _spool_at(settings.path, settings, makes_folder=settings.makes_folder)
    from x402tools._redis_partitions import engine_of

    engine = engine_of(settings.engine, max_bytes=settings.max_disk_bytes)
    if settings.engine.spill is None:
        return engine
    from x402tools._spill import Spilling

    return Spilling(engine, _spool_at(settings.engine.spill, settings))


def _spool_at(path: str, settings: Settings, *, makes_folder: bool = False) -> Spool:
    # What a journal has is synced with the batch it goes into, as with "interval".
    sync = "NORMAL" if settings.durability == "commit" and not settings.has_journal else "FULL"
    return Spool(path, sync=sync, max_bytes=settings.max_disk_bytes, make_folder=makes_folder)


def _new_intake(settings: Settings) -> Intake:
    if settings.has_journal:
        return JournalledIntake(settings.max_queue_size, settings.path, settings.frame)
    return Intake(settings.max_queue_size, attention=settings.durability != "interval")


def idle(state: str) -> Health:
    """The health of a buffer that has no parts: not yet ("not started") or no longer ("closed")."""
    part = PartHealth(state == "not started", state, None if state == "not started" else "the buffer is closed")
    return Health(part, part, part, PartHealth(True, "open"))


def _flusher_health(flusher: Flusher) -> PartHealth:
    if not flusher.thread.is_alive():
        return PartHealth(False, "no thread", flusher.thread.failure or "only flush() and close() deliver")
    return PartHealth(True, "delivering" if flusher.delivering else "standing by", flusher.thread.failure)


def _held_health(events: int) -> PartHealth:
    return PartHealth(True, "holding", _about_held(events)) if events else PartHealth(True, "none")


def _about_held(events: int) -> str:
    return f"{events} events are held because their outcome is unknown: reconcile() moves them on"


def _all_ids(store: Store) -> List[int]:
    ids: List[int] = []
    while True:
        some = store.dead_letters(ids[-1] if ids else 0, 1000)
        if not some:
            return ids
        ids.extend(letter.id for letter in some)
