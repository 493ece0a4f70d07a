"""A batch of events as one value of the spool: compressed text behind a version, a flag and a checksum.

    byte 0      format: 1 by rows, 2 by columns
    byte 1      1 when the payload is compressed with zlib, else 0
    bytes 2-5   CRC32 of the two bytes before and of the payload: neither SQLite nor a file system sees a flipped bit
    the rest    the payload: by rows
                ["<recorder>", [[number, envelope_id, amount, metadata, milliseconds, events?], ...]]
                or, as a rule, by columns, see `_columns`

`metadata` is null, an object, or a string that holds JSON text. `events` stands there only when the POST counts for
more than one event. Nothing here is ever pickled, so reading a hostile file runs no code.
"""

from __future__ import annotations

import json
import struct
import zlib
from json.encoder import encode_basestring_ascii
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

from x402tools import _columns, _json_writer
from x402tools._columns import Columns, Row
from x402tools._event import Event, Metadata, event_id, time_text

FORMATS = ROWS, COLUMNS = 1, 2

# More in one batch would hold the interpreter lock for longer than a request should ever wait (about a millisecond),
# fewer would cost more per event.
MOST_EVENTS = 500

# Below this many bytes compressing saves little.
_WORTH_COMPRESSING = 512
_FASTEST = 1  # zlib level; the higher ones save a few per cent more and cost several times the time
# zlib clears its tables before it begins: those of its defaults take 75 µs, longer than a small batch does, these 3 µs.
# Rows repeat what the rows just before them say, so a window of 8 KiB finds as much.
_WINDOW_BITS, _MEMORY_LEVEL = 13, 6

# The largest batch there can be: 500 events with 64 KiB of metadata each. A larger one was not written by us.
_LARGEST_PAYLOAD = 64 * 1024 * 1024

_HEADER = struct.Struct(">BBI")

# Made once: `json.dumps` makes another encoder for each call that wants anything but its defaults.
_compact = json.JSONEncoder(separators=(",", ":")).encode

LARGEST_VALUE = _LARGEST_PAYLOAD + _HEADER.size


class CorruptBatchError(ValueError):
    """The value is not a batch, or not the one that was written."""


class Post(NamedTuple):
    """A frozen POST: nothing in it ever changes, so every attempt sends the same bytes under the same key."""

    key: str
    envelope_id: str
    amount: int
    metadata: Metadata
    recorded_at: float  # seconds since 1970; of the oldest event it counts for
    events: int = 1

    def body(self) -> bytes:
        """The body of the POST: exactly the fields that the wire contract names."""
        head = f'{{"envelopeId":{encode_basestring_ascii(self.envelope_id)},"amount":{self.amount}'
        if self.metadata is None:
            return f"{head}}}".encode("ascii")
        metadata = self.metadata if isinstance(self.metadata, str) else _compact(self.metadata)
        return f'{head},"metadata":{metadata}}}'.encode()

    def body_with_time(self) -> bytes:
        """The same with a `timestamp`, a field that is in no description of the API."""
        return self.body()[:-1] + f',"timestamp":"{time_text(self.recorded_at)}"}}'.encode("ascii")


class EncodedBatch(NamedTuple):
    """A batch ready for the spool. Its id makes storing it twice impossible.

    `is_sealed` is False for events that are still to be folded; `partition` counts in a store that has several;
    `is_noted` is True where a journal has its events too, None where it may have them; see `_journal`.
    """

    id: str
    events: int
    units: int
    value: bytes
    is_sealed: bool = True
    partition: int = 0
    is_noted: Optional[bool] = False


def encode(
    recorder: str,
    batch_number: int,
    events: Sequence[Event],
    *,
    key_field: Optional[str] = None,
    is_sealed: bool = True,
) -> EncodedBatch:
    """The batch of these events, which all belong to one recorder.

    Args:
        is_sealed: each event is a POST; otherwise they are still to be folded, and get no `key_field` here.
        key_field: has each POST carry its key in the metadata, under this name; see `with_key`.
    """
    if not is_sealed:
        key_field = None
    columns = _columns.of_events(events) if key_field is None else None
    payload = None if columns is None else columns.payload(recorder)
    if columns is None or payload is None:
        return encode_rows(recorder, batch_number, rows_of(recorder, events, key_field), is_sealed=is_sealed)
    value = _seal(COLUMNS, payload)
    return EncodedBatch(f"{recorder}/{batch_number}", len(events), sum(columns.amounts), value, is_sealed)


def rows_of(recorder: str, events: Sequence[Event], key_field: Optional[str]) -> List[Row]:
    """The rows of these events; `key_field` as for `encode`."""
    rows = [
        (number, envelope_id, amount, metadata, int(recorded_at * 1000))
        for number, envelope_id, amount, metadata, recorded_at in events
    ]
    if key_field is not None:
        rows = [
            (number, envelope_id, amount, with_key(metadata, key_field, event_id(recorder, number)), milliseconds)
            for number, envelope_id, amount, metadata, milliseconds in rows
        ]
    return rows


def encode_rows(recorder: str, batch_number: int, rows: Sequence[Row], *, is_sealed: bool) -> EncodedBatch:
    """The batch of these rows as they are."""
    units = sum(row[2] for row in rows)
    value = _seal(ROWS, _json_writer.write([recorder, rows]))
    return EncodedBatch(f"{recorder}/{batch_number}", len(rows), units, value, is_sealed)


def encode_posts(batch_id: str, posts: Sequence[Post]) -> EncodedBatch:
    """The batch of these POSTs, which keep the keys they have."""
    rows = [
        (post.key, post.envelope_id, post.amount, post.metadata, int(post.recorded_at * 1000), post.events)
        for post in posts
    ]
    events, units = sum(post.events for post in posts), sum(post.amount for post in posts)
    return EncodedBatch(batch_id, events, units, _seal(ROWS, _json_writer.write(["", rows])))


def with_key(metadata: Metadata, field: str, key: str) -> Metadata:
    """The metadata with the idempotency key in it, unless it has that field already: then it stays as it is.

    It is put there before the POST is sealed, because every attempt sends the same bytes, also those of a later
    process that was set up otherwise. So a POST itself shows whether it can be found again in `get_usage`.
    """
    if metadata is None:
        return {field: key}
    if isinstance(metadata, dict):
        return metadata if field in metadata else {**metadata, field: key}
    members = json.loads(metadata)
    if field in members:
        return metadata
    return f"{metadata[:-1]}{',' if members else ''}{json.dumps(field)}:{json.dumps(key)}}}"


def has_key(post: Post, field: str) -> bool:
    """Whether the POST carries its key under this name."""
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    return metadata is not None and metadata.get(field) == post.key


def _seal(form: int, payload: bytes) -> bytes:
    compressed = len(payload) > _WORTH_COMPRESSING
    if compressed:
        compressor = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
        payload = compressor.compress(payload) + compressor.flush()
    return _HEADER.pack(form, compressed, _checksum(form, compressed, payload)) + payload


def _checksum(form: int, compressed: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(bytes((form, compressed))))


def decode(value: bytes) -> List[Post]:
    """The POSTs of a batch, in the order in which they were recorded.

    Raises:
        CorruptBatchError: a checksum, a format or a type is not what it has to be.
    """
    recorder, rows = _open(value)
    try:
        if isinstance(rows, Columns):
            return [Post(event_id(recorder, row[0]), *row[1:4], row[4] / 1000) for row in rows]
        return [_post(recorder, *row) for row in rows]
    except TypeError as error:
        raise CorruptBatchError(str(error)) from None


def recorded_rows(value: bytes) -> Tuple[str, Union[List[Row], Columns]]:
    """The recorder of a batch of events, and the events.

    Raises:
        CorruptBatchError: as for `decode`.
    """
    recorder, rows = _open(value)
    return str(recorder), rows if isinstance(rows, Columns) else checked(rows)


def checked(rows: Any) -> List[Row]:
    """The rows, if they are rows.

    Raises:
        CorruptBatchError: they are not.
    """
    try:
        for number, envelope_id, amount, metadata, milliseconds in rows:
            if type(amount) is not int or type(envelope_id) is not str or type(milliseconds) is not int:
                raise CorruptBatchError("a row has a value of another type")
            if (metadata is not None and type(metadata) not in (dict, str)) or type(number) not in (int, str):
                raise CorruptBatchError("a row has a value of another type")
    except (TypeError, ValueError) as error:
        raise CorruptBatchError(str(error)) from None
    return list(rows)


def _open(value: bytes) -> Tuple[Any, Any]:
    """The recorder, and rows that are not checked or columns that are, of a value whose checksum is right."""
    try:
        form, compressed, checksum = _HEADER.unpack_from(value)
        payload = value[_HEADER.size :]
        if form not in FORMATS:
            raise CorruptBatchError(f"batch format {form} is not known to this version")
        if _checksum(form, compressed, payload) != checksum:
            raise CorruptBatchError("checksum differs")
        if compressed:
            payload = _inflate(payload)
        recorder, rows = json.loads(payload) if form == ROWS else _columns.read(payload)
        return recorder, rows
    except (struct.error, zlib.error, ValueError, TypeError, RecursionError) as error:
        raise CorruptBatchError(str(error)) from None


def _inflate(payload: bytes) -> bytes:
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(payload, _LARGEST_PAYLOAD)
    if inflater.unconsumed_tail:
        raise CorruptBatchError("batch is larger than any that is written")
    return inflated


def _post(
    recorder: str,
    number: Union[int, str],
    envelope_id: str,
    amount: int,
    metadata: Metadata,
    milliseconds: int,
    events: int = 1,
) -> Post:
    # The checksum finds an accident; a file that was made up has a right one, and must not reach the bill.
    if type(amount) is not int or type(envelope_id) is not str or type(events) is not int or events < 1:
        raise CorruptBatchError("a row has a value of another type")
    if metadata is not None and type(metadata) not in (dict, str):
        raise CorruptBatchError("a row has metadata of another type")
    return Post(event_id(recorder, number), envelope_id, amount, metadata, milliseconds / 1000, events)
