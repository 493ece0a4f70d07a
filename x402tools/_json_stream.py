"""The objects of a JSON list, one at a time, from a body that arrives in pieces.

A list of a million usage records is some 200 MB of JSON; read whole it would take several times the memory of the
records made from it. Here only the piece in hand and the object being read are kept.
"""

from __future__ import annotations

import codecs
import json
from typing import Any, Dict, Iterable, Iterator, NoReturn

# No single object of this API comes near it; the limit keeps a broken or hostile answer from filling the memory.
LARGEST_OBJECT = 1024 * 1024  # characters


class NotAListError(ValueError):
    """The body is not a JSON list of objects, or it ended too early."""


class NotJSONError(ValueError):
    """A number that Python's reader takes and JSON does not have."""


def refuse_constant(name: str) -> NoReturn:
    """For `parse_constant`: an amount that is NaN would spoil every sum it enters, and raise nothing.

    Raises:
        NotJSONError: always.
    """
    raise NotJSONError(f"{name} is not JSON")


def objects(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """Yields each object of the list.

    Raises:
        NotAListError: the body is something else, or an object is larger than a mebibyte of characters.
        NotJSONError: NaN or Infinity stands where JSON has a number.
    """
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    text = _Window(pieces)
    if text.next_character() != "[":
        raise NotAListError("not a JSON list")
    text.skip(1)
    separator = text.next_character()
    if separator == "]":
        text.skip(1)
    while separator != "]":
        if text.next_character() != "{":
            raise NotAListError("a member of the list is not a JSON object")
        yield text.take_object(decoder)
        separator = text.next_character()
        text.skip(1)
        if separator not in (",", "]"):
            raise NotAListError("the list is cut short" if not separator else "not a JSON list")
    # Read to the end: whatever follows the list is no part of it, and a connection is used again once it is read out.
    if text.next_character():
        raise NotAListError("something follows the list")


class _Window:
    """The part of the text that has arrived and is not used yet."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._texts = codecs.iterdecode(pieces, "utf-8-sig")
        self._text = ""
        self._start = 0

    def next_character(self) -> str:
        """The next character that is not white space, still unused; empty at the end."""
        while True:
            rest = self._text[self._start : self._start + 64].lstrip(" \t\r\n")
            if rest:
                self._start = self._text.index(rest[0], self._start)
                return rest[0]
            self._start = min(self._start + 64, len(self._text))
            if self._start == len(self._text) and not self._read_more():
                return ""

    def skip(self, count: int) -> None:
        self._start += count

    def take_object(self, decoder: json.JSONDecoder) -> Dict[str, Any]:
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._start)
            except NotJSONError:
                raise
            except RecursionError:
                raise NotAListError("an object of the list is nested too deeply") from None
            except ValueError:
                if len(self._text) - self._start > LARGEST_OBJECT:
                    raise NotAListError("an object of the list is too large, or not JSON") from None
                if not self._read_more():
                    raise NotAListError("the list is cut short, or not JSON") from None
                continue
            if end - self._start > LARGEST_OBJECT:
                raise NotAListError("an object of the list is too large")
            self._start = end
            return dict(value)

    def _read_more(self) -> bool:
        try:
            more = next(self._texts, "")
        except UnicodeDecodeError:
            raise NotAListError("not UTF-8") from None
        self._text = self._text[self._start :] + more
        self._start = 0
        return bool(more)
