"""The events of a file or of a pipe, NDJSON or CSV, each with what it takes to tell it from every other one.

An event's fingerprint is a hash of everything up to the end of its line: the same beginning of a file gives the same
fingerprints, so a file that has grown keeps those of the lines it had, and one that was changed has others from there.
Nothing longer than a line is ever held.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import deque
from typing import Any, BinaryIO, Deque, Dict, Iterator, List, NamedTuple, Optional, Union

from x402tools.demo.usage_file import FIELDS, LONGEST_LINE, BadLine, UsageLine, parse

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FINGERPRINT = 32  # characters of it
_LONGEST_RECORD = 1000  # lines of one CSV record, whose fields may have line ends in them
_METADATA_COLUMN = "metadata."

FORMATS = ("ndjson", "csv")


class BadHeaderError(ValueError):
    """The first line of a CSV file does not name the columns that are needed."""


class Entry(NamedTuple):
    """Something in the file.

    Attributes:
        event: it, or why it is none; None for the rest of a line that is too long, whose beginning came before.
        raw: the bytes as they were.
        fingerprint: of everything up to its end.
    """

    event: Union[UsageLine, BadLine, None]
    raw: bytes
    fingerprint: str


class Source:
    """Reads `file` once.

    Attributes:
        bytes_read: how far.
        header: the line with the names of the columns, once a CSV file is being read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.bytes_read = 0
        self.header = b""
        self._file = file
        self._hash = hashlib.sha256()
        self._pushed_back: Deque[bytes] = deque()

    def entries(self, kind: str) -> Iterator[Entry]:
        """Everything but empty lines.

        Args:
            kind: one of FORMATS.

        Raises:
            BadHeaderError: see there.
            OSError: the file cannot be read.
        """
        return self._csv_entries() if kind == "csv" else self._ndjson_entries()

    def guess(self) -> str:
        """The format, by its first line."""
        line = self._next()
        self._pushed_back.append(line)
        return "ndjson" if line.lstrip(_BYTE_ORDER_MARK + b" \t\r\n").startswith((b"{", b"[")) else "csv"

    def _next(self) -> bytes:
        """The next line, or a piece of one that is too long."""
        if self._pushed_back:
            return self._pushed_back.popleft()
        piece = self._file.readline(LONGEST_LINE)
        self.bytes_read += len(piece)
        return piece

    def _entry(self, event: Union[UsageLine, BadLine, None], raw: bytes) -> Entry:
        self._hash.update(raw)
        return Entry(event, raw, self._hash.hexdigest()[:_FINGERPRINT])

    def _rest_of_line(self, piece: bytes) -> Iterator[Entry]:
        while not _is_whole(piece):
            piece = self._next()
            yield self._entry(None, piece)

    def _ndjson_entries(self) -> Iterator[Entry]:
        number = 0
        while True:
            line = self._next()
            if not line:
                return
            number += 1
            if not _is_whole(line):
                yield self._entry(_too_long(number), line)
                yield from self._rest_of_line(line)
                continue
            text = line[len(_BYTE_ORDER_MARK) :] if number == 1 and line.startswith(_BYTE_ORDER_MARK) else line
            if text.strip():
                yield self._entry(parse(number, text), line)
            else:
                self._hash.update(line)

    def _csv_entries(self) -> Iterator[Entry]:
        self.header = self._next()
        self._hash.update(self.header)
        columns = _columns(self.header)
        number = 1
        while True:
            record = self._csv_record()
            if not record:
                return
            first, number = number + 1, number + len(record)
            raw = b"".join(record)
            if not _is_whole(record[0]):
                yield self._entry(_too_long(first), raw)
                yield from self._rest_of_line(raw)
            elif raw.strip():
                yield self._entry(_csv_event(first, raw, columns), raw)
            else:
                self._hash.update(raw)

    def _csv_record(self) -> List[bytes]:
        """The lines of the next record: it goes on while a quote is open. If that one is never closed, it is one line:
        the others are events of their own."""
        lines: List[bytes] = []
        size, quotes = 0, 0
        while True:
            line = self._next()
            if not line:
                break
            lines.append(line)
            size += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0 or len(lines) == _LONGEST_RECORD or size >= LONGEST_LINE:
                break
        if quotes % 2 and len(lines) > 1:
            self._pushed_back.extendleft(reversed(lines[1:]))
            return lines[:1]
        return lines


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") or len(line) < LONGEST_LINE


def _too_long(number: int) -> BadLine:
    return BadLine(number, f"is longer than {LONGEST_LINE:,} bytes")


def _columns(header: bytes) -> List[str]:
    if header.startswith(_BYTE_ORDER_MARK):
        header = header[len(_BYTE_ORDER_MARK) :]
    try:
        names = [name.strip() for name in _fields(header)]
    except ValueError as error:
        raise BadHeaderError(f"the first line {error}") from None
    for name in FIELDS[:2]:
        if name not in names:
            raise BadHeaderError(
                f"the first line has no column {name}: envelope_id,amount,metadata.endpoint for example"
            )
    for name in names:
        if name not in FIELDS and not name.startswith(_METADATA_COLUMN):
            raise BadHeaderError(
                f"the column {ascii(name)[:40]} is not known: call it metadata.{name} to send it along"
            )
    if len(set(names)) < len(names):
        raise BadHeaderError("the first line names a column twice")
    return names


def _fields(raw: bytes) -> List[str]:
    """The fields of one record.

    Raises:
        ValueError: it is none; what is wrong with it.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"is not CSV: {error}") from None
    if len(rows) != 1:
        raise ValueError("is not CSV: more than one record, or none")
    return rows[0]


def _csv_event(number: int, raw: bytes, columns: List[str]) -> Union[UsageLine, BadLine]:
    try:
        fields = _fields(raw)
        if len(fields) != len(columns):
            raise ValueError(f"has {len(fields)} fields, not {len(columns)}")
        row = dict(zip(columns, fields))
        metadata = _csv_metadata(row)
        return UsageLine(
            number, row["envelope_id"], _csv_amount(row["amount"]), metadata, row.get("idempotency_key") or None
        )
    except ValueError as error:
        return BadLine(number, str(error))


def _csv_amount(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 16:  # the largest amount has so many
        raise ValueError(f"amount must be a whole number from 0, not {ascii(text)[:40]}")
    return int(digits)


def _csv_metadata(row: Dict[str, str]) -> Optional[Dict[str, Any]]:
    text = row.get("metadata", "").strip()
    try:
        metadata = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise ValueError("has metadata that is not JSON") from None
    if not isinstance(metadata, dict):
        raise ValueError("has metadata that is not a JSON object")
    for name, value in row.items():
        if name.startswith(_METADATA_COLUMN) and value:
            metadata[name[len(_METADATA_COLUMN) :]] = value
    return metadata or None
