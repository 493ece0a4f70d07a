"""The list reader: the same objects however the text is cut into pieces, and an error for everything else."""

from __future__ import annotations

import json
from typing import Any, Iterable, Iterator, List

import pytest

from x402tools._json_stream import LARGEST_OBJECT, NotAListError, NotJSONError, objects

VALUES: List[Any] = [
    {},
    {"a": 1, "b": [1, [2, {"c": "]}"}]], "d": {"e": {}}},
    {"text": 'quote " backslash \\ bracket ] brace } comma ,'},
    {"euro": "€", "smile": "🙂", "mixed": "aé日🙂z"},
    {"number": -1.5e300, "zero": 0, "big": 2**53 - 1, "true": True, "null": None},
    {"": ""},
]
PLAIN = json.dumps(VALUES, ensure_ascii=False).encode("utf-8")
ESCAPED = json.dumps(VALUES, ensure_ascii=True).encode("ascii")
LOOSE = json.dumps(VALUES, ensure_ascii=False, indent="\t \r\n").encode("utf-8")

TEXTS = {"plain": PLAIN, "escaped": ESCAPED, "loose": LOOSE, "with a BOM": b"\xef\xbb\xbf" + PLAIN}


def by_size(text: bytes, size: int) -> Iterator[bytes]:
    """The text in pieces of this many bytes."""
    return (text[start : start + size] for start in range(0, len(text), size))


@pytest.mark.parametrize("kind", TEXTS)
def test_text_may_be_cut_anywhere(kind: str) -> None:
    """Into two pieces at every position: within characters, escapes, numbers and words too."""
    text = TEXTS[kind]

    for position in range(len(text) + 1):
        assert list(objects([text[:position], text[position:]])) == VALUES, position


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 65, 1000])
def test_text_may_be_cut_everywhere(kind: str, size: int) -> None:
    """Into pieces of any size, down to one byte."""
    assert list(objects(by_size(TEXTS[kind], size))) == VALUES


@pytest.mark.parametrize("kind", TEXTS)
def test_empty_pieces_do_not_matter(kind: str) -> None:
    """A piece without bytes is not the end."""
    text = TEXTS[kind]
    pieces = [part for size in by_size(text, 9) for part in (b"", size, b"")]

    assert list(objects(pieces)) == VALUES


@pytest.mark.parametrize("text", [b"[]", b" [ ] ", b"\r\n[\t\n]\n", b"\xef\xbb\xbf[]", b"[" + b" " * 100_000 + b"]"])
@pytest.mark.parametrize("size", [1, 64, 1_000_000])
def test_empty_list_has_no_objects(text: bytes, size: int) -> None:
    """White space around and between does not matter, however much."""
    assert list(objects(by_size(text, size))) == []


def test_text_is_read_as_far_as_needed() -> None:
    """Each object is handed out as soon as its last brace is there."""
    asked: List[bytes] = []

    def pieces() -> Iterator[bytes]:
        for piece in (b'[{"a": 1', b'}, {"a": ', b"2}, ", b'{"a": 3}]'):
            asked.append(piece)
            yield piece

    found = objects(pieces())

    assert asked == []
    assert next(found) == {"a": 1}
    assert len(asked) == 2
    assert next(found) == {"a": 2}
    assert len(asked) == 3
    assert list(found) == [{"a": 3}]


def test_text_is_read_to_its_end() -> None:
    """Also after the last bracket: a connection is used again only once it is read out."""
    pieces = iter([b"[{}", b"]", b" ", b"\n"])

    assert list(objects(pieces)) == [{}]
    assert list(pieces) == []


NOT_A_LIST = {
    "nothing": b"",
    "white space": b" \n ",
    "BOM alone": b"\xef\xbb\xbf",
    "object": b'{"a": []}',
    "text": b'"[]"',
    "number": b"1",
    "null": b"null",
    "HTML": b"<html>[{}]</html>",
    "bracket alone": b"[",
    "no closing bracket": b"[{}",
    "comma and no more": b"[{},",
    "comma before the bracket": b"[{},]",
    "comma first": b"[,{}]",
    "two commas": b"[{},,{}]",
    "no comma": b"[{} {}]",
    "colon for a comma": b"[{}:{}]",
    "wrong bracket": b"[{}}",
    "number in the list": b"[1]",
    "number after an object": b"[{}, 1]",
    "text in the list": b'["a"]',
    "null in the list": b"[null]",
    "list in the list": b"[[{}]]",
    "object cut in a name": b'[{"a',
    "object cut in a value": b'[{"a": 1',
    "object cut in an escape": b'[{"a": "\\u12',
    "object cut in a character": b'[{"a": "\xf0\x9f',
    "single quotes": b"[{'a': 1}]",
    "comment": b"[{} /* more */]",
    "Latin-1": b'[{"a": "\xfc"}]',
    "UTF-16": "[{}]".encode("utf-16"),
    "something after it": b"[{}] x",
    "a second list": b"[{}][{}]",
    "a second bracket": b"[]]",
    "an object after it": b'[] {"error": "timeout"}',
    "control character in text": b'[{"a": "\n"}]',
    "deep": b'[{"a": ' + b"[" * 100_000,
    "deep and closed": b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
}


@pytest.mark.parametrize("kind", NOT_A_LIST)
@pytest.mark.parametrize("size", [1, 7, 10_000_000])
def test_anything_else_is_an_error(kind: str, size: int) -> None:
    """NotAListError, never a list that is shorter than what was sent, and never an exception of the parser."""
    if len(NOT_A_LIST[kind]) / size > 10_000:
        size = 1000  # a prefix is parsed again with each piece, and a hundred thousand times is not what is tried here

    with pytest.raises(NotAListError):
        list(objects(by_size(NOT_A_LIST[kind], size)))


@pytest.mark.parametrize("position", range(1, len(PLAIN)))
def test_list_cut_short_is_an_error_wherever_it_ends(position: int) -> None:
    """The objects that came whole are handed out before."""
    found: List[Any] = []

    with pytest.raises(NotAListError):
        found.extend(objects([PLAIN[:position]]))

    assert found == VALUES[: len(found)]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_an_error(number: str) -> None:
    """Python's own reader would take them."""
    with pytest.raises(NotJSONError, match=number):
        list(objects([f'[{{"a": {number}}}]'.encode()]))


@pytest.mark.parametrize("size", [1 << 20, 64 * 1024])
def test_object_that_is_too_large_is_an_error(size: int) -> None:
    """One that does not end is given up after about a mebibyte, not read into memory."""
    asked = 0

    def endless() -> Iterable[bytes]:
        nonlocal asked
        yield b'[{"a": "'
        for _ in range(1000):
            asked += size
            yield b"x" * size

    with pytest.raises(NotAListError, match="too large"):
        list(objects(endless()))

    assert asked <= LARGEST_OBJECT + 2 * size


def test_object_that_is_too_large_is_an_error_even_when_it_is_there_already() -> None:
    """The limit does not depend on the size of the pieces."""
    with pytest.raises(NotAListError, match="too large"):
        list(objects([json.dumps([{"a": "x" * LARGEST_OBJECT}]).encode()]))


def test_object_just_within_the_limit_is_read() -> None:
    """And so is what follows."""
    large = {"a": "x" * (LARGEST_OBJECT - 100)}

    assert list(objects(by_size(json.dumps([large, {}, large]).encode(), 65536))) == [large, {}, large]


def test_error_of_the_source_goes_through() -> None:
    """A connection that breaks is not called bad JSON."""

    def breaks() -> Iterator[bytes]:
        yield b"[{}, {"
        raise ConnectionResetError("reset")

    found = objects(breaks())

    assert next(found) == {}
    with pytest.raises(ConnectionResetError):
        next(found)
