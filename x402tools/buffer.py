"""`UsageBuffer`: records usage at once, keeps it on disk, delivers it in the background."""

from __future__ import annotations

import os
import threading
import time
import warnings
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from x402tools import _event, _process, _spool_file
from x402tools._budget import BudgetWatch, Watches
from x402tools._event import LARGEST_AMOUNT, Event, Metadata, PendingUsage, check_amount, snapshot_metadata
from x402tools._intake import Intake
from x402tools._parts import Parts, idle
from x402tools._periods import Period
from x402tools._reconcile import ReadUsage, Reconciliation
from x402tools._resets import Resets
from x402tools._senders import Deliver
from x402tools._settings import Settings, UserCallbacks, check_seconds
from x402tools._stats import BufferStats, FlushResult, Health, PartHealth
from x402tools._store import DeadLetter, Tally
from x402tools._timings import AttemptTimes, Stopwatch
from x402tools.errors import BufferClosedError, QueueFullError, SpoolError, ValidationError
from x402tools.models import Envelope, Usage
from x402tools.redis_store import RedisStore, is_engine

__all__ = [
    "AttemptTimes",
    "BufferStats",
    "DeadLetter",
    "FlushResult",
    "Health",
    "PartHealth",
    "Reconciliation",
    "Tally",
    "UsageBuffer",
]

# Envelope ids that were checked already, so that each is checked once. Ids without end (one per user) start it anew.
_MOST_KNOWN_IDS = 10_000

_blank = object.__new__


class UsageBuffer:
    """A durable queue of usage events before a client. One file may serve any number of processes of a machine.

    Args:
        path: the spool file, or the address of a server, see `store`. Default: X402TOOLS_STORE of the environment,
            or else x402tools/usage.db in the user's state folder.
        store: a Redis or Valkey server instead of a file: a `RedisStore`, or its address. Needs the extra `redis`.
        durability: when `record` returns: "interval" at once (a thread commits and syncs within about 10 ms),
            "commit" when it is noted in a journal beside the spool (safe from a kill of the process; committed and
            synced within about 10 ms); with a server, or while the journal cannot be written, when it is committed,
            "fsync" when it is synced (safe from a power cut).
        flush_at: a delivery starts as soon as this many events were stored since the last,
        flush_interval: and at the latest so many seconds after it.
        max_concurrency: POSTs under way at the same time, at the most; fewer while the service refuses some (429, 503)
            or takes longer than it did, and after an outage.
        max_queue_size: events that may wait in memory, while the disk is slow, full or broken.
        max_disk_bytes: how large the content of the spool may become; then events wait in memory.
        on_queue_full: when memory is full too: "reject" drops the new event (counted, reported to `on_drop`, one
            log line), "block" waits for room, "raise" raises QueueFullError.
        max_attempts: a POST that got so many 5xx while others passed becomes a dead letter. No answer, 429 and an
            outage do not count: those are tried for ever.
        coalesce: sum up what was recorded for one envelope with the same metadata into one POST, under a key of its
            own. An event with an idempotency key of yours stays a POST of its own. Processes that share a spool
            should all say the same.
        coalesce_window: seconds that an event waits for others, at the most; `flush` and `close` end it at once in the
            process that delivers. While the service is away, or slower than the groups come, windows get longer.
        coalesce_by: the keys of the metadata that make a group, ("endpoint",) for example; all others are left out of
            the POST. Default: the whole metadata.
        max_post_amount: units of usage in one POST at the most, 2**53 - 1 by default; what is more becomes several. An
            event of more is refused.
        on_unknown: what becomes of a POST that may have been booked although no answer came: "resend" sends it again
            under its key, which a service that honours keys books once; "hold" sends nothing twice and keeps it apart
            until `reconcile`. A POST that certainly was not booked is sent again in any case. "hold" costs a commit
            for every `max_concurrency` POSTs, because what is sent is noted before.
        idempotency_window: seconds for which the service remembers keys, where that is known; then a POST is held
            rather than sent again so long after its first attempt of unknown outcome. Costs what "hold" costs.
        key_in_metadata: a name under which the metadata of each POST carries its key, so that `reconcile` finds it
            in `get_usage`. Metadata that has this field already is refused.
        exit_timeout: seconds that `close` and the end of the process may spend on delivering. What is in memory is
            stored before, as long as the disk takes it.
        deliver: False only stores; another process delivers. Default: True with a file, False with a server, where
            `x402tools worker --store` delivers.
        event_time: where the moment of recording goes, which the service otherwise does not learn: "omit" nowhere;
            "metadata" into the metadata, as `recorded_at`; "body" into the body of the POST, as `timestamp`, a field
            that the hosted service is not known to accept. Change "body" only when nothing is pending: a POST that is
            repeated with another body may be refused.
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
        store: Union[str, RedisStore, None] = None,
        durability: str = "interval",
        flush_at: int = 100,
        flush_interval: float = 1.0,
        max_concurrency: int = 8,
        max_queue_size: int = 100_000,
        max_disk_bytes: int = 1024**3,
        on_queue_full: str = "reject",
        max_attempts: int = 20,
        exit_timeout: float = 2.0,
        deliver: Optional[bool] = None,
        coalesce: bool = False,
        coalesce_window: float = 10.0,
        coalesce_by: Optional[Sequence[str]] = None,
        max_post_amount: int = LARGEST_AMOUNT,
        on_unknown: str = "resend",
        idempotency_window: Optional[float] = None,
        key_in_metadata: Optional[str] = None,
        event_time: str = "omit",
        on_delivery: Optional[Callable[[Usage], object]] = None,
        on_dead_letter: Optional[Callable[[Usage, str], object]] = None,
        on_error: Optional[Callable[[str], object]] = None,
        on_drop: Optional[Callable[[Usage], object]] = None,
    ) -> None:
        engine, file = _where(path, store)
        self._settings = Settings(
            path=engine.place if engine else os.path.abspath(file) if file else _spool_file.default_path(),
            engine=engine,
            makes_folder=not file,
            durability=durability,
            flush_at=flush_at,
            flush_interval=flush_interval,
            max_concurrency=max_concurrency,
            max_queue_size=max_queue_size,
            max_disk_bytes=max_disk_bytes,
            on_queue_full=on_queue_full,
            max_attempts=max_attempts,
            exit_timeout=exit_timeout,
            delivers=engine is None if deliver is None else bool(deliver),
            user=UserCallbacks(on_delivery, on_dead_letter, on_error, on_drop),
            on_unknown=on_unknown,
            idempotency_window=idempotency_window,
            key_in_metadata=key_in_metadata,
            coalesce=bool(coalesce),
            coalesce_window=coalesce_window,
            coalesce_by=None if coalesce_by is None else _keys(coalesce_by),
            max_post_amount=max_post_amount,
            event_time=event_time,
        ).checked()
        if engine is None and not _process.can_lock_files():
            raise SpoolError("UsageBuffer needs fcntl file locks, which this system lacks; use the client without it")
        self.path = self._settings.path
        self._target: Optional[Tuple[Deliver, str]] = None
        self._read_usage: Optional[ReadUsage] = None
        self._snapshot = snapshot_metadata if key_in_metadata is None else self._snapshot_without_key
        self._largest = max_post_amount
        self._closed: Optional[FlushResult] = None
        self._known_ids: Set[str] = set()
        self._resets = Resets()
        self._watches = Watches()
        self._parts: Optional[Parts] = None
        self._stopwatch = Stopwatch()
        self._own_lock: threading.RLock
        self._intake: Optional[Intake] = None  # the one of _parts, one look-up nearer for the request path
        self._start()
        _process.forget_after_fork(self)

    def attach(self, deliver: Deliver, base_url: str, read_usage: Optional[ReadUsage] = None) -> None:
        """Says where the events go; `X402Client(buffer=...)` does it.

        Args:
            deliver: one attempt at one POST, given its body and its idempotency key; see `_flusher.Flusher`.
            base_url: tells destinations apart.
            read_usage: yields the usage records of an envelope, for `reconcile`.

        Raises:
            SpoolError: the spool holds usage for another base URL.
            ValidationError: the buffer serves a client with another base URL.
        """
        with self._lock:
            if self._target is not None and self._target[1] != base_url:
                raise ValidationError("this buffer serves a client with another base_url; make one for each")
            if self._target is None:
                parts = self._start()
                parts.bind(base_url)
                parts.deliver_to(deliver)
                self._target = (deliver, base_url)
                self._read_usage = read_usage

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
        if type(amount) is not int or not 0 <= amount <= self._largest:
            self._check_amount(amount)
        event: Event = (
            intake.next_number() if idempotency_key is None else _event.check_key(idempotency_key),
            envelope_id,
            amount,
            None if metadata is None else self._snapshot(metadata),
            time.time(),
        )
        if len(intake.events) >= intake.limit and not self._make_room(intake, event):
            return PendingUsage(event, intake.recorder, accepted=False)
        intake.put(event)
        if intake.attention:
            self._attend(intake, event)
        usage = _blank(PendingUsage)  # calling the class takes three times as long
        usage._origin = (event, intake.recorder, True)
        return usage

    def _snapshot_without_key(self, metadata: Any) -> Metadata:
        field = self._settings.key_in_metadata
        if isinstance(metadata, dict) and field in metadata:
            raise ValidationError(f"metadata has a field {field!r}, which key_in_metadata keeps for the key")
        return snapshot_metadata(metadata)

    def may_wait(self) -> bool:
        """Whether `record` may make its caller wait now: for a commit, for room, or for the first start in a process.

        An event loop has `record` called in a thread then; see `X402Client.aio`.
        """
        intake = self._intake
        if intake is None or self._settings.durability != "interval":
            return True
        return self._settings.on_queue_full == "block" and len(intake.events) >= intake.limit

    def _learn(self, envelope_id: str) -> None:
        _event.check_id(envelope_id, "envelope_id")
        if len(self._known_ids) >= _MOST_KNOWN_IDS:
            self._known_ids = set()
        self._known_ids.add(envelope_id)

    def _check_amount(self, amount: object) -> None:
        if check_amount(amount) > self._largest:
            raise ValidationError(f"amount must be at most {self._largest} (max_post_amount), not {amount}")

    def _make_room(self, intake: Intake, event: Event) -> bool:
        if intake.closed:
            return True  # nothing is taken from it any more: it may be full for ever, and `_attend` says what is
        size = self._settings.max_queue_size
        if self._settings.on_queue_full == "raise":
            raise QueueFullError(f"{size} events wait in memory; this one was not stored")
        if self._settings.on_queue_full == "block":
            if self._parts is None or not self._parts.is_in_between():  # or nobody could make room meanwhile
                intake.wait_for_room()
            return True
        intake.drop(event)
        if self._parts is not None:
            why = f"max_queue_size ({size} events in memory) is reached"
            self._parts.reports.dropped(PendingUsage(event, intake.recorder, accepted=False), why)
        return False

    def _attend(self, intake: Intake, event: Event) -> None:
        parts = self._parts
        if parts is not None:
            parts.attend(event)
        elif intake.closed and intake.withdraw(event):
            raise BufferClosedError("the buffer is closed; this event was not stored")

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
        return (self._parts or self._start(even_closed=True)).stats()

    def health(self) -> Health:
        """How the parts of this buffer are in this process: true when all is well. Never raises, never waits."""
        parts = self._parts
        if parts is None:
            return idle("not started" if self._closed is None else "closed")
        return parts.health()

    def watch_attempts(self, watcher: Callable[[float], object]) -> None:
        """Has `watcher` called with the seconds that each POST of this process took, failed ones included.

        For metrics: it runs on the thread that delivers, so it must return at once; one that raises is logged and not
        called any more. What was so far is in `stats().attempts`.
        """
        self._stopwatch.watch(watcher)

    def dead_letters(self, limit: int = 100, *, after: int = 0) -> List[DeadLetter]:
        """Up to `limit` dead letters, oldest first, whose `id` is above `after`."""
        return (self._parts or self._start(even_closed=True)).dead_letters(after, limit)

    def requeue(self, letters: Optional[Iterable[Union[DeadLetter, int]]] = None) -> int:
        """Delivers dead letters again, under their old keys; all of them when none are named.

        Returns:
            How many are pending again. Damaged ones (`readable` False) stay.
        """
        return self._start().requeue(letters)

    def reconcile(self, *, resend: bool = False, settle: bool = False, min_age: float = 5.0) -> Reconciliation:
        """Moves on what is held: compares it with `get_usage`, settles what the service has and resends the rest.

        Needs `key_in_metadata`. May run in any process that has the spool open. Reads the whole list of each envelope
        that something is held of, as a stream.

        Args:
            resend: compare nothing: the service has none of it.
            settle: compare nothing: the service has all of it.
            min_age: seconds; what has been held for less is not resent, because the service may still be at it.

        Raises:
            ValidationError: nothing can be compared; the message says what to set.
            X402Error: usage could not be read; what was moved before that stays moved.
        """
        if resend and settle:
            raise ValidationError("reconcile() takes resend=True or settle=True, not both")
        age = check_seconds("min_age", min_age)
        return self._start().reconcile(self._read_usage, resend=resend, settle=settle, min_age=age)

    # -- budgets and periods ---------------------------------------------------------------------------------------

    def watch(self, envelope: Envelope) -> Period:
        """Learns when the envelope resets; `X402Client.budget` and `on_budget` do it for theirs.

        From then on this process delivers ahead of its resets, whatever flush_interval says, and counts in
        `stats().late` what came too late all the same. Nothing is asked of the service: watch it again when its
        period or reset day was changed.

        Returns:
            The current period, with `started_at` and `resets_at`.
        """
        is_news = not self._resets.knows(envelope)
        period = self._resets.learn(envelope)
        parts = self._parts
        if is_news and parts is not None and parts.flusher is not None:
            parts.flusher.hurry()  # it may be waiting for longer than until the reset
        return period

    def pending_units(self, envelope_id: str, counting_from_here: Optional[Callable[[], None]] = None) -> int:
        """Units of usage of one envelope that are pending, those of other processes that share the spool included.

        Counted by looking through what is pending, which takes about two milliseconds for 500 events; beyond a million
        events only the oldest million are looked at. `counting_from_here` is for `_budget`.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return (self._parts or self._start(even_closed=True)).pending_units(envelope_id, counting_from_here)

    def add_watch(self, watch: BudgetWatch) -> BudgetWatch:
        """Lets it count along from now on, and returns it; see `X402Client.on_budget`."""
        self._start()
        self._watches.add(watch)
        watch.look_soon()
        return watch

    def call_back(self, callback: Callable[[Any], object], argument: Any) -> None:
        """Has the callback called soon, on the thread of all callbacks."""
        parts = self._parts
        if parts is not None:
            parts.reports.calls.call(callback, argument)

    # -- draining ------------------------------------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = 10.0) -> FlushResult:
        """Waits until everything recorded before this call is delivered, dead or held, at most `timeout` seconds.

        What is held counts as pending in the result, and is its `problem` when there is no other. None waits for ever.
        Only waits, in a process that does not deliver. In a process where no thread can be started it does the
        delivering itself, and a POST under way at the end of the time is waited for.

        Raises:
            BufferClosedError: after `close`.
        """
        limit = threading.TIMEOUT_MAX if timeout is None else check_seconds("timeout", timeout)
        return self._start().flush(time.monotonic() + limit)

    def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Stores what is in memory, delivers until `timeout` seconds have passed (default: exit_timeout), and ends.

        What is left stays in the spool; the next process that opens it delivers it. May be called twice. Where
        a signal handler calls it in the middle of `os.fork()` nothing is closed, and the result has a `problem`.
        """
        limit = self._settings.exit_timeout if timeout is None else check_seconds("timeout", timeout)
        deadline = time.monotonic() + limit
        with self._lock:
            if self._closed is not None:
                return self._closed
            parts = self._parts
            result = parts.close(deadline) if parts is not None else FlushResult(0)  # a child that never recorded
            if parts is None or parts.has_ended:
                self._closed = result
            return result

    def __del__(self) -> None:
        parts = self.__dict__.get("_parts")  # absent when the constructor raised
        if parts is not None and not parts.intake.closed:
            parts.abandon()
            warnings.warn(
                f"{self!r} was not closed; what it holds is stored", ResourceWarning, source=self, stacklevel=2
            )

    def __enter__(self) -> UsageBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed is not None else self._settings.durability
        return f"<UsageBuffer {self.path} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("UsageBuffer has threads and an open file and is not pickled: make one in each process")

    # -- the parts -----------------------------------------------------------------------------------------------

    def _start(self, *, even_closed: bool = False) -> Parts:
        """The parts of this process, built when they are first needed here."""
        with self._lock:
            if self._closed is not None and not even_closed:
                raise BufferClosedError("the buffer is closed")
            return self._parts or self._publish(self._build())

    def _build(self) -> Parts:
        parts = Parts(self._settings, self._stopwatch, self._resets, self._watches)
        if self._target is not None:
            parts.deliver_to(self._target[0])
        return parts

    def _publish(self, parts: Parts) -> Parts:
        if self._parts is not None:  # a signal handler recorded while these were made, and made its own
            parts.abandon()
            return self._parts
        self._parts = parts
        self._intake = parts.intake
        return parts

    @property
    def _lock(self) -> threading.RLock:
        """Guards building and closing the parts.

        Made when it is first needed, in a forked child too: gevent makes it another kind of lock, and a gunicorn
        worker calls gevent only after the fork.
        """
        if "_own_lock" not in self.__dict__:
            self.__dict__.setdefault("_own_lock", threading.RLock())  # atomic: of two threads one makes it
        return self._own_lock

    def forget(self) -> None:
        """In a forked child: the parent delivers what it recorded; the child builds its own parts when it records."""
        self._parts = None
        self._intake = None
        self._resets.late = Tally()
        self._stopwatch = self._stopwatch.anew()
        self.__dict__.pop("_own_lock", None)


def _where(
    path: Union[str, os.PathLike[str], None], store: Union[str, RedisStore, None]
) -> Tuple[Optional[RedisStore], Optional[str]]:
    """The server, or the file, or neither: then it is the default file."""
    if path is not None and store is not None:
        raise ValidationError("give a path or a store, not both")
    if isinstance(store, RedisStore):
        return store, None
    if store is not None and not is_engine(store):
        raise ValidationError("store must be a RedisStore or an address like redis://host:6379/0; a file is a path")
    given = store if store is not None else path if path is not None else os.environ.get("X402TOOLS_STORE") or None
    if given is not None and is_engine(given):
        return RedisStore(os.fspath(given)), None
    return None, None if given is None else os.fspath(given)


def _keys(names: Sequence[str]) -> Tuple[str, ...]:
    if isinstance(names, str):
        raise ValidationError(f'coalesce_by must be several names, ("{names}",) for example, not a str')
    return tuple(names)
