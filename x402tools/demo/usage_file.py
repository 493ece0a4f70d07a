"""Reads a file of usage events, one JSON object a line, without ever holding more than a line of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

FIELDS = ("envelope_id", "amount", "metadata", "idempotency_key")
_EXPORTED = "spool"  # what `x402tools buffer export` adds about an event: where it was, and since when
LONGEST_LINE = 512 * 1024  # bytes; an event with the largest metadata, all of it escaped, is shorter
_LONGEST_NUMBER = 30  # digits; reading one of a million would take minutes
_PIECE = 1024 * 1024  # bytes


class UsageLine(NamedTuple):
    """An event as the file has it. Only its shape is checked: what its values may be is for the client to say."""

    number: int  # of the line, from 1
    envelope_id: Any
    amount: Any
    metadata: Any
    key: Any = None  # the idempotency key, where the file has one


class BadLine(NamedTuple):
    """A line that is no event, and why."""

    number: int
    reason: str


def read(path: str) -> Iterator[Union[UsageLine, BadLine]]:
    """Every line of the file in order, empty ones left out.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if line is None:
                yield BadLine(number, f"is longer than {LONGEST_LINE:,} bytes")
                continue
            text = line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line  # a byte order mark
            if text.strip():
                yield parse(number, text)


def digest(path: str) -> str:
    """A hash of the whole file: what tells its events apart from those of every other file.

    Raises:
        OSError: the file cannot be read.
    """
    summer = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            summer.update(piece)
    return summer.hexdigest()


def _lines(file: BinaryIO) -> Iterator[Optional[bytes]]:
    """The lines; None for one that is too long to be held."""
    while True:
        line = file.readline(LONGEST_LINE)
        if not line:
            return
        is_whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        yield line if is_whole else None
        while not is_whole:
            rest = file.readline(LONGEST_LINE)
            is_whole = rest.endswith(b"\n") or len(rest) < LONGEST_LINE


def parse(number: int, line: bytes) -> Union[UsageLine, BadLine]:
    """The event of a line of JSON."""
    try:
        document = json.loads(
            line.decode("utf-8"), object_pairs_hook=_object, parse_int=_whole_number, parse_constant=_constant
        )
    except UnicodeDecodeError:
        return BadLine(number, "is not UTF-8")
    except json.JSONDecodeError as error:
        return BadLine(number, f"is not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return BadLine(number, str(error))
    except RecursionError:
        return BadLine(number, "is nested too deeply")
    if not isinstance(document, dict):
        return BadLine(number, 'is not a JSON object like {"envelope_id": "env_1", "amount": 1}')
    reason = _wrong_fields(document)
    if reason is not None:
        return BadLine(number, reason)
    fields = (document.get(field) for field in FIELDS)
    return UsageLine(number, *fields)


def _wrong_fields(document: Dict[str, Any]) -> Optional[str]:
    for field in FIELDS[:2]:
        if field not in document:
            return f"has no {field}"
    for field in document:
        if field not in FIELDS and field != _EXPORTED:
            return f"has an unknown field {ascii(field)[:40]}: put it into metadata"
    return None


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):  # which of the two amounts was meant?
        raise ValueError("names a field twice")
    return document


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"has a number of more than {_LONGEST_NUMBER} digits")
    return int(digits)


def _constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name}")
