"""`UsageBuffer`: records usage at once, keeps it on disk, delivers it in the background. Where all the parts meet."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Union

from x402tools import _event, _process, _spool_file
from x402tools._event import LARGEST_AMOUNT, Event, PendingUsage, check_amount, snapshot_metadata
from x402tools._flusher import Deliver, Flusher
from x402tools._intake import Intake
from x402tools._reports import Reports, UserCallbacks, usage_of
from x402tools._spool import Spool
from x402tools._store import DeadLetter, Store, Tally
from x402tools._writer import Writer
from x402tools.errors import BufferClosedError, QueueFullError, SpoolError, ValidationError
from x402tools.models import Usage

__all__ = ["BufferStats", "DeadLetter", "FlushResult", "Tally", "UsageBuffer"]

DURABILITIES = ("interval", "commit", "fsync")
QUEUE_FULL_POLICIES = ("reject", "block", "raise")

# Envelope ids that were checked already, so that each is checked once. Ids without end (one per user) start it anew.
_MOST_KNOWN_IDS = 10_000

_LOOK_EVERY = 0.1  # seconds between looks of flush() at a spool that another process delivers


@dataclass(frozen=True)
class FlushResult:
    """What `flush` or `close` left behind; true when nothing is pending.

    Attributes:
        pending: events in the spool and in memory that are not settled, those of other processes included.
        problem: why they wait, as far as it is known.
    """

    pending: int
    problem: Optional[str] = None

    def __bool__(self) -> bool:
        return self.pending == 0


@dataclass(frozen=True)
class BufferStats:
    """The ledger, and how things stand. Always: recorded = delivered + pending + dead + dropped.

    The ledger belongs to the spool: it counts for all processes that share it and since the file was made, except
    that other processes' last few milliseconds are still in their memory. Each tally has `events` and `units`.

    Attributes:
        recorded, delivered, pending, dead, dropped: the ledger.
        in_memory: the part of pending that this process has not stored yet.
        in_flight: POSTs this process has under way.
        retries: attempts of this process that failed and are repeated.
        oldest_pending_age: seconds since the oldest pending event was stored, or None.
        delivering: True in the one process of all that share the spool which delivers.
        problem: why deliveries or the spool are at a halt, or None.
        spool_bytes: bytes in use in the spool.
    """

    recorded: Tally
    delivered: Tally
    pending: Tally
    dead: Tally
    dropped: Tally
    in_memory: int
    in_flight: int
    retries: int
    oldest_pending_age: Optional[float]
    delivering: bool
    problem: Optional[str]
    spool_bytes: int


class _Parts(NamedTuple):
    """What one process builds for itself; a forked child builds its own."""

    store: Store
    intake: Intake
    writer: Writer
    reports: Reports
    flusher: Optional[Flusher]


class UsageBuffer:
    """A durable queue of usage events before a client. One file may serve any number of processes of a machine.

    Args:
        path: the spool file. Default: x402tools/usage.db in the user's state folder.
        durability: when `record` returns: "interval" at once (a thread commits and syncs within about 10 ms),
            "commit" when the event is committed (safe from a kill of the process; synced within about a second),
            "fsync" when it is synced (safe from a power cut).
        flush_at: a delivery starts as soon as this many events were stored since the last,
        flush_interval: and at the latest so many seconds after it.
        max_concurrency: POSTs under way at the same time.
        max_queue_size: events that may wait in memory, while the disk is slow, full or broken.
        max_disk_bytes: how large the content of the spool may become; then events wait in memory.
        on_queue_full: when memory is full too: "reject" drops the new event (counted, reported to `on_drop`, one
            log line), "block" waits for room, "raise" raises QueueFullError.
        max_attempts: a POST that got so many 5xx while others passed becomes a dead letter. No answer, 429 and an
            outage do not count: those are tried for ever.
        exit_timeout: seconds that `close` and the end of the process may spend on delivering.
        deliver: False only stores; another process delivers the spool.
        on_delivery: called with the `Usage` of each delivered POST.
        on_dead_letter: called with the `Usage` of a POST that was set aside, and the reason.
        on_error: called with one line when deliveries, or the spool, begin to fail.
        on_drop: called with the `Usage` of each event that was lost.

    The callbacks run on a thread of their own; what they raise is logged.

    Raises:
        ValidationError: an argument is not usable.
        SpoolError: the spool cannot be made or used there.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str], None] = None,
        *,
        durability: str = "interval",
        flush_at: int = 100,
        flush_interval: float = 1.0,
        max_concurrency: int = 8,
        max_queue_size: int = 100_000,
        max_disk_bytes: int = 1024**3,
        on_queue_full: str = "reject",
        max_attempts: int = 20,
        exit_timeout: float = 2.0,
        deliver: bool = True,
        on_delivery: Optional[Callable[[Usage], object]] = None,
        on_dead_letter: Optional[Callable[[Usage, str], object]] = None,
        on_error: Optional[Callable[[str], object]] = None,
        on_drop: Optional[Callable[[Usage], object]] = None,
    ) -> None:
        _check_choice("durability", durability, DURABILITIES)
        _check_choice("on_queue_full", on_queue_full, QUEUE_FULL_POLICIES)
        self.path = os.path.abspath(os.fspath(path)) if path is not None else _spool_file.default_path()
        self._makes_folder = path is None
        self._durability = durability
        self._flush_at = _check_number("flush_at", flush_at, 1, 10**9)
        self._flush_interval = _check_seconds("flush_interval", flush_interval)
        self._max_concurrency = _check_number("max_concurrency", max_concurrency, 1, 1000)
        self._max_queue_size = _check_number("max_queue_size", max_queue_size, 1, 10**9)
        self._max_disk_bytes = _check_number("max_disk_bytes", max_disk_bytes, 1024**2, 2**62)
        self._on_queue_full = on_queue_full
        self._max_attempts = _check_number("max_attempts", max_attempts, 1, 10**9)
        self._exit_timeout = _check_seconds("exit_timeout", exit_timeout)
        self._delivers = bool(deliver)
        self._user = UserCallbacks(on_delivery, on_dead_letter, on_error, on_drop)
        for argument, callback in self._user._asdict().items():
            if callback is not None and not callable(callback):
                raise ValidationError(f"{argument} must be something to call, not {type(callback).__name__}")
        if not _process.can_lock_files():
            raise SpoolError("UsageBuffer needs fcntl file locks, which this system lacks; use the client without it")
        self._target: Optional[Tuple[Deliver, str]] = None
        self._closed: Optional[FlushResult] = None
        self._known_ids: Set[str] = set()
        self._settled = threading.Event()
        self._lock = threading.RLock()  # guards building and closing the parts
        self._parts: Optional[_Parts] = None
        self._intake: Optional[Intake] = None  # the one of _parts, one look-up nearer for the request path
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        self._start()
        _process.forget_after_fork(self)
        atexit.register(self._at_exit)

    def attach(self, deliver: Deliver, base_url: str) -> None:
        """Says where the events go; `X402Client(buffer=...)` does it.

        Args:
            deliver: one attempt at one POST, given its body and its idempotency key; see `_flusher.Flusher`.
            base_url: tells destinations apart.

        Raises:
            SpoolError: the spool holds usage for another base URL.
            ValidationError: the buffer serves a client with another base URL.
        """
        with self._lock:
            if self._target is not None and self._target[1] != base_url:
                raise ValidationError("this buffer serves a client with another base_url; make one for each")
            first = self._target is None
            if first:
                parts = self._start()
                assert isinstance(parts.store, Spool)
                parts.store.bind(base_url)
                self._target = (deliver, base_url)
                if self._delivers:
                    flusher = self._new_flusher(parts)
                    self._parts = parts._replace(flusher=flusher)
                    flusher.start()

    # -- recording -----------------------------------------------------------------------------------------------

    def record(
        self,
        envelope_id: str,
        amount: int,
        metadata: Optional[Dict[str, Any]] = None,
        *,
        idempotency_key: Optional[str] = None,
    ) -> Usage:
        """Records usage; see `X402Client.record_usage` for the arguments.

        Returns:
            A `Usage` with `pending` True, or False when the buffer was full and the event was dropped.

        Raises:
            ValidationError: an argument is not usable; nothing was stored.
            QueueFullError: the buffer is full and `on_queue_full="raise"`.
            BufferClosedError: after `close`.
        """
        intake = self._intake
        if intake is None:
            intake = self._start().intake
        if type(envelope_id) is not str or envelope_id not in self._known_ids:
            self._learn(envelope_id)
        if type(amount) is not int or not 0 <= amount <= LARGEST_AMOUNT:
            check_amount(amount)
        event: Event = (
            intake.next_number() if idempotency_key is None else _event.check_key(idempotency_key),
            envelope_id,
            amount,
            None if metadata is None else snapshot_metadata(metadata),
            time.time(),
        )
        if len(intake.events) >= intake.limit and not self._make_room(intake, event):
            return PendingUsage(event, intake.recorder, accepted=False)
        intake.put(event)
        if intake.attention:
            self._attend(intake, event)
        return PendingUsage(event, intake.recorder)

    def _learn(self, envelope_id: str) -> None:
        _event.check_id(envelope_id, "envelope_id")
        if len(self._known_ids) >= _MOST_KNOWN_IDS:
            self._known_ids = set()
        self._known_ids.add(envelope_id)

    def _make_room(self, intake: Intake, event: Event) -> bool:
        if self._on_queue_full == "raise":
            raise QueueFullError(f"{self._max_queue_size} events wait in memory; this one was not stored")
        if self._on_queue_full == "block":
            if self._parts is None or not self._parts.store.is_entered():  # or else nobody could make room meanwhile
                intake.wait_for_room()
            return True
        intake.drop(event)
        if self._parts is not None:
            why = f"max_queue_size ({self._max_queue_size} events in memory) is reached"
            self._parts.reports.dropped(PendingUsage(event, intake.recorder, accepted=False), why)
        return False

    def _attend(self, intake: Intake, event: Event) -> None:
        """The rest of a record that is not only an append; see `_intake`."""
        parts = self._parts
        if intake.closed or parts is None:
            lock: ContextManager[Any] = parts.writer.lock if parts is not None else self._lock
            if parts is not None and parts.store.is_entered():
                lock = contextlib.nullcontext()  # its holder may wait for this thread
            with lock:
                if intake.withdraw(event):
                    raise BufferClosedError("the buffer is closed; this event was not stored")
            return  # the last commit took it along
        intake.wake()
        if self._durability != "interval":
            parts.writer.wait_for_commit()

    # -- looking -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Events that are pending: recorded, and neither delivered nor dead."""
        return self.stats().pending.events

    def __bool__(self) -> bool:
        return True  # an empty buffer is still a buffer

    def stats(self) -> BufferStats:
        """The ledger and how things stand.

        Raises:
            SpoolError: the spool cannot be read.
        """
        parts = self._parts or self._start(even_closed=True)
        with parts.writer.lock:
            waiting, dropped = parts.writer.waiting(), parts.intake.dropped()
            counts = parts.store.counts()
        flusher = parts.flusher
        oldest = counts.oldest_pending_at
        return BufferStats(
            recorded=counts.recorded.plus(waiting).plus(dropped),
            delivered=counts.delivered,
            pending=counts.pending.plus(waiting),
            dead=counts.dead,
            dropped=counts.dropped.plus(dropped),
            in_memory=waiting.events,
            in_flight=flusher.in_flight if flusher else 0,
            retries=flusher.retries if flusher else 0,
            oldest_pending_age=None if oldest is None else max(time.time() - oldest, 0.0),
            delivering=flusher.delivering if flusher else False,
            problem=self._problem(parts),
            spool_bytes=counts.size,
        )

    def dead_letters(self, limit: int = 100, *, after: int = 0) -> List[DeadLetter]:
        """Up to `limit` dead letters, oldest first, whose `id` is above `after`."""
        return (self._parts or self._start(even_closed=True)).store.dead_letters(after, limit)

    def requeue(self, letters: Optional[Iterable[Union[DeadLetter, int]]] = None) -> int:
        """Delivers dead letters again, under their old keys; all of them when none are named.

        Returns:
            How many are pending again. Damaged ones (`readable` False) stay.
        """
        parts = self._start()
        ids = (
            _all_ids(parts.store)
            if letters is None
            else [letter.id if isinstance(letter, DeadLetter) else int(letter) for letter in letters]
        )
        count = parts.store.requeue(ids)
        if parts.flusher is not None:
            parts.flusher.hurry()
        return count

    # -- draining ------------------------------------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = 10.0) -> FlushResult:
        """Waits until everything recorded before this call is delivered or dead, at most `timeout` seconds.

        None waits for ever. Only waits, in a process that does not deliver.

        Raises:
            BufferClosedError: after `close`.
        """
        seconds = threading.TIMEOUT_MAX if timeout is None else _check_seconds("timeout", timeout)
        deadline = time.monotonic() + seconds
        parts = self._start()
        while not parts.writer.commit():
            if time.monotonic() + _LOOK_EVERY >= deadline:
                return self._result(parts)
            self._settled.wait(_LOOK_EVERY)
        newest = parts.store.last_sequence()
        if parts.flusher is not None:
            parts.flusher.hurry()
        while True:
            self._settled.clear()
            oldest = parts.store.first_sequence()
            if oldest is None or oldest > newest:
                return FlushResult(0)
            left = deadline - time.monotonic()
            if left <= 0:
                return self._result(parts)
            self._settled.wait(min(left, _LOOK_EVERY))

    def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Stores what is in memory, delivers until `timeout` seconds have passed (default: exit_timeout), and ends.

        What is left stays in the spool; the next process that opens it delivers it. May be called twice.
        """
        deadline = time.monotonic() + (self._exit_timeout if timeout is None else _check_seconds("timeout", timeout))
        with self._lock:
            if self._closed is not None:
                return self._closed
            parts = self._parts
            if parts is None:  # a forked child that never recorded
                self._closed = FlushResult(0)
                return self._closed
            parts.intake.close()
            for post in parts.writer.stop(deadline):
                parts.reports.dropped(usage_of(post), f"the spool failed until the end ({parts.writer.trouble})")
            ended = parts.flusher is None or parts.flusher.stop(deadline)
            self._closed = self._result(parts)
            parts.reports.calls.stop(deadline - time.monotonic())
            if ended or (parts.flusher is not None and parts.flusher.ended):  # or else the flusher closes it
                parts.store.close()
            atexit.unregister(self._at_exit)
            return self._closed

    def __enter__(self) -> UsageBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed is not None else self._durability
        return f"<UsageBuffer {self.path} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("UsageBuffer has threads and an open file and is not pickled: make one in each process")

    # -- the parts -----------------------------------------------------------------------------------------------

    def _start(self, even_closed: bool = False) -> _Parts:
        """The parts of this process, built when they are first needed here."""
        with self._lock:
            if self._closed is not None and not even_closed:
                raise BufferClosedError("the buffer is closed")
            if self._parts is None:
                self._parts = self._build()
                self._intake = self._parts.intake
                _process.at_end_of_child(self._at_exit)
            return self._parts

    def _build(self) -> _Parts:
        store = Spool(
            self.path,
            sync="NORMAL" if self._durability == "commit" else "FULL",
            max_bytes=self._max_disk_bytes,
            make_folder=self._makes_folder,
        )
        intake = Intake(self._max_queue_size, attention=self._durability != "interval")
        reports = Reports(self._user, self.path, self._settled.set)
        writer = Writer(intake, store, self._durability, self._stored, reports.store_failed)
        parts = _Parts(store, intake, writer, reports, None)
        if self._target is not None and self._delivers:
            parts = parts._replace(flusher=self._new_flusher(parts))
        writer.start()
        if parts.flusher is not None:
            parts.flusher.start()
        return parts

    def _new_flusher(self, parts: _Parts) -> Flusher:
        assert self._target is not None
        return Flusher(
            parts.store,
            self._target[0],
            parts.reports,
            concurrency=self._max_concurrency,
            max_attempts=self._max_attempts,
            flush_at=self._flush_at,
            flush_interval=self._flush_interval,
        )

    def forget(self) -> None:
        """In a forked child: the parent delivers what it recorded; the child builds its own parts when it records."""
        self._parts = None
        self._intake = None
        self._lock = threading.RLock()
        self._settled = threading.Event()

    def _stored(self, events: int) -> None:
        parts = self._parts
        if parts is not None and parts.flusher is not None:
            parts.flusher.stored(events)

    def _result(self, parts: _Parts) -> FlushResult:
        problem = self._problem(parts)
        try:
            pending = parts.store.counts().pending.events
        except SpoolError as error:
            pending, problem = 0, problem or str(error)
        return FlushResult(pending + parts.writer.waiting().events, problem)

    def _problem(self, parts: _Parts) -> Optional[str]:
        return parts.writer.trouble or (parts.flusher.gate_reason if parts.flusher is not None else None)


def _close_at_exit(reference: weakref.ref[UsageBuffer]) -> None:
    buffer = reference()
    if buffer is not None:
        buffer.close()


def _all_ids(store: Store) -> List[int]:
    ids: List[int] = []
    while True:
        some = store.dead_letters(ids[-1] if ids else 0, 1000)
        if not some:
            return ids
        ids.extend(letter.id for letter in some)


def _check_choice(argument: str, value: object, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValidationError(f"{argument} must be one of {', '.join(choices)}")


def _check_number(argument: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValidationError(f"{argument} must be a whole number from {least} to {most}")
    return value


def _check_seconds(argument: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 86400:  # type: ignore[operator]  # a number by now
        raise ValidationError(f"{argument} must be seconds from 0 to 86400")
    return float(value)  # type: ignore[arg-type]  # a number by now
