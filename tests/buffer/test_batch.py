"""A batch comes back as it went in, or is refused: nothing in between, whatever happened to its bytes."""

from __future__ import annotations

import binascii
import json
import random
import struct
import zlib
from typing import Any, List

import pytest

from tests.buffer.helpers import make_event
from x402tools import _batch
from x402tools._batch import CorruptBatchError, Post
from x402tools._event import LARGEST_AMOUNT, Metadata, snapshot_metadata

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


@pytest.mark.parametrize("count", [1, 200])
def test_every_flipped_bit_is_noticed(count: int) -> None:
    """No bit of a stored batch can change, in the header or behind it, compressed or not, without an error."""
    value = _batch.encode("rec", 1, [make_event(number, number) for number in range(count)]).value
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


def test_every_cut_is_noticed() -> None:
    """A batch that was cut short anywhere, or has something behind it, is refused."""
    value = _batch.encode("rec", 1, [make_event(number) for number in range(200)]).value

    for damaged in [*(value[:length] for length in range(len(value))), value + b"\0"]:
        with pytest.raises(CorruptBatchError):
            _batch.decode(damaged)


ROW = [1, "env", 5, None, 1000]
FOREIGN = {
    "an unknown format": sealed(["rec", [ROW]], form=2),
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


def test_a_batch_can_be_read_by_anything_that_reads_zlib() -> None:
    """Whatever window it was written with: an earlier version, and whoever looks at the file with other tools."""
    value = _batch.encode("rec", 1, [make_event(number, 5, {"endpoint": "/a"}) for number in range(500)]).value

    recorder, rows = json.loads(zlib.decompress(value[6:]))

    assert value[1] == 1
    assert (recorder, len(rows)) == ("rec", 500)
    assert len(value) < 500 * 60  # bytes an event, as the benchmark of the disk asks


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
