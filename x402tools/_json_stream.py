"""The objects of a JSON list, one at a time, from a body that arrives in pieces.

A list of a million usage records is some 200 MB of JSON; read whole it would take several times the memory of the
records made from it. Here only the piece in hand and the object being read are kept.
"""

from __future__ import annotations

import codecs
import json
from typing import Any, Dict, Iterable, Iterator, NoReturn, Optional

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
    """Yields each object of the list as soon as its last brace is there.

    The pieces are read to their end: whatever follows the list is no part of it, and a connection is used again only
    once it is read out.

    Raises:
        NotAListError: the body is something else, or an object is larger than a mebibyte of characters.
        NotJSONError: NaN or Infinity stands where JSON has a number.
    """
    reader = ListReader()
    for piece in pieces:
        yield from reader.feed(piece)
    yield from reader.end()


class ListReader:
    """Reads a list whose pieces are handed in, by whoever gets them and in whatever way."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""  # what has arrived and is not used yet, from _start on
        self._start = 0
        self._expected = _LIST

    def feed(self, piece: bytes) -> Iterator[Dict[str, Any]]:
        """The objects that are whole with this piece; to be taken to the last before the next piece is handed in."""
        return self._read(piece, final=False)

    def end(self) -> Iterator[Dict[str, Any]]:
        """Says that there are no more pieces.

        Raises:
            NotAListError: the list is not at its end.
        """
        yield from self._read(b"", final=True)
        if self._expected != _NOTHING:
            raise NotAListError("not a JSON list" if self._expected == _LIST else "the list is cut short, or not JSON")

    def _read(self, piece: bytes, final: bool) -> Iterator[Dict[str, Any]]:
        try:
            more = self._utf8.decode(piece, final)
        except UnicodeDecodeError:
            raise NotAListError("not UTF-8") from None
        self._text = self._text[self._start :] + more
        self._start = 0
        while True:
            character = self._next_character()
            if not character:
                return
            if character == "{" and self._expected in (_MEMBER_OR_END, _MEMBER):
                value = self._take_object()
                if value is None:
                    return
                self._expected = _SEPARATOR
                yield value
            else:
                self._take(character)

    def _take(self, character: str) -> None:
        """Uses a bracket or a comma, where it belongs."""
        following = _FOLLOWING.get((self._expected, character))
        if following is None:
            raise NotAListError(_COMPLAINTS[self._expected])
        self._expected = following
        self._start += 1

    def _next_character(self) -> str:
        """The next character that is not white space, still unused; empty when more has to arrive."""
        while self._start < len(self._text):
            rest = self._text[self._start : self._start + 64].lstrip(" \t\r\n")
            if rest:
                self._start = self._text.index(rest[0], self._start)
                return rest[0]
            self._start = min(self._start + 64, len(self._text))
        return ""

    def _take_object(self) -> Optional[Dict[str, Any]]:
        """The object that begins here; None when the rest of it has to arrive."""
        try:
            value, end = self._decoder.raw_decode(self._text, self._start)
        except NotJSONError:
            raise
        except RecursionError:
            raise NotAListError("an object of the list is nested too deeply") from None
        except ValueError:
            if len(self._text) - self._start > LARGEST_OBJECT:
                raise NotAListError("an object of the list is too large, or not JSON") from None
            return None
        if end - self._start > LARGEST_OBJECT:
            raise NotAListError("an object of the list is too large")
        self._start = end
        return dict(value)


# What may come next, and what comes after it.
_LIST, _MEMBER_OR_END, _MEMBER, _SEPARATOR, _NOTHING = "list", "member or end", "member", "separator", "nothing"
_FOLLOWING = {
    (_LIST, "["): _MEMBER_OR_END,
    (_MEMBER_OR_END, "]"): _NOTHING,
    (_SEPARATOR, ","): _MEMBER,
    (_SEPARATOR, "]"): _NOTHING,
}
_COMPLAINTS = {
    _LIST: "not a JSON list",
    _MEMBER_OR_END: "a member of the list is not a JSON object",
    _MEMBER: "a member of the list is not a JSON object",
    _SEPARATOR: "not a JSON list",
    _NOTHING: "something follows the list",
}
