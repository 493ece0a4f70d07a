"""What one thing that happened (a request, a call, a block) is recorded as, where recording must never disturb it."""

from __future__ import annotations

import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Optional, Set, Tuple, Union

from x402tools import _event
from x402tools.errors import ValidationError, X402Error

if TYPE_CHECKING:
    from x402tools.client import X402Client
    from x402tools.models import Usage

log = logging.getLogger("x402tools")

# A value that is always the same, or a function of what happened that returns it.
EnvelopeSource = Union[str, Callable[..., Optional[str]]]
AmountSource = Union[int, Callable[..., int]]
MetadataSource = Union[Dict[str, Any], Callable[..., Optional[Dict[str, Any]]], None]
KeySource = Optional[Callable[..., Optional[str]]]
Condition = Callable[..., bool]


class Record(NamedTuple):
    """What is to be recorded."""

    envelope_id: str
    amount: int
    metadata: Optional[Dict[str, Any]]
    idempotency_key: Optional[str]


class Recorder:
    """Records what happened as its settings say, and never raises because of it.

    A function that raises, or returns what cannot be recorded, costs the one record it was asked for: it is added to
    `failures`, and the first of each kind (which function, which exception) is logged with its traceback.

    Args:
        client: records, and is asked for nothing else.
        envelope_id: the envelope that pays, or a function of what happened; one that returns None leaves it uncounted.
        amount: units of usage, or a function.
        metadata: a dict, or a function that returns one or None.
        idempotency_key: a function that returns the key under which it is booked once, however often it is recorded.
        count: tells what counts; one that returns something false leaves it uncounted.

    Raises:
        ValidationError: a value cannot be recorded, or a function is asynchronous.
    """

    def __init__(
        self,
        client: X402Client,
        envelope_id: EnvelopeSource,
        amount: AmountSource = 1,
        metadata: MetadataSource = None,
        idempotency_key: KeySource = None,
        count: Optional[Condition] = None,
    ) -> None:
        check_recordable(envelope_id, amount, metadata)
        if idempotency_key is not None and not callable(idempotency_key):
            raise ValidationError("idempotency_key must be a function: what has one key is booked once")
        self.client = client
        self.failures = 0  # what was to be recorded and could not be
        self._count = count
        self._sources: Tuple[Tuple[str, Any], ...] = (
            ("envelope_id", envelope_id),
            ("amount", amount),
            ("metadata", metadata),
            ("idempotency_key", idempotency_key),
        )
        for argument, source in (*self._sources, ("count", count)):
            _refuse_asynchronous(argument, source)
        self._kinds: Set[Tuple[str, str]] = set()
        self._lock = threading.Lock()  # guards failures and _kinds; never taken unless something fails

    def record(self, *happened: Any) -> Optional[Usage]:
        """Records it if it counts; None when it does not, or when that failed."""
        record = self.work_out(*happened)
        return None if record is None else self.store(record)

    def work_out(self, *happened: Any) -> Optional[Record]:
        """What is to be recorded, by the user's functions; None for nothing."""
        asked = "count"
        try:
            if self._count is not None and not self._count(*happened):
                return None
            values = []
            for asked, source in self._sources:
                value = source(*happened) if callable(source) else source
                if value is None and asked == "envelope_id":
                    return None
                values.append(value)
            return Record(*values)
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises must not reach what is metered
            self.failed(f"the {asked} function", error)
            return None

    def store(self, record: Record) -> Optional[Usage]:
        """Hands it to the client; None when that failed."""
        try:
            return self.client.record_usage(*record[:3], idempotency_key=record.idempotency_key)
        except Exception as error:  # noqa: BLE001 - bad values, a closed or full buffer, no answer without a buffer
            self.failed("recording", error)
            return None

    def failed(self, what: str, error: Exception) -> None:
        """Counts a record that was lost, and logs the first of its kind."""
        kind = (what, type(error).__name__)
        with self._lock:
            self.failures += 1
            is_new = kind not in self._kinds
            self._kinds.add(kind)
        if is_new:
            told = None if isinstance(error, X402Error) else error  # ours say all in their message
            log.warning(
                "usage was not recorded: %s raised %s: %s; further ones are only counted, in `failures`",
                what, kind[1], str(error)[:200], exc_info=told,
            )  # fmt: skip


def check_recordable(envelope_id: object, amount: object, metadata: Any) -> None:
    """Checks the values that are no functions.

    Raises:
        ValidationError: one of them could never be recorded.
    """
    if not callable(envelope_id):
        _event.check_id(envelope_id, "envelope_id")
    if not callable(amount):
        _event.check_amount(amount)
    if not callable(metadata):
        _event.snapshot_metadata(metadata)


def is_plain(client: object) -> bool:
    """True for a client each of whose records waits for the answer of the service."""
    from x402tools.client import X402Client  # which knows this module

    return isinstance(client, X402Client) and client.buffer is None


def may_wait(client: X402Client) -> bool:
    """Whether recording may take longer than an event loop should wait at this moment."""
    buffer = getattr(client, "buffer", None)  # a fake of a test may have none
    return is_plain(client) if buffer is None else bool(buffer.may_wait())


def _refuse_asynchronous(argument: str, source: object) -> None:
    if inspect.iscoroutinefunction(source) or inspect.isasyncgenfunction(source):
        raise ValidationError(f"{argument} must be a plain function: it is called when there is nothing left to await")
