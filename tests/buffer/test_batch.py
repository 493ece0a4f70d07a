"""A batch comes back as it went in, or is refused: nothing in between, whatever happened to its bytes."""

from __future__ import annotations

import binascii
import json
import random
import struct
import zlib
from typing import Any, List, Sequence, Union

import pytest

from tests.buffer.helpers import make_event
from x402tools import _batch, _event, _json_writer
from x402tools._batch import CorruptBatchError, Post
from x402tools._event import LARGEST_AMOUNT, Event, Metadata, snapshot_metadata
from x402tools._settings import LONGEST_KEY_FIELD

METADATA: List[Any] = [
    None,
    {"endpoint": "/api/users", "status": 200, "cached": False, "user": None},
    {"nested": {"list": [1, 2.5, "x", None, True]}},
    {"text": 'Grüße, 世界 🚀 \u2028 " \\ \x00'},
    {"long": "x" * 1000},
    {"big": 2**70, "small": -(2**70)},
    {f"key{number}": number for number in range(100)},
]


def sealed(payload: object, *, form: int = 1, flag: int = 0) -> bytes:
    """A batch made by somebody who knows the format and its checksum."""
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return struct.pack(">BBI", form, flag, zlib.crc32(content, zlib.crc32(bytes((form, flag))))) + content


def events_by(form: int, count: int) -> List[Event]:
    """Events that are written in that format."""
    key = {_batch.COLUMNS: "k", _batch.ROWS: "k{}"}[form]
    return [make_event(number, number, {key.format(number): "v"}) for number in range(count)]


@pytest.mark.parametrize("metadata", METADATA)
def test_a_batch_comes_back_as_it_went_in(metadata: Any) -> None:
    """Key, envelope, amount, time to the millisecond, and the metadata in each of its forms."""
    snapshot = snapshot_metadata(metadata)

    batch = _batch.encode("rec", 7, [make_event(3, 12, snapshot), make_event("order-1", LARGEST_AMOUNT, snapshot)])
    posts = _batch.decode(batch.value)

    assert [post.key for post in posts] == ["rec-3", "order-1"]
    assert [post.amount for post in posts] == [12, LARGEST_AMOUNT]
    assert [post.envelope_id for post in posts] == ["env_1", "env_1"]
    assert [post.recorded_at for post in posts] == [1_700_000_000.25] * 2
    assert [json.loads(post.body()).get("metadata") for post in posts] == [metadata, metadata]


KINDS: List[Metadata] = [
    None,
    {"a": 1},
    {"a": True},
    {"a": 0},
    {"a": False},
    {"a": None},
    {"a": "1"},
    {"a": "True"},
    {"a": 7, "b": 1},
    {"b": 1, "a": 7},
    {"c": 7},
    {"d": 7},
    {"e": 7},
    {"f": 7},
    {"g": 7},
    {"a": ""},
    {"a": "one\nof two lines"},
    {"a": "\n"},
    {"a": "a carriage\rreturn, \x0b, \x1c and \x85"},  # what splitlines() would take for the end of a line
    {"a": "x", "b": 1},
    '{"a":1.0}',
    '{"a":"\u2028ü"}',
    '{"a":\n1}',
    "{'a': 1}",  # as Python would print the second
]


def drawn_events(draw: random.Random) -> List[Event]:
    """Such as many threads record: numbers and times in any order, some with a key of their own."""
    few = draw.sample(KINDS, draw.randint(1, len(KINDS)))
    names: List[Union[int, str]] = [draw.randrange(10**6), "order-7"]
    return [
        (
            draw.choice([number, *names]),
            draw.choice(["env_1", "env_2"]),
            draw.choice([1, 1, draw.randrange(LARGEST_AMOUNT)]),
            draw.choice(few),
            1_700_000_000 + draw.randrange(-5000, 5000) / 1000,
        )
        for number in range(draw.randint(1, 300))
    ]


def test_what_is_written_by_columns_comes_back_as_if_it_were_by_rows() -> None:
    """Whatever is recorded in whatever order; 1 and True stay what they are, and so does the order of the keys."""
    by_columns = 0
    for seed in range(300):
        events = drawn_events(random.Random(seed))
        expected = _batch.encode_rows("rec", 1, _batch.rows_of("rec", events, None), is_sealed=True)

        batch = _batch.encode("rec", 1, events)

        assert batch._replace(value=b"") == expected._replace(value=b"")
        assert list(map(repr, _batch.decode(batch.value))) == list(map(repr, _batch.decode(expected.value)))
        assert [repr(tuple(row)) for row in _batch.recorded_rows(batch.value)[1]] == [
            repr(tuple(row)) for row in _batch.recorded_rows(expected.value)[1]
        ]
        by_columns += batch.value[0] == _batch.COLUMNS
    assert by_columns > 200


@pytest.mark.parametrize(
    "kinds",
    [
        [{"a": 1, "b": 2}, {"b": 3, "a": 4}],
        [{"a": 1, "b": 2}, {"a": 3}, {"b": 4}, {"a": 5, "b": 6}],  # ab, again and again, but not in each
        [{"a": 1}, {"a": 2, "b": 3}],
        [{"a": "1"}, {"a": 1}],
        [{"a": 1}, None],
    ],
)
def test_metadata_that_nearly_has_one_shape_comes_back_as_it_was(kinds: List[Metadata]) -> None:
    """The same keys in another order, a key more or less, text and numbers."""
    events = [make_event(number, 1, metadata) for number, metadata in enumerate(kinds * 10)]

    posts = _batch.decode(_batch.encode("rec", 1, events).value)

    assert [repr(post.metadata) for post in posts] == [repr(metadata) for metadata in kinds * 10]


def test_posts_of_one_kind_share_nothing() -> None:
    """Who is handed the metadata of one may change it: the next attempt at another one sends what it sent before."""
    first, second = _batch.decode(_batch.encode("rec", 1, [make_event(at, 5, {"a": 2}) for at in (1, 2)] * 2).value)[:2]

    assert isinstance(first.metadata, dict)
    first.metadata["a"] = 3

    assert second.metadata == {"a": 2}


def test_events_whose_keys_differ_are_written_by_rows() -> None:
    """Columns would take longer, and as many bytes."""
    for form in _batch.FORMATS:
        assert _batch.encode("rec", 1, events_by(form, 500)).value[0] == form
    assert _batch.encode("rec", 1, [make_event()]).value[0] == _batch.ROWS  # nor do they serve an event alone


def test_a_batch_says_what_it_counts_for() -> None:
    """Its id is the recorder's and the batch's number; its events and units are sums."""
    events = [make_event(number, LARGEST_AMOUNT) for number in range(_batch.MOST_EVENTS)]

    batch = _batch.encode("rec", 7, events)

    assert (batch.id, batch.events, batch.units) == ("rec/7", 500, 500 * LARGEST_AMOUNT)
    assert batch.units < 2**63


def test_posts_that_are_sealed_again_keep_their_keys_and_counts() -> None:
    """A requeued POST is the one that died: same key, same body, same time, same number of events."""
    posts = [Post("key-1", "env", 5, {"a": 1}, 1_700_000_000.0, 3), Post("key-2", "env", 6, '{"b": [1]}', 1.5)]

    batch = _batch.encode_posts("again", posts)

    assert _batch.decode(batch.value) == posts
    assert (batch.id, batch.events, batch.units) == ("again", 4, 11)


@pytest.mark.parametrize("count", [2, 200])
@pytest.mark.parametrize("form", _batch.FORMATS)
def test_every_flipped_bit_is_noticed(count: int, form: int) -> None:
    """No bit of a stored batch can change, in the header or behind it, compressed or not, without an error."""
    value = _batch.encode("rec", 1, events_by(form, max(count, form))).value
    assert value[0] == form
    unnoticed = []

    for at in range(len(value)):
        for bit in range(8):
            damaged = value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :]
            try:
                _batch.decode(damaged)
            except CorruptBatchError:
                continue
            unnoticed.append((at, bit))

    assert unnoticed == []


@pytest.mark.parametrize("form", _batch.FORMATS)
def test_every_cut_is_noticed(form: int) -> None:
    """A batch that was cut short anywhere, or has something behind it, is refused."""
    value = _batch.encode("rec", 1, events_by(form, 200)).value

    for damaged in [*(value[:length] for length in range(len(value))), value + b"\0"]:
        with pytest.raises(CorruptBatchError):
            _batch.decode(damaged)


ROW = [1, "env", 5, None, 1000]
SHAPES = [[["a", "b"], [[1, 2], ["x", None]]], [None, [['{"a":[1]}']]], [None, None]]
COLUMNS = {
    "shapes": SHAPES,
    "which": [0, 1, 2, 0],
    "envelopes": ["env_1", "env_1", "env_2", "env_2"],
    "numbers": [4, 5, "mine", 3],
    "amounts": [5, 6, 7, 8],
    "first": 1000,
    "later": [0, 1, -1],
    "together": [1, 2, 1],
}


def columns(*below: str, **changed: Any) -> bytes:
    """With these lines below the first."""
    first = json.dumps(["rec", list({**COLUMNS, **changed}.values())])
    return sealed("\n".join([first, *below]).encode("utf-8", "surrogateescape"), form=2)


def shaped(*first: Any, below: Sequence[str] = ()) -> bytes:
    """With another first shape."""
    return columns(*below, shapes=[list(first), *SHAPES[1:]])


FOREIGN = {
    "a column too many": sealed(["rec", [*COLUMNS.values(), 1]], form=2),
    "rows that say they are columns": sealed(["rec", [ROW]], form=2),
    "columns that say they are rows": sealed(["rec", list(COLUMNS.values())]),
    "a shape that is not there": columns(which=[0, 1, 3, 0]),
    "a shape before the first": columns(which=[0, 1, -1, 0]),
    "a shape that is true": columns(which=[0, True, 2, 0]),
    "the shape of all as text": columns(which="0"),
    "shapes without end": columns(shapes=[*SHAPES, *[[None, None]] * 1_000_000]),
    "an event too many of a shape": columns(which=[0, 0, 2, 0]),
    "an envelope that is no text": columns(envelopes=["env_1", 7, "env_2", "env_2"]),
    "the envelope of all as a number": columns(envelopes=7),
    "an envelope too few": columns(envelopes=["env_1"] * 3),
    "a key that is no text": shaped(["a", 7], [[1, 2], ["x", None]]),
    "keys that are text": shaped("ab", [[1, 2], ["x", None]]),
    "a key too many": shaped(["a", "b", "c"], [[1, 2], ["x", None]]),
    "no keys": shaped([], []),
    "a key and no values": shaped(["a"], []),
    "keys without columns": shaped(["a"], None),
    "a value too few": shaped(["a", "b"], [[1, 2], ["x"]]),
    "a value that is a list": shaped(["a", "b"], [[1, [2]], ["x", None]]),
    "a value that is a fraction": shaped(["a", "b"], [[1, 2.5], ["x", None]]),
    "a column that is text": shaped(["a", "b"], ["12", ["x", None]]),
    "texts that are none": shaped(None, [["{}", None]]),
    "two texts an event": shaped(None, [["{}", "{}"], ["{}", "{}"]]),
    "a shape with something behind it": shaped(["a", "b"], [[1, 2], ["x", None]], 1),
    "a number that is a fraction": columns(numbers=[1, 2, 2.5, 3]),
    "a number missing": columns(numbers=[1, 2, 3]),
    "one amount that is text": columns(amounts=[5, 6, "7", 8]),
    "the amount of all as text": columns(amounts="5"),
    "the amount of all as a fraction": columns(amounts=5.5),
    "an amount too many": columns(amounts=[5, 6, 7, 8, 9]),
    "a first moment that is text": columns(first="1000"),
    "a moment that is text": columns(later=[0, 1, "2"]),
    "a moment missing": columns(later=[0, 1]),
    "moments that are text": columns(later="012"),
    "no moments": columns(later=[], together=[]),
    "an event too few together": columns(together=1),
    "no event together": columns(together=[2, 2, 0]),
    "fewer together than none": columns(together=[2, 3, -1]),
    "a true number together": columns(together=[1, 2, True]),
    "numbers together that are text": columns(together="121"),
    "events without end": columns(
        shapes=[[None, None]], which=0, envelopes="env", numbers=1, amounts=1, later=[0], together=20_000
    ),
    "a line too many": columns("env_1"),
    "an empty line too many": columns(""),
    "a line too few": shaped(["a", "b"], [[1, 2], None], below=["x"]),
    "a line too many of a shape": shaped(["a", "b"], [[1, 2], None], below=["x", "y", "z"]),
    "lines that are no text": shaped(["a", "b"], [[1, 2], None], below=["x", "\udcff"]),
    "no envelopes": columns(envelopes=None),
    "keys for more lines than there are": shaped(["a", "b", "c"], [None] * 2, below=["x"] * 4),
    "an unknown format": sealed(["rec", [ROW]], form=3),
    "an unknown flag": sealed(["rec", [ROW]], flag=2),
    "no JSON": sealed(b"\x80\x04."),
    "no list": sealed({"rec": [ROW]}),
    "too few columns": sealed(["rec", [ROW[:4]]]),
    "too many columns": sealed(["rec", [[*ROW, 1, 1]]]),
    "an amount that is text": sealed(["rec", [[1, "env", "5", None, 1000]]]),
    "an amount that is a fraction": sealed(["rec", [[1, "env", 5.5, None, 1000]]]),
    "an envelope that is a number": sealed(["rec", [[1, 7, 5, None, 1000]]]),
    "metadata that is a list": sealed(["rec", [[1, "env", 5, [1], 1000]]]),
    "a time that is text": sealed(["rec", [[1, "env", 5, None, "1000"]]]),
    "events that are text": sealed(["rec", [[*ROW, "2"]]]),
    "brackets without end": sealed(b"[" * 200_000),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_was_not_written_here_is_refused(name: str) -> None:
    """A checksum proves no author: a format, a flag or a type that is not ours is refused as damaged."""
    with pytest.raises(CorruptBatchError):
        _batch.decode(FOREIGN[name])


PIECES = [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"-1",
    b"0",
    b"1e9",
    b"1.5",
    b'""',
    b"\n",
    b"9" * 20,
    b",",
    b"[",
    b"]",
    b"\xff",
]


def made_up(draw: random.Random) -> bytes:
    """A batch as it is written, changed in a few places by somebody who knows the checksum."""
    value = _batch.encode("rec", 1, drawn_events(draw)[:12]).value
    content = bytearray(_batch._inflate(value[6:]) if value[1] else value[6:])
    for _ in range(draw.randint(1, 4)):
        start, end = sorted(draw.choices(range(len(content) + 1), k=2))
        if draw.random() < 0.3:
            content[start:start] = content[start:end]
        else:
            content[start : start + draw.randint(0, 6)] = draw.choice(PIECES)
    return sealed(bytes(content), form=value[0])


def test_what_was_made_up_is_refused_or_is_what_could_have_been_recorded() -> None:
    """No other error comes out of reading it: the thread that delivers would stop at this batch for ever."""
    refused = 0
    for seed in range(5000):
        try:
            posts = _batch.decode(made_up(random.Random(seed)))
        except CorruptBatchError:
            refused += 1
            continue
        assert {int} == set(map(type, (post.amount for post in posts))), seed
        assert {str} == set(map(type, (post.envelope_id for post in posts))), seed
        assert {type(None), dict, str}.issuperset(map(type, (post.metadata for post in posts))), seed
    assert 4000 < refused < 5000


def test_a_batch_can_be_read_by_anything_that_reads_zlib() -> None:
    """Whatever window it was written with: an earlier version, and whoever looks at the file with other tools."""
    value = _batch.encode("rec", 1, events_by(_batch.ROWS, 500)).value

    recorder, rows = json.loads(zlib.decompress(value[6:]))

    assert value[:2] == bytes((_batch.ROWS, 1))
    assert (recorder, len(rows)) == ("rec", 500)
    assert len(value) < 500 * 60  # bytes an event, as the benchmark of the disk asks


def test_a_batch_by_columns_that_somebody_else_made_is_read() -> None:
    """The one from which those that are refused differ in one place each."""
    assert [tuple(post) for post in _batch.decode(columns())] == [
        ("rec-4", "env_1", 5, {"a": 1, "b": "x"}, 1.0, 1),
        ("rec-5", "env_1", 6, '{"a":[1]}', 1.001, 1),
        ("mine", "env_2", 7, None, 1.001, 1),
        ("rec-3", "env_2", 8, {"a": 2, "b": None}, 0.999, 1),
    ]
    same = _batch.decode(columns(envelopes="env", numbers=7, amounts=2, later=[0, 1], together=2))
    assert [(post.key, post.envelope_id, post.amount, post.recorded_at) for post in same] == [
        (f"rec-{number}", "env", 2, 1 + (number > 8) / 1000) for number in range(7, 11)
    ]


def test_columns_of_text_are_lines_below_the_first() -> None:
    """First the envelopes, then shape by shape; what is empty is an empty line."""
    text = ["env_1", "env_1", "env_2", "env_ü", "", "y", "{}"]
    shapes = [[["a", "b"], [[1, 2], None]], [None, [None]], [None, None]]

    assert [tuple(post)[1:4] for post in _batch.decode(columns(*text, shapes=shapes, envelopes=None))] == [
        ("env_1", 5, {"a": 1, "b": ""}),
        ("env_1", 6, "{}"),
        ("env_2", 7, None),
        ("env_ü", 8, {"a": 2, "b": "y"}),
    ]


def test_a_character_takes_as_many_bytes_as_in_utf_8() -> None:
    """Without orjson too; and half a surrogate pair comes back, whoever recorded it."""
    assert _json_writer.with_json("üüü") == '"üüü"'.encode()
    assert json.loads(_json_writer.with_json("\ud800")) == "\ud800"
    events = [make_event(number, 1, {"a": "\ud800"}) for number in range(3)]
    assert [post.metadata for post in _batch.decode(_batch.encode("rec", 1, events).value)] == [{"a": "\ud800"}] * 3


@pytest.mark.parametrize("text", ["x", "ü", '"'])
def test_a_batch_of_the_largest_events_there_are_comes_back(text: str) -> None:
    """As many as there are in one, each with 64 KiB of metadata, whatever that is made of, and the longest ids."""
    size = len(json.dumps(text, ensure_ascii=False).encode("utf-8")) - 2
    metadata = snapshot_metadata({"a": text * ((_event.LARGEST_METADATA - 8) // size)})
    envelope_id, key = "🚀" * _event.LONGEST_ID, '"' * 255
    event = (key, envelope_id, LARGEST_AMOUNT, metadata, 1_700_000_000.0)
    events: List[Event] = [event] * _batch.MOST_EVENTS
    posts = _batch.decode(_batch.encode("rec", 1, events).value)

    assert len(posts) == len(events)
    assert set(posts) == {Post(key, envelope_id, LARGEST_AMOUNT, metadata, 1_700_000_000.0)}
    assert set(_batch.decode(_batch.encode_posts("again", posts).value)) == set(posts)
    with_keys = _batch.decode(_batch.encode("rec", 1, events, key_field='"' * LONGEST_KEY_FIELD).value)
    assert len(set(with_keys)) == 1


def test_a_bomb_is_refused() -> None:
    """A few kilobytes that would unpack to more than any batch can hold never fill the memory."""
    bomb = zlib.compress(b" " * (_batch._LARGEST_PAYLOAD + 1), 9)

    with pytest.raises(CorruptBatchError, match="larger"):
        _batch.decode(sealed(bomb, flag=1))


@pytest.mark.parametrize("metadata", [None, {"a": "ü", "b": [1]}, '{"a":"ü"}'])
def test_a_post_sends_the_same_bytes_each_time(metadata: Metadata) -> None:
    """Before and after storing, today and after a restart, the body under one key is the same, byte for byte."""
    event = make_event(1, 5, metadata)
    first = _batch.decode(_batch.encode("rec", 1, [event]).value)[0]
    assert _batch.decode(_batch.encode("rec", 1, [event, event]).value) == [first, first]

    again = _batch.decode(_batch.encode_posts("x", _batch.decode(_batch.encode_posts("y", [first]).value)).value)[0]

    assert first.body() == first.body() == again.body()
    assert again.key == first.key


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, {"envelopeId": "env_1", "amount": 5}),
        ({"a": 1}, {"envelopeId": "env_1", "amount": 5, "metadata": {"a": 1}}),
        ('{"a": [1]}', {"envelopeId": "env_1", "amount": 5, "metadata": {"a": [1]}}),
    ],
)
def test_a_body_has_exactly_the_fields_of_the_contract(metadata: Metadata, expected: Any) -> None:
    """envelopeId, amount, and metadata only where there is some."""
    post = _batch.decode(_batch.encode("rec", 1, [make_event(1, 5, metadata)]).value)[0]

    assert json.loads(post.body()) == expected


def test_an_event_takes_few_bytes() -> None:
    """A full batch of typical events takes well under 40 bytes for each."""
    draw = random.Random(402)
    events = [
        (
            number,
            f"env_{draw.randrange(20):04d}",
            draw.randrange(1, 50),
            {
                "endpoint": draw.choice(["/api/users", "/api/search", "/api/orders/{id}"]),
                "status": draw.choice([200, 201, 404]),
                "request": binascii.hexlify(struct.pack(">I", draw.getrandbits(32))).decode(),
            },
            1_700_000_000 + number * 0.0021,
        )
        for number in range(_batch.MOST_EVENTS)
    ]

    batch = _batch.encode("0123456789abcdef01234567", 1, events)

    per_event = len(batch.value) / batch.events
    bodies = sum(len(post.body()) for post in _batch.decode(batch.value)) / batch.events
    print(f"{per_event:.1f} bytes stored for an event whose body has {bodies:.1f}")
    assert per_event < 40
