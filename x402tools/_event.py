"""One usage event: its arguments checked once, at the border, and its id.

An event is a plain tuple, because it is made on the request path of somebody's service: building a tuple of five
costs a tenth of building an object, and `json` writes a list of them in one call.

    (number, envelope_id, amount, metadata, recorded_at)

    number       counts the events of one process; the id is "<recorder>-<number>". A caller's own
                 idempotency key stands here as a str and is the whole id.
    metadata     None, a dict of plain values that nobody else can change, or the JSON text of anything richer
    recorded_at  seconds since 1970, UTC, of the wall clock
"""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Set, Tuple, Union
from urllib.parse import quote

from x402tools.errors import ValidationError
from x402tools.models import Usage

Metadata = Union[None, Dict[str, Any], str]
Event = Tuple[Union[int, str], str, int, Metadata, float]

# The service speaks JSON and prints times as JavaScript does; 2**53 - 1 is the largest whole number that every
# JSON reader keeps exactly.
LARGEST_AMOUNT = 2**53 - 1

# Longer ones are mistakes (a whole URL, a body); the limit keeps a row of the spool and a header line small.
LONGEST_ID = 256

# Of the metadata as JSON, in bytes. The limit keeps one event from filling a batch of the spool.
LARGEST_METADATA = 64 * 1024
DEEPEST_METADATA = 32

# What `event_time="metadata"` adds to the metadata.
TIME_KEY = "recorded_at"

# Metadata within these bounds is far below LARGEST_METADATA, so its size need not be measured on the request path.
_FEW_KEYS = 32
_SHORT_TEXT = 256
_SMALL_INTEGER = 2**63

# Keys of metadata that were looked at already: programs use few and use them always. A set's operations are atomic.
_MOST_KNOWN_KEYS = 1000
_known_keys: Set[str] = set()


def check_id(value: object, argument: str) -> str:
    """An id that can stand in a path and a body without becoming something else.

    Raises:
        ValidationError: not a str, empty, longer than 256 characters, "." or "..", or with characters that
            cannot be printed or encoded.
    """
    if not isinstance(value, str):
        raise ValidationError(f"{argument} must be a str, not {type(value).__name__}")
    if not value or len(value) > LONGEST_ID:
        raise ValidationError(f"{argument} must have 1 to {LONGEST_ID} characters, not {len(value)}")
    if value in (".", "..") or not value.isprintable():
        raise ValidationError(f"{argument} must be printable text other than '.' and '..', not {value!a}")
    return value


def path_segment(value: object, argument: str) -> str:
    """An id, checked and quoted so that no id can reach another endpoint."""
    return quote(check_id(value, argument), safe="")


def check_amount(value: object) -> int:
    """Units of usage: a whole number from 0 to 2**53 - 1. Zero is legal and bills nothing.

    Negative amounts are refused, because the description of the API knows no credits and a negative amount is
    nearly always a mistake in a subtraction that would quietly lower a bill.

    Raises:
        ValidationError: anything else, bool and float included.
    """
    if type(value) is not int:
        raise ValidationError(f"amount must be an int, not {type(value).__name__}: use int(...) if it is whole")
    if not 0 <= value <= LARGEST_AMOUNT:
        shown = value if abs(value) < 10**30 else "a number of more than 30 digits"
        raise ValidationError(f"amount must be from 0 to 2**53 - 1 ({LARGEST_AMOUNT}), not {shown}")
    return value


def check_key(value: object) -> str:
    """A caller's own idempotency key: it travels in a header, so visible ASCII, 1 to 255 characters.

    Raises:
        ValidationError: anything else.
    """
    usable = isinstance(value, str) and 0 < len(value) < 256 and value.isascii() and value.isprintable()
    if not usable or " " in str(value):
        raise ValidationError("idempotency_key must be 1 to 255 visible ASCII characters without spaces")
    return str(value)


def snapshot_metadata(metadata: Optional[Dict[str, Any]]) -> Metadata:
    """What the metadata says now, safe from whoever changes it later; None for None and for an empty dict.

    A small flat dict of str, int, bool and None is copied; anything richer is written as JSON text at once, which
    costs a few microseconds and finds everything that JSON cannot say while the caller is still there to be told.

    Raises:
        ValidationError: not a dict; a key that is not a str; a value JSON cannot say (NaN included); text that
            UTF-8 cannot encode; circular or nested deeper than 32; over 64 KiB as JSON.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise ValidationError(f"metadata must be a dict, not {type(metadata).__name__}")
    snapshot = metadata.copy() if type(metadata) is dict else dict(metadata)
    if len(snapshot) > _FEW_KEYS:
        return metadata_json(snapshot)
    known = _known_keys
    for key, value in snapshot.items():
        # The type before the look-up: an object of any other may say that it equals a key that is known.
        if type(key) is not str or (key not in known and not _learn_key(key)):
            return metadata_json(snapshot)
        kind = type(value)
        if kind is str:
            if len(value) > _SHORT_TEXT or not value.isascii():
                return metadata_json(snapshot)
        elif kind is int:
            if not -_SMALL_INTEGER <= value < _SMALL_INTEGER:
                return metadata_json(snapshot)
        elif kind is not bool and value is not None:
            return metadata_json(snapshot)
    return snapshot or None


def _learn_key(key: str) -> bool:
    """Whether it is short and ASCII; if so, it is known from now on."""
    if len(key) > _SHORT_TEXT or not key.isascii():
        return False
    if len(_known_keys) >= _MOST_KNOWN_KEYS:  # keys without end, such as ids: they would fill the memory
        _known_keys.clear()
    _known_keys.add(key)
    return True


def metadata_json(metadata: Dict[str, Any]) -> str:
    """The metadata as JSON text, after every check that `snapshot_metadata` names."""
    _check_nesting(metadata)
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: changed by another thread meanwhile
        raise ValidationError(f"metadata must be plain JSON: {str(error)[:200]}") from None
    if size > LARGEST_METADATA:
        raise ValidationError(f"metadata must be at most {LARGEST_METADATA} bytes as JSON, not {size}")
    return text


def _check_nesting(metadata: Dict[str, Any]) -> None:
    """Refuses what `json` would change in silence (keys that are not str) and what would exhaust its stack."""
    layer: List[Any] = [metadata]
    for _ in range(DEEPEST_METADATA):
        deeper: List[Any] = []
        for value in layer:
            if isinstance(value, dict):
                members = dict(value)
                strange = [key for key in members if not isinstance(key, str)]
                if strange:
                    raise ValidationError(f"metadata keys must be str, not {type(strange[0]).__name__}")
                deeper.extend(members.values())
            elif isinstance(value, (list, tuple)):
                deeper.extend(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValidationError(f"metadata must be plain JSON: {value} is not a JSON number")
        layer = [value for value in deeper if isinstance(value, (dict, list, tuple, float))]
        if not layer:
            return
        if len(layer) > LARGEST_METADATA:  # every member takes a byte or more, so the size limit is passed already
            raise ValidationError(f"metadata must be at most {LARGEST_METADATA} bytes as JSON")
    raise ValidationError(f"metadata must not be circular or nested deeper than {DEEPEST_METADATA}")


def event_id(recorder: str, number: Union[int, str]) -> str:
    """The id of an event, which is also the idempotency key of its POST."""
    return number if isinstance(number, str) else f"{recorder}-{number}"


def time_text(recorded_at: float) -> str:
    """Seconds since 1970 as JavaScript prints a time: `2025-11-05T12:34:56.789Z`."""
    milliseconds = int(recorded_at * 1000)
    moment = datetime.fromtimestamp(milliseconds // 1000, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def with_time(event: Event) -> Event:
    """The event with the time of its recording in its metadata, as `recorded_at`, unless there is one already."""
    number, envelope_id, amount, metadata, recorded_at = event
    moment = {TIME_KEY: time_text(recorded_at)}
    if isinstance(metadata, str):
        members = json.loads(metadata)
        text = json.dumps({**moment, **members}, ensure_ascii=False, separators=(",", ":"))
        return (number, envelope_id, amount, text, recorded_at)
    return (number, envelope_id, amount, {**moment, **(metadata or {})}, recorded_at)


class PendingUsage(Usage):
    """The `Usage` of a buffered call. Its fields are worked out when one of them is first looked at.

    Hardly any caller looks, and on the request path making an id, a datetime and six attributes would cost more
    than all the rest of recording.
    """

    def __init__(self, event: Event, recorder: str, accepted: bool = True) -> None:
        self._origin = (event, recorder, accepted)

    def __getattr__(self, name: str) -> Any:
        origin = self.__dict__.get("_origin")
        if origin is None:  # fields are filled in already, or an unpickler is at work
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        event, recorder, accepted = origin
        number, envelope_id, amount, metadata, recorded_at = event
        self.__dict__.update(
            id=event_id(recorder, number),
            envelope_id=envelope_id,
            amount=amount,
            timestamp=datetime.fromtimestamp(recorded_at, timezone.utc),
            metadata=json.loads(metadata) if isinstance(metadata, str) else metadata and dict(metadata),
            pending=accepted,
        )
        self.__dict__.pop("_origin", None)
        return getattr(self, name)
