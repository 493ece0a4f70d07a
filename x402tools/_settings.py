"""What a `UsageBuffer` was asked to be, checked once; every process that builds parts for it reads it here."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Sequence, Tuple

from x402tools import _batch, _journal_file
from x402tools._batch import EncodedBatch
from x402tools._event import LARGEST_AMOUNT, Event, with_time
from x402tools._fold import Fold
from x402tools._partition import partition_of
from x402tools.errors import ValidationError
from x402tools.models import Usage
from x402tools.redis_store import RedisStore

DURABILITIES = ("interval", "commit", "fsync")
EVENT_TIMES = ("omit", "metadata", "body")
QUEUE_FULL_POLICIES = ("reject", "block", "raise")
UNKNOWN_POLICIES = ("resend", "hold")
LONGEST = 86400.0  # seconds
LONGEST_WINDOW = 366 * 86400.0  # seconds
LONGEST_KEY_FIELD = 64  # characters


class UserCallbacks(NamedTuple):
    """The callbacks a `UsageBuffer` was given."""

    on_delivery: Optional[Callable[[Usage], object]] = None
    on_dead_letter: Optional[Callable[[Usage, str], object]] = None
    on_error: Optional[Callable[[str], object]] = None
    on_drop: Optional[Callable[[Usage], object]] = None


class Settings(NamedTuple):
    """The arguments of `UsageBuffer`, which explains them; made by `checked`."""

    path: str
    makes_folder: bool
    durability: str
    flush_at: int
    flush_interval: float
    max_concurrency: int
    max_queue_size: int
    max_disk_bytes: int
    on_queue_full: str
    max_attempts: int
    exit_timeout: float
    delivers: bool
    user: UserCallbacks
    event_time: str = "omit"
    on_unknown: str = "resend"
    idempotency_window: Optional[float] = None
    key_in_metadata: Optional[str] = None
    coalesce: bool = False
    coalesce_window: float = 0.0
    coalesce_by: Optional[Tuple[str, ...]] = None
    max_post_amount: int = LARGEST_AMOUNT
    engine: Optional[RedisStore] = None  # instead of a file; `path` is its address then

    def encode(self, recorder: str, batch_number: int, events: Sequence[Event]) -> EncodedBatch:
        """The batch of these events as it goes into the spool."""
        batch = _batch.encode(
            recorder, batch_number, events, key_field=self.key_in_metadata, is_sealed=not self.coalesce
        )
        if self.partitions == 1:
            return batch
        return batch._replace(partition=partition_of(events[0][1], self.partitions))

    def frame(self, recorder: str, first: int, events: Sequence[Event]) -> bytes:
        """What the journal is to say of these events, of which the first has that place; see `_journal_file`."""
        key_field = None if self.coalesce else self.key_in_metadata
        rows = _batch.rows_of(recorder, self.as_stored(events), key_field)
        return _journal_file.frame(first, rows, is_sealed=not self.coalesce)

    def as_stored(self, events: Sequence[Event]) -> Sequence[Event]:
        """What of the events is written down; they themselves, unless they are to carry their time."""
        return [with_time(event) for event in events] if self.event_time == "metadata" else events

    @property
    def has_journal(self) -> bool:
        """Whether what is recorded is noted in a file before `record` returns; see `_journal`."""
        return self.durability == "commit" and self.engine is None

    @property
    def partitions(self) -> int:
        """Into how many parts the store is split; events of one batch are of one."""
        return self.engine.partitions if self.engine is not None else 1

    def new_fold(self) -> Fold:
        """What recorded events are folded with."""
        return Fold(
            by=self.coalesce_by,
            largest=self.max_post_amount,
            each=not self.coalesce,
            key_field=self.key_in_metadata,
        )

    @property
    def hold_after(self) -> Optional[float]:
        """Seconds after which a POST of unknown outcome is held; None: never."""
        return 0.0 if self.on_unknown == "hold" else self.idempotency_window

    def checked(self) -> Settings:
        """These settings.

        Raises:
            ValidationError: one of them is not usable; it is named.
        """
        _check_choice("durability", self.durability, DURABILITIES)
        _check_choice("on_queue_full", self.on_queue_full, QUEUE_FULL_POLICIES)
        _check_choice("on_unknown", self.on_unknown, UNKNOWN_POLICIES)
        _check_window(self.idempotency_window, self.on_unknown)
        _check_key_field(self.key_in_metadata)
        _check_choice("event_time", self.event_time, EVENT_TIMES)
        _check_number("flush_at", self.flush_at, 1, 10**9)
        _check_number("max_concurrency", self.max_concurrency, 1, 1000)
        _check_number("max_queue_size", self.max_queue_size, 1, 10**9)
        _check_number("max_disk_bytes", self.max_disk_bytes, 1024**2, 2**62)
        _check_number("max_attempts", self.max_attempts, 1, 10**9)
        _check_number("max_post_amount", self.max_post_amount, 1, LARGEST_AMOUNT)
        check_seconds("coalesce_window", self.coalesce_window)
        self._check_coalescing()
        self._check_engine()
        check_seconds("flush_interval", self.flush_interval)
        check_seconds("exit_timeout", self.exit_timeout)
        for name, callback in zip(UserCallbacks._fields, self.user):
            if callback is not None and not callable(callback):
                raise ValidationError(f"{name} must be something to call, not {type(callback).__name__}")
        return self

    def _check_engine(self) -> None:
        if self.engine is None:
            return
        if self.hold_after is not None:
            raise ValidationError('on_unknown="hold" and idempotency_window need a spool file, not a server')
        if self.durability == "fsync":
            raise ValidationError(
                'durability="fsync" needs a spool file; with a server take "commit", and appendfsync always there'
            )

    def _check_coalescing(self) -> None:
        if self.coalesce and self.event_time == "metadata":
            raise ValidationError('event_time="metadata" makes every event another group; with coalesce use "omit"')
        if not self.coalesce and (self.coalesce_by is not None or self.max_post_amount != LARGEST_AMOUNT):
            raise ValidationError("coalesce_by and max_post_amount need coalesce=True")
        by = self.coalesce_by
        if by is not None and any(type(key) is not str or not key for key in by):
            raise ValidationError('coalesce_by must be the keys of the metadata that count, ("endpoint",) for example')


def check_seconds(argument: str, value: object) -> float:
    """The value as a number of seconds from 0 to a day."""
    if type(value) not in (int, float) or not 0 <= value <= LONGEST:  # type: ignore[operator]  # a number by now
        raise ValidationError(f"{argument} must be seconds from 0 to {LONGEST:.0f}")
    return float(value)  # type: ignore[arg-type]  # a number by now


def _check_window(value: object, on_unknown: str) -> None:
    if value is None:
        return
    if on_unknown == "hold":
        raise ValidationError('idempotency_window says how long to resend; with on_unknown="hold" nothing is resent')
    if type(value) not in (int, float) or not 0 < value <= LONGEST_WINDOW:  # type: ignore[operator]  # a number by now
        raise ValidationError(f"idempotency_window must be seconds above 0, up to {LONGEST_WINDOW:.0f}, or None")


def _check_key_field(value: object) -> None:
    usable = isinstance(value, str) and 0 < len(value) <= LONGEST_KEY_FIELD and value.isascii() and value.isprintable()
    if value is not None and not usable:
        raise ValidationError(
            f"key_in_metadata must be a field name of 1 to {LONGEST_KEY_FIELD} printable ASCII characters, or None"
        )


def _check_choice(argument: str, value: object, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValidationError(f"{argument} must be one of {', '.join(choices)}")


def _check_number(argument: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValidationError(f"{argument} must be a whole number from {least} to {most}")
