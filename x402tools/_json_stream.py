"""The objects of a JSON list, one at a time, from a body that arrives in pieces.

A list of a million usage records is some 200 MB of JSON; read whole it would take several times the memory of the
records made from it. Here only the piece in hand and the object being read are kept.
"""

from __future__ import annotations

import codecs
import json
from typing import Any, Dict, Iterable, Iterator

# No single object of this API comes near it; the limit keeps a broken or hostile answer from filling the memory.
LARGEST_OBJECT = 1024 * 1024  # characters


class NotAListError(ValueError):
    """The body is not a JSON list of objects, or it ended too early."""


def objects(pieces: Iterable[bytes]) -> Iterator[Dict[str, Any]]:
    """Yields each object of the list.

    Raises:
        NotAListError: the body is something else, or an object is larger than a mebibyte of characters.
    """
    decoder = json.JSONDecoder()
    text = _Window(pieces)
    if text.next_character() != "[":
        raise NotAListError("not a JSON list")
    text.skip(1)
    if text.next_character() == "]":
        return
    while True:
        if text.next_character() != "{":
            raise NotAListError("a member of the list is not a JSON object")
        yield text.take_object(decoder)
        separator = text.next_character()
        text.skip(1)
        if separator == "]":
            return
        if separator != ",":
            raise NotAListError("the list is cut short" if not separator else "not a JSON list")


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
            except ValueError:
                if len(self._text) - self._start > LARGEST_OBJECT:
                    raise NotAListError("an object of the list is too large, or not JSON") from None
                if not self._read_more():
                    raise NotAListError("the list is cut short, or not JSON") from None
                continue
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
