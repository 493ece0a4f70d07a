"""The fold alone: what it adds up, what it keeps apart, and that nothing is lost or made up on the way."""

from __future__ import annotations

import json
import random
from typing import Any, List, Optional, Sequence, Tuple

import pytest

from tests.buffer.helpers import make_event
from x402tools import _batch, _columns, _event
from x402tools._batch import Post
from x402tools._event import LARGEST_AMOUNT, Event
from x402tools._fold import Fold, one_by_one


def event(metadata: Any, amount: int = 1, envelope: str = "env_1", number: Any = 1) -> Event:
    return make_event(number, amount, _event.snapshot_metadata(metadata), envelope)


def fold(*batches: Sequence[Event], into: Optional[Fold] = None) -> List[Post]:
    """The POSTs of these batches, as they are written and read."""
    folded = into if into is not None else Fold(by=None, largest=LARGEST_AMOUNT)
    for number, events in enumerate(batches):
        folded.add(*_batch.recorded_rows(_batch.encode("rec", number, events, is_sealed=False).value))
    posts = folded.posts()
    assert len(posts) == folded.size
    assert len({post.key for post in posts}) == len(posts)
    return posts


def meaning(post: Post) -> Any:
    return json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata


def test_the_same_envelope_and_metadata_become_one_post() -> None:
    """Within a batch and over several: the sum, the number of events, and the time of the oldest."""
    first = [event({"a": 1}, 2), event({"a": 2}, 4), event({"a": 1}, 8)]
    second = [(9, "env_1", 16, {"a": 1}, 1_600_000_000.5), event({"a": 1}, 32, envelope="env_2")]

    posts = fold(first, second)

    assert [(post.envelope_id, post.amount, post.metadata, post.events) for post in posts] == [
        ("env_1", 26, {"a": 1}, 3),
        ("env_1", 4, {"a": 2}, 1),
        ("env_2", 32, {"a": 1}, 1),
    ]
    assert posts[0].recorded_at == 1_600_000_000.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (None, {}),
        ({"a": {"x": 1, "y": [2]}}, {"a": {"y": [2], "x": 1}}),
        ({"a": "ä"}, {"a": "\u00e4"}),
    ],
)
def test_what_says_the_same_is_one_group(one: Any, other: Any) -> None:
    """The order of keys does not count, at no depth; no metadata is like empty metadata."""
    assert [post.events for post in fold([event(one), event(other)])] == [2]


@pytest.mark.parametrize(
    "values",
    [
        (1, True, 1.0, "1"),
        (0, False, 0.0, "0", "", None),
        ([1, 2], [2, 1], [12], "[1,2]"),
        ({}, [], {"a": None}),
        ("a", "A", "a "),
    ],
)
def test_what_says_something_else_is_another_group(values: Tuple[Any, ...]) -> None:
    """Python takes 1, True and 1.0 for equal; on a bill they are not."""
    posts = fold([event({"value": value}) for value in values])

    assert [json.dumps(meaning(post)["value"]) for post in posts] == [json.dumps(value) for value in values]


def test_a_key_of_the_callers_own_stays_a_post_of_its_own() -> None:
    """Under that key, whatever else is recorded with the same metadata."""
    posts = fold([event({"a": 1}, 5, number="order-1"), event({"a": 1}, 7), event({"a": 1}, 9, number="order-2")])

    assert {(post.key, post.amount) for post in posts if post.key.startswith("order")} == {
        ("order-1", 5),
        ("order-2", 9),
    }
    assert [post.amount for post in posts if not post.key.startswith("order")] == [7]


def test_only_the_keys_named_make_a_group_and_go_into_the_post() -> None:
    """A key that is missing is missing from the group too."""
    into = Fold(by=("endpoint", "plan"), largest=LARGEST_AMOUNT)

    posts = fold(
        [event({"endpoint": "/a", "user": 1}), event({"endpoint": "/a", "user": 2}), event({"user": 3}), event(None)],
        into=into,
    )

    assert [(post.metadata, post.events) for post in posts] == [({"endpoint": "/a"}, 2), (None, 2)]


def test_no_post_exceeds_the_largest_amount() -> None:
    """What is more becomes several POSTs, with every unit in one of them."""
    amounts = [60, 30, 30, 100, 1, 99, 2]

    posts = fold([event({"a": 1}, amount) for amount in amounts], into=Fold(by=None, largest=100))

    assert all(post.amount <= 100 for post in posts)
    assert sum(post.amount for post in posts) == sum(amounts)
    assert sum(post.events for post in posts) == len(amounts)


def test_sums_are_exact_beyond_what_a_float_keeps() -> None:
    """Hundreds of the largest amounts there are."""
    posts = fold([event({"a": 1}, LARGEST_AMOUNT) for _ in range(300)] + [event({"a": 1}, 1)])

    assert sum(post.amount for post in posts) == 300 * LARGEST_AMOUNT + 1
    assert max(post.amount for post in posts) == LARGEST_AMOUNT


def test_one_by_one_every_event_is_a_post_under_its_own_id() -> None:
    """As it would have been without coalescing."""
    posts = fold([event({"a": 1}, 5, number=1), event({"a": 1}, 7, number=2)], into=one_by_one())

    assert [(post.key, post.amount) for post in posts] == [("rec-1", 5), ("rec-2", 7)]


def test_the_key_goes_into_the_metadata_on_request() -> None:
    """The key of the POST, not one of the events'."""
    posts = fold([event({"a": 1}), event(None)], into=Fold(by=None, largest=LARGEST_AMOUNT, key_field="x402_key"))

    assert [meaning(post)["x402_key"] for post in posts] == [post.key for post in posts]


@pytest.mark.parametrize("seed", range(20))
def test_events_and_units_are_conserved_for_each_envelope(seed: int) -> None:
    """Whatever is folded, with whatever settings."""
    rng = random.Random(seed)
    values = [None, 1, True, "1", 1.5, [1], {"x": 1}, "ü"]
    batches = [
        [
            event(
                rng.choice([None, {}, {"a": rng.choice(values), "b": rng.randint(0, 2)}]),
                rng.choice([0, 1, 50, 100]),
                rng.choice(["env_1", "env_2"]),
                rng.choice([number, number, f"own-{seed}-{batch}-{number}"]),
            )
            for number in range(rng.randint(1, 200))
        ]
        for batch in range(5)
    ]
    into = Fold(by=rng.choice([None, ("a",), ("b", "a"), ()]), largest=rng.choice([100, 1000, LARGEST_AMOUNT]))

    posts = fold(*batches, into=into)

    for envelope in ("env_1", "env_2"):
        events = [one for batch in batches for one in batch if one[1] == envelope]
        mine = [post for post in posts if post.envelope_id == envelope]
        assert sum(post.events for post in mine) == len(events)
        assert sum(post.amount for post in mine) == sum(one[2] for one in events)


@pytest.mark.parametrize("by", [None, ("a",), ("b", "missing")])
@pytest.mark.parametrize("largest", [LARGEST_AMOUNT, 50])
def test_columns_are_folded_as_rows_are(by: Optional[Sequence[str]], largest: int) -> None:
    """The same POSTs in the same order, whichever way a batch is written; also of one after the other."""
    values = [1, True, 0, False, None, "1", "True", 7]
    for seed in range(150):
        draw = random.Random(seed)
        kinds: List[Any] = [{"a": draw.choice(values), "b": draw.choice(values)} for _ in range(draw.randint(1, 8))]
        kinds += draw.sample([None, {"a": True}, {"b": 1, "a": 0}, '{"a":1.0}', '{"a":1,"b":2}'], draw.randint(0, 5))
        by_rows, by_columns, mixed = (Fold(by=by, largest=largest) for _ in range(3))
        for batch in range(3):
            events: List[Event] = [
                (number, draw.choice(["env_1", "env_2"]), draw.randrange(50), draw.choice(kinds), 1.7e9 + draw.random())
                for number in range(draw.randint(20, 300))
            ]
            if draw.random() < 0.2:
                events[0] = ("mine", *events[0][1:])
            rows, columns = _batch.rows_of("rec", events, None), _columns.of_events(events)
            assert columns is not None
            by_rows.add("rec", rows)
            by_columns.add("rec", columns)
            mixed.add("rec", columns if batch % 2 else rows)

        expected = [repr(post._replace(key="")) for post in by_rows.posts()]
        for one in (by_columns, mixed):
            assert one.events == by_rows.events
            assert [repr(post._replace(key="")) for post in one.posts()] == expected
