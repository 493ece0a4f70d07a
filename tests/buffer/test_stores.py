"""What every store promises, on each there is: the spool, the reserve before it, a server, the fake of the tests.

A store is added with one more factory in `STORES`.
"""

from __future__ import annotations

import os
import pathlib
import time
import zlib
from typing import Any, Callable, Dict, Iterator, List, Sequence

import pytest

from tests.buffer.helpers import FakeStore, Program, Shelf, assert_adds_up, make_batch, wait_until
from tests.stores import servers
from tests.stores.servers import Server
from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._event import LARGEST_AMOUNT
from x402tools._reserve import Reserve
from x402tools._spool import Spool
from x402tools._store import Acknowledgement, Burial, ChangedError, Holding, Place, RecordedBatch, Store, Tally
from x402tools.errors import SpoolError
from x402tools.redis_store import RedisStore

OpenStore = Callable[[], Store]

# What a store raises for a move that is impossible; all of them are mistakes of the caller.
IMPOSSIBLE = (AssertionError, KeyError, SpoolError, ValueError)


def spools(folder: pathlib.Path) -> Callable[[], Spool]:
    return lambda: Spool(str(folder / "usage.db"), sync="FULL", max_bytes=2**40)


def reserves(folder: pathlib.Path) -> OpenStore:
    spool = spools(folder)
    return lambda: Reserve(spool())


def fakes(folder: pathlib.Path) -> OpenStore:
    shelf = Shelf()
    return lambda: FakeStore(shelf)


STORES: Dict[str, Callable[[pathlib.Path], OpenStore]] = {"spool": spools, "reserve": reserves, "fake": fakes}


_OWN_NUMBERS = "numbers of batches are the reader's own, and the server's are others"
_LEASES = "several processes deliver from a server at once: what another has settled is passed over"
_NOT_HELD = "nothing is held on a server"

# What is not promised by a store that is shared, and why.
NOT_SHARED: Dict[str, str] = {
    "test_an_impossible_move_raises_and_changes_nothing": _LEASES,
    "test_what_the_next_holder_settled_cannot_be_settled_again": _LEASES,
    "test_one_object_holds_the_claim": _LEASES,
    "test_releasing_what_one_does_not_hold_is_harmless": _LEASES,
    "test_oldest_sealed_pages": _OWN_NUMBERS,
    "test_what_is_recorded_is_pending_and_not_sent": _OWN_NUMBERS,
    "test_many_letters_are_requeued_at_once": "letters come back one to a batch, more than are read at once",
    "test_what_is_held_is_pending_and_not_handed_out": _NOT_HELD,
    "test_what_is_held_pages": _NOT_HELD,
    "test_what_is_held_survives_its_process": _NOT_HELD,
    "test_resolving_settles_the_ones_and_seals_the_others": _NOT_HELD,
    "test_two_that_resolve_at_once_move_nothing_twice": _NOT_HELD,
    "test_what_was_resent_may_be_held_again": _NOT_HELD,
    "test_many_are_resolved_at_once": _NOT_HELD,
    "test_who_takes_over_knows_what_may_have_been_sent": _NOT_HELD,
    "test_the_first_note_about_a_post_stays": _NOT_HELD,
}


# What is not promised by one that has several partitions, and why.
_IN_TURN = "each partition has an order of its own, and each has its turn"
NOT_IN_ORDER: Dict[str, str] = {
    "test_what_is_appended_comes_out_oldest_first": _IN_TURN,
    "test_sequence_numbers_say_what_is_older": _IN_TURN,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis of the tests' own; without one its tests are skipped."""
    servers.require(servers.REDIS)
    with Server(tmp_path_factory.mktemp("server")) as started:
        yield started


def on_the_server(server: Server) -> OpenStore:
    """A namespace of its own for the test."""
    from x402tools._redis_store import Engine

    store = RedisStore(server.url, namespace=os.urandom(6).hex())
    return lambda: Engine(store, max_bytes=2**40)


def in_partitions(server: Server) -> OpenStore:
    """The same in four partitions. Sealed batches are spread over all of them; of what is recorded, which is folded
    partition by partition, all is in one."""
    from x402tools._redis_partitions import Partitions
    from x402tools._spool import Deposit

    class Spread(Partitions):
        def deposit(self, deposit: Deposit) -> None:
            spread = [batch._replace(partition=spread_over(batch)) for batch in deposit.batches]
            super().deposit(deposit._replace(batches=spread))

        def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
            return self.parts()[1].recorded(after, limit)

        def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
            self.parts()[1].seal(up_to, batches)

    store = RedisStore(server.url, namespace=os.urandom(6).hex(), partitions=4)
    return lambda: Spread(store, max_bytes=2**40)


def spread_over(batch: EncodedBatch) -> int:
    return zlib.crc32(batch.id.encode()) if batch.is_sealed else 1


ON_A_SERVER = {"server": on_the_server, "partitions": in_partitions}


@pytest.fixture(params=[*STORES, *ON_A_SERVER])
def open_store(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[OpenStore]:
    """Opens the one store of this test: called twice, it gives two objects, as two processes have them."""
    if request.param not in ON_A_SERVER:
        factory = STORES[request.param](tmp_path)
    elif request.node.originalname in NOT_SHARED:
        pytest.skip(reason=NOT_SHARED[request.node.originalname])
    elif request.param == "partitions" and request.node.originalname in NOT_IN_ORDER:
        pytest.skip(reason=NOT_IN_ORDER[request.node.originalname])
    else:
        factory = ON_A_SERVER[request.param](request.getfixturevalue("server"))
    opened: List[Store] = []

    def open_one() -> Store:
        opened.append(factory())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """A store that holds the claim."""
    opened = open_store()
    assert opened.claim()
    return opened


def handed_out(store: Store) -> List[Acknowledgement]:
    """Every POST that is not settled, with its place."""
    batches = store.oldest_sealed(0, 1000)
    return [Acknowledgement(place, post) for batch in batches for place, post in batch.posts]


def burial(one: Acknowledgement, reason: str = "unknown envelope") -> Burial:
    return Burial(one.place, one.post, reason, 404, 3)


def holding(one: Acknowledgement) -> Holding:
    return Holding(one.place, one.post, "no answer in time")


def noted(store: Store) -> Dict[str, float]:
    """The keys of what was noted as being sent and is not settled, and since when."""
    batches = store.oldest_sealed(0, 1000)
    return {
        post.key: batch.sent[place.position]
        for batch in batches
        for place, post in batch.posts
        if place.position in batch.sent
    }


def keys(posts: List[Acknowledgement]) -> List[str]:
    return [one.post.key for one in posts]


def test_a_new_store_is_empty(store: Store) -> None:
    """Nothing recorded, nothing pending, nothing dead, no sequence numbers."""
    counts = store.counts()

    assert counts.recorded == counts.delivered == counts.pending == counts.dead == counts.dropped == Tally()
    assert counts.oldest_pending_at is None
    assert (store.first_sequence(), store.last_sequence()) == (None, 0)
    assert store.oldest_sealed(0, 10) == []
    assert store.dead_letters(0, 10) == []


def test_what_is_appended_comes_out_oldest_first(store: Store) -> None:
    """Batches keep their order, POSTs their order in a batch, and nothing of them changes."""
    batches = [make_batch(number, (number, 10 * number)) for number in (1, 2, 3)]

    store.append(batches[:2], Tally())
    store.append(batches[2:], Tally())

    posts = handed_out(store)
    assert keys(posts) == ["rec-1-0", "rec-1-1", "rec-2-0", "rec-2-1", "rec-3-0", "rec-3-1"]
    assert [one.post for one in posts] == [post for batch in batches for post in _batch.decode(batch.value)]
    assert store.counts().pending == store.counts().recorded == Tally(6, 66)


def test_a_batch_is_stored_once(store: Store) -> None:
    """Repeating an append whose outcome was unknown adds nothing, neither rows nor counts; what is new is added."""
    first, second = make_batch(1, (5, 6)), make_batch(2, (7,))
    store.append([first], Tally())

    store.append([first], Tally())
    store.append([first, second, first], Tally())

    assert keys(handed_out(store)) == ["rec-1-0", "rec-1-1", "rec-2-0"]
    assert store.counts().recorded == store.counts().pending == Tally(3, 18)


def test_a_batch_is_stored_once_even_after_it_was_delivered(store: Store) -> None:
    """The repeat may come late: after the first append had succeeded unseen and everything was delivered."""
    batch = make_batch(1, (5, 6))
    store.append([batch], Tally())
    store.settle(handed_out(store), [])

    store.append([batch], Tally())

    assert handed_out(store) == []
    counts = store.counts()
    assert (counts.recorded, counts.delivered, counts.pending) == (Tally(2, 11), Tally(2, 11), Tally())


def test_drops_are_counted(store: Store) -> None:
    """What was dropped counts as recorded and as dropped, with or without batches beside it."""
    store.append([], Tally(2, 20))
    store.append([make_batch(1)], Tally(1, LARGEST_AMOUNT))

    counts = store.counts()
    assert (counts.recorded, counts.dropped) == (Tally(4, 21 + LARGEST_AMOUNT), Tally(3, 20 + LARGEST_AMOUNT))
    assert_adds_up(counts)


def test_oldest_sealed_pages(store: Store) -> None:
    """`after` and `limit` walk through everything once, in order, whatever was settled in between."""
    store.append([make_batch(number, (1, 1)) for number in range(1, 11)], Tally())
    pages = []
    after = 0

    while True:
        page = store.oldest_sealed(after, 3)
        if not page:
            break
        pages.append(len(page))
        after = page[-1].sequence
        store.settle([Acknowledgement(place, post) for batch in page for place, post in batch.posts][1:], [])

    assert pages == [3, 3, 3, 1]
    assert keys(handed_out(store)) == ["rec-1-0", "rec-4-0", "rec-7-0", "rec-10-0"]
    assert after == store.last_sequence()


def test_a_batch_can_be_settled_in_parts(store: Store) -> None:
    """What is settled never comes out again, what is left does; the last part removes the batch."""
    store.append([make_batch(1, (1, 2, 4, 8))], Tally())
    posts = handed_out(store)

    store.settle([posts[2]], [])
    after_one = keys(handed_out(store)), store.counts().pending
    store.settle([posts[0], posts[3]], [])
    after_three = keys(handed_out(store)), store.counts().pending
    store.settle([posts[1]], [])

    assert after_one == (["rec-1-0", "rec-1-1", "rec-1-3"], Tally(3, 11))
    assert after_three == (["rec-1-1"], Tally(1, 2))
    assert (handed_out(store), store.first_sequence()) == ([], None)
    assert store.counts().delivered == Tally(4, 15)


def test_parts_survive_a_change_of_hands(open_store: OpenStore) -> None:
    """Whoever takes over knows what was settled, and goes on from there."""
    first, second = open_store(), open_store()
    assert first.claim()
    first.append([make_batch(1, (1, 2, 4))], Tally())
    first.settle([handed_out(first)[1]], [])

    first.release()
    assert second.claim()
    left = handed_out(second)
    second.settle([left[0]], [burial(left[1])])

    assert keys(left) == ["rec-1-0", "rec-1-2"]
    counts = second.counts()
    assert (counts.delivered, counts.dead, counts.pending) == (Tally(2, 3), Tally(1, 4), Tally())


def test_sequence_numbers_say_what_is_older(store: Store) -> None:
    """The last one never goes back, not even when the store is empty; the first is the oldest unsettled."""
    store.append([make_batch(1), make_batch(2)], Tally())
    first, newest = store.first_sequence(), store.last_sequence()
    store.settle(handed_out(store)[:1], [])

    later = store.first_sequence()
    store.settle(handed_out(store), [])
    at_the_end = store.first_sequence(), store.last_sequence()
    store.append([make_batch(3)], Tally())

    assert first is not None
    assert later is not None
    assert first < later == newest
    assert at_the_end == (None, newest)
    assert store.last_sequence() > newest


def test_what_is_buried_is_a_dead_letter(store: Store) -> None:
    """It keeps what was recorded, says why, and is not sent any more."""
    store.append([make_batch(1, (5, 6))], Tally())
    posts = handed_out(store)

    store.settle([posts[0]], [burial(posts[1])])

    (letter,) = store.dead_letters(0, 10)
    assert (letter.key, letter.envelope_id, letter.amount, letter.metadata) == ("rec-1-1", "env_1", 6, None)
    assert (letter.reason, letter.status_code, letter.attempts) == ("unknown envelope", 404, 3)
    assert (letter.events, letter.readable, letter.recorded_at) == (1, True, 1_700_000_000.25)
    assert handed_out(store) == []
    assert (store.counts().dead, store.counts().delivered) == (Tally(1, 6), Tally(1, 5))


def test_dead_letters_page(store: Store) -> None:
    """`after` and `limit` walk through them, oldest first."""
    store.append([make_batch(1, [1] * 25)], Tally())
    store.settle([], [burial(one) for one in handed_out(store)])

    found = store.dead_letters(0, 10)
    found += store.dead_letters(found[-1].id, 10)
    found += store.dead_letters(found[-1].id, 10)

    assert [letter.key for letter in found] == [f"rec-1-{at}" for at in range(25)]
    assert store.dead_letters(found[-1].id, 10) == []


def test_requeued_letters_are_sealed_again_as_they_were(store: Store) -> None:
    """Under their old keys, with their old bodies, and once, however often they are named."""
    store.append([make_batch(1, (1, 2, 4))], Tally())
    before = handed_out(store)
    store.settle([], [burial(one) for one in before])
    letters = store.dead_letters(0, 10)

    count = store.requeue([letters[2].id, letters[0].id, letters[0].id, 10**6])

    again = handed_out(store)
    assert count == 2
    assert sorted(one.post for one in again) == sorted([before[0].post, before[2].post])
    assert [letter.key for letter in store.dead_letters(0, 10)] == ["rec-1-1"]
    assert store.requeue([letters[0].id]) == 0
    assert (store.counts().pending, store.counts().dead) == (Tally(2, 5), Tally(1, 2))


def test_a_requeued_letter_may_die_again(store: Store) -> None:
    """Nothing but the reason of its new death is added."""
    store.append([make_batch(1, (5,))], Tally())
    store.settle([], [burial(handed_out(store)[0], "first")])

    store.requeue([store.dead_letters(0, 1)[0].id])
    store.settle([], [burial(handed_out(store)[0], "second")])

    assert [(letter.key, letter.reason) for letter in store.dead_letters(0, 10)] == [("rec-1-0", "second")]
    assert store.counts().dead == Tally(1, 5)


def test_many_letters_are_requeued_at_once(store: Store) -> None:
    """More than fit into one batch."""
    store.append([make_batch(number, [1] * 400) for number in (1, 2, 3)], Tally())
    store.settle([], [burial(one) for one in handed_out(store)])

    count = store.requeue([letter.id for letter in store.dead_letters(0, 2000)])

    assert count == len(handed_out(store)) == store.counts().pending.events == 1200
    assert store.counts().dead == Tally()


def test_the_ledger_adds_up_after_each_move(store: Store) -> None:
    """recorded = delivered + pending + dead + dropped, in events and in units, whatever is done."""
    moves: List[Callable[[], Any]] = [
        lambda: store.append([make_batch(1, (1, 2, 4, 8)), make_batch(2, (16, 32))], Tally(1, 64)),
        lambda: store.append([make_batch(1, (1, 2, 4, 8))], Tally()),
        lambda: store.settle(handed_out(store)[1:2], []),
        lambda: store.settle([], [burial(handed_out(store)[0])]),
        lambda: store.settle(handed_out(store)[1:2], [burial(handed_out(store)[0])]),
        lambda: store.requeue([store.dead_letters(0, 1)[0].id]),
        lambda: store.append([make_batch(3, (128,))], Tally()),
        lambda: store.settle(handed_out(store)[:2], []),
        lambda: store.requeue([letter.id for letter in store.dead_letters(0, 10)]),
        lambda: store.settle(handed_out(store), []),
    ]

    for move in moves:
        move()
        assert_adds_up(store.counts())

    assert store.counts().delivered == Tally(7, 191)


def test_huge_amounts_are_counted_exactly(store: Store) -> None:
    """Thousands of the largest amounts: sums far beyond 64 bits, to the last unit, through every move."""
    batches = [make_batch(number, [LARGEST_AMOUNT] * 500) for number in range(1, 9)]
    store.append(batches, Tally(3000, 3000 * LARGEST_AMOUNT))
    posts = handed_out(store)

    store.settle(posts[:1234], [burial(one) for one in posts[1234:2345]])
    counts = store.counts()

    assert counts.recorded == Tally(7000, 7000 * LARGEST_AMOUNT)
    assert counts.delivered == Tally(1234, 1234 * LARGEST_AMOUNT)
    assert counts.dead == Tally(1111, 1111 * LARGEST_AMOUNT)
    assert counts.pending == Tally(1655, 1655 * LARGEST_AMOUNT)
    assert counts.dropped == Tally(3000, 3000 * LARGEST_AMOUNT)


def test_one_post_may_stand_for_many_events(store: Store) -> None:
    """The ledger counts events, not POSTs."""
    posts = [_batch.Post("folded", "env_1", 70, None, 1.5, 7), _batch.Post("single", "env_1", 1, None, 1.5)]
    store.append([_batch.encode_posts("fold/1", posts)], Tally())
    out = handed_out(store)

    store.settle([out[1]], [burial(out[0])])
    dead = store.counts().dead
    store.requeue([store.dead_letters(0, 1)[0].id])
    store.settle(handed_out(store), [])

    assert dead == Tally(7, 70)
    assert store.counts().delivered == store.counts().recorded == Tally(8, 71)


def test_what_is_held_is_pending_and_not_handed_out(store: Store) -> None:
    """It keeps what was recorded, counts apart too, and only the others are sent."""
    store.append([make_batch(1, (5, 6, 7))], Tally())
    posts = handed_out(store)
    began = time.time()

    store.settle([posts[0]], [], [holding(posts[1])])

    (held,) = store.held(0, 10)
    counts = store.counts()
    assert held.post == posts[1].post
    assert began - 1 < held.held_at <= time.time()
    assert keys(handed_out(store)) == ["rec-1-2"]
    assert (counts.delivered, counts.pending, counts.held) == (Tally(1, 5), Tally(2, 13), Tally(1, 6))
    assert_adds_up(counts)


def test_what_is_held_pages(store: Store) -> None:
    """`after` and `limit` walk through it, oldest first."""
    store.append([make_batch(1, [1] * 25)], Tally())
    store.settle([], [], [holding(one) for one in handed_out(store)])

    found = store.held(0, 10)
    found += store.held(found[-1].id, 10)
    found += store.held(found[-1].id, 10)

    assert [one.post.key for one in found] == [f"rec-1-{at}" for at in range(25)]
    assert store.held(found[-1].id, 10) == []


def test_what_is_held_survives_its_process(open_store: OpenStore) -> None:
    """The next one finds it held, and sends none of it."""
    first = open_store()
    assert first.claim()
    first.append([make_batch(1, (5, 6))], Tally())
    first.settle([], [], [holding(one) for one in handed_out(first)])
    first.close()

    second = open_store()
    assert second.claim()

    assert handed_out(second) == []
    assert [one.post.key for one in second.held(0, 10)] == ["rec-1-0", "rec-1-1"]
    assert second.counts().held == second.counts().pending == Tally(2, 11)


def test_resolving_settles_the_ones_and_seals_the_others(store: Store) -> None:
    """Those that the service has are delivered; the others are sealed as they were, under their old keys."""
    store.append([make_batch(1, (1, 2, 4))], Tally())
    posts = handed_out(store)
    store.settle([], [], [holding(one) for one in posts])
    ids = [one.id for one in store.held(0, 10)]

    moved = store.resolve([ids[0]], [ids[2], 10**6])

    counts = store.counts()
    assert moved == ([posts[0].post], [posts[2].post])
    assert [one.post for one in handed_out(store)] == [posts[2].post]
    assert (counts.delivered, counts.pending, counts.held) == (Tally(1, 1), Tally(2, 6), Tally(1, 2))
    assert_adds_up(counts)


def test_two_that_resolve_at_once_move_nothing_twice(open_store: OpenStore) -> None:
    """Who comes second, from another process and without the claim, finds nothing left to move."""
    first, second = open_store(), open_store()
    assert first.claim()
    first.append([make_batch(1, (1, 2))], Tally())
    first.settle([], [], [holding(one) for one in handed_out(first)])
    one, other = (held.id for held in second.held(0, 10))

    second.resolve([one], [other])
    late = first.resolve([other], [one])

    assert late == ([], [])
    assert keys(handed_out(first)) == ["rec-1-1"]
    assert_adds_up(first.counts())
    assert first.counts().delivered == Tally(1, 1)


def test_what_was_resent_may_be_held_again(store: Store) -> None:
    """And is another one then: who still means the first one moves nothing."""
    store.append([make_batch(1, (5,))], Tally())
    store.settle([], [], [holding(handed_out(store)[0])])
    first = store.held(0, 1)[0].id

    store.resolve([], [first])
    store.settle([], [], [holding(handed_out(store)[0])])

    assert store.resolve([first], []) == ([], [])
    assert store.counts().held == store.counts().pending == Tally(1, 5)


def test_many_are_resolved_at_once(store: Store) -> None:
    """More than fit into one batch."""
    store.append([make_batch(number, [1] * 400) for number in (1, 2, 3)], Tally())
    store.settle([], [], [holding(one) for one in handed_out(store)])
    ids = [one.id for one in store.held(0, 2000)]

    store.resolve(ids[:100], ids[100:])

    assert len(handed_out(store)) == 1100
    assert store.counts().delivered == Tally(100, 100)
    assert_adds_up(store.counts())


def test_who_takes_over_knows_what_may_have_been_sent(open_store: OpenStore) -> None:
    """A note outlives its process, until the POST is settled or the note is taken back."""
    first, second = open_store(), open_store()
    assert first.claim()
    first.append([make_batch(1, (1, 2, 4, 8, 16))], Tally())
    posts = handed_out(first)
    assert noted(first) == {}

    places = [one.place for one in posts]
    answer = first.note_sending(places[:4])
    first.note_sending([], [places[1]])
    first.settle([posts[0]], [])
    first.release()
    assert second.claim()

    assert answer == places[:4]
    assert sorted(noted(second)) == ["rec-1-2", "rec-1-3"]
    assert all(abs(since - time.time()) < 60 for since in noted(second).values())


def test_the_first_note_about_a_post_stays(store: Store) -> None:
    """It says since when the outcome may be unknown."""
    store.append([make_batch(1, (1,))], Tally())
    (one,) = handed_out(store)
    store.note_sending([one.place])
    before = noted(store)

    assert store.note_sending([one.place]) == [one.place]

    assert noted(store) == before


def settle_twice(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([one], [])
    store.settle([one], [])


def settle_twice_at_once(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([one, one], [])


def acknowledge_and_bury(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([one], [burial(one)])


def hold_and_acknowledge(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([one], [], [holding(one)])


def hold_twice(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([], [], [holding(one), holding(one)])


def bury_what_is_gone(store: Store) -> None:
    posts = handed_out(store)
    store.settle(posts[:2], [])
    store.settle([], [burial(posts[1])])


def settle_what_was_never_there(store: Store) -> None:
    one = handed_out(store)[0]
    store.settle([Acknowledgement(Place(10**6, 0), one.post)], [])


def settle_a_good_and_an_impossible_one(store: Store) -> None:
    posts = handed_out(store)
    store.settle(posts[1:2], [])
    store.settle(posts[:2], [])


def settle_without_the_claim(store: Store) -> None:
    posts = handed_out(store)
    store.release()
    store.settle(posts[:1], [])


@pytest.mark.parametrize(
    ("move", "delivered"),
    [
        (settle_twice, Tally(1, 1)),
        (settle_twice_at_once, Tally()),
        (acknowledge_and_bury, Tally()),
        (hold_and_acknowledge, Tally()),
        (hold_twice, Tally()),
        (bury_what_is_gone, Tally(2, 3)),
        (settle_what_was_never_there, Tally()),
        (settle_a_good_and_an_impossible_one, Tally(1, 2)),
        (settle_without_the_claim, Tally()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_impossible_move_raises_and_changes_nothing(
    store: Store, move: Callable[[Store], None], delivered: Tally
) -> None:
    """A POST is settled once, by the holder of the claim, after it was handed out."""
    store.append([make_batch(1, (1, 2, 4)), make_batch(2, (8,))], Tally())

    with pytest.raises(IMPOSSIBLE):
        move(store)

    counts = store.counts()
    assert (counts.delivered, counts.dead, counts.held) == (delivered, Tally(), Tally())
    assert_adds_up(counts)


def test_what_the_next_holder_settled_cannot_be_settled_again(open_store: OpenStore) -> None:
    """A holder that lost the claim and wakes up late changes nothing."""
    late, next_one = open_store(), open_store()
    assert late.claim()
    late.append([make_batch(1, (1, 2))], Tally())
    held = handed_out(late)
    late.release()
    assert next_one.claim()
    next_one.settle(handed_out(next_one)[:1], [])

    with pytest.raises(IMPOSSIBLE):
        late.settle(held, [])

    counts = next_one.counts()
    assert (counts.delivered, counts.pending) == (Tally(1, 1), Tally(1, 2))


def test_one_object_holds_the_claim(open_store: OpenStore) -> None:
    """Asking again is harmless; another gets it when it is released, or when its holder is closed."""
    first, second, third = open_store(), open_store(), open_store()

    at_first = first.claim(), first.claim(), second.claim()
    first.release()
    after_release = second.claim(), first.claim()
    second.close()
    after_close = third.claim(), first.claim()

    assert at_first == (True, True, False)
    assert after_release == (True, False)
    assert after_close == (True, False)


def test_releasing_what_one_does_not_hold_is_harmless(open_store: OpenStore) -> None:
    """It takes nothing from the holder."""
    holder, other = open_store(), open_store()
    assert holder.claim()

    other.release()

    assert not other.claim()
    assert holder.claim()


def test_a_store_that_is_closed_has_lost_nothing(open_store: OpenStore) -> None:
    """Whoever opens it next finds everything as it was."""
    first = open_store()
    first.claim()
    first.append([make_batch(1, (1, 2)), make_batch(2, (4,))], Tally(1, 8))
    posts = handed_out(first)
    first.settle(posts[:1], [burial(posts[1])])
    before = first.counts()
    first.close()

    second = open_store()
    second.claim()

    after = second.counts()
    assert (after.recorded, after.delivered, after.pending, after.dead, after.dropped) == (
        before.recorded,
        before.delivered,
        before.pending,
        before.dead,
        before.dropped,
    )
    assert keys(handed_out(second)) == ["rec-2-0"]


def test_tidying_keeps_the_ledger_and_dead_letters(store: Store) -> None:
    """Only room is given back."""
    store.append([make_batch(1, (1, 2))], Tally(1, 4))
    posts = handed_out(store)
    store.settle(posts[:1], [burial(posts[1])])

    store.sync()
    store.tidy()

    assert store.counts().recorded == Tally(3, 7)
    assert [letter.key for letter in store.dead_letters(0, 10)] == ["rec-1-1"]


# -- what only a store on a disk can promise ---------------------------------------------------------------------

CLAIMING = """
import sys
from x402tools._spool import Spool
store = Spool(sys.argv[1], sync="FULL", max_bytes=2**40)
print(store.claim(), flush=True)
sys.stdin.read()
"""


def test_one_process_holds_the_claim_until_it_is_killed(tmp_path: pathlib.Path) -> None:
    """The kernel gives the claim back, however its holder dies."""
    here = spools(tmp_path)()
    with Program(CLAIMING, tmp_path / "usage.db") as holder:
        assert holder.line() == "True"
        while_it_lives = here.claim()

        holder.kill()

    assert not while_it_lives
    wait_until(here.claim, "the claim of a killed process is free", seconds=1)
    here.close()


def test_a_process_is_refused_what_another_holds(tmp_path: pathlib.Path) -> None:
    """The other way round: the one that comes second is told so at once."""
    here = spools(tmp_path)()
    assert here.claim()

    with Program(CLAIMING, tmp_path / "usage.db") as other:
        answer = other.line()

    assert answer == "False"
    assert here.claim()
    here.close()


def test_tidying_shrinks_the_file(tmp_path: pathlib.Path) -> None:
    """A backlog that was delivered leaves a small file and a small log behind."""
    store = spools(tmp_path)()
    assert store.claim()
    for number in range(1, 9):
        events = [(at, "env", 1, {"noise": os.urandom(400).hex()}, 1.0) for at in range(500)]
        store.append([_batch.encode(f"r{number}", number, events)], Tally())
    largest = os.path.getsize(tmp_path / "usage.db") + os.path.getsize(tmp_path / "usage.db-wal")
    store.settle(handed_out(store), [])

    store.tidy()

    assert largest > 2**20
    assert os.path.getsize(tmp_path / "usage.db") < 2**18
    assert os.path.getsize(tmp_path / "usage.db-wal") == 0
    store.close()


# -- what is recorded and not sealed -------------------------------------------------------------------------------


def unsealed(number: int, amounts: Sequence[int]) -> EncodedBatch:
    return make_batch(number, amounts)._replace(is_sealed=False)


def folded(amount: int, events: int) -> EncodedBatch:
    return _batch.encode_posts("fold-1/0", [Post("fold-1-1", "env_1", amount, None, 1.0, events)])


def test_what_is_recorded_is_pending_and_not_sent(store: Store) -> None:
    """It comes out in the order in which it went in, some at a time, and is no POST yet."""
    store.append([unsealed(1, [1, 2]), unsealed(2, [3])], Tally())

    first = store.recorded(0, 1)
    rest = store.recorded(first[0].sequence, 10)

    assert [[row[2] for row in batch.rows] for batch in (*first, *rest)] == [[1, 2], [3]]
    assert handed_out(store) == []
    assert store.counts().pending == Tally(3, 6)
    assert (store.first_recorded(), store.last_recorded()) == (first[0].sequence, rest[0].sequence)
    assert_adds_up(store.counts())


def test_sealing_makes_recorded_batches_gone_and_posts_of_them(store: Store) -> None:
    """What came later stays recorded, and the ledger does not change."""
    store.append([unsealed(1, [1, 2]), unsealed(2, [3])], Tally())
    read = store.recorded(0, 10)
    store.append([unsealed(3, [50])], Tally())

    store.seal(read[-1].sequence, [folded(6, 3)])

    assert [(one.post.amount, one.post.events) for one in handed_out(store)] == [(6, 3)]
    assert [[row[2] for row in batch.rows] for batch in store.recorded(0, 10)] == [[50]]
    assert store.counts().recorded == Tally(4, 56)
    assert store.counts().pending == Tally(4, 56)
    assert store.first_recorded() == store.last_recorded()


def test_sealing_twice_is_sealing_once(store: Store) -> None:
    """For one who could not know whether it was stored."""
    store.append([unsealed(1, [1, 2])], Tally())
    (read,) = store.recorded(0, 10)

    store.seal(read.sequence, [folded(3, 2)])
    store.seal(read.sequence, [folded(3, 2)])

    assert [one.post.amount for one in handed_out(store)] == [3]
    assert store.counts().pending == Tally(2, 3)


def test_only_what_was_read_is_sealed(store: Store) -> None:
    """Somebody who read something else, or nothing, is told to read again."""
    store.append([unsealed(1, [1]), unsealed(2, [2])], Tally())
    (read,) = store.recorded(0, 1)

    with pytest.raises(ChangedError):
        store.seal(read.sequence + 1, [folded(3, 2)])

    assert handed_out(store) == []
    assert store.counts().pending == Tally(2, 3)


def test_sealed_batches_are_swept_away(store: Store) -> None:
    """After enough sweeps there is nothing left to sweep, and nothing that waits was touched."""
    store.append([unsealed(number, [1]) for number in range(1, 251)], Tally())
    read = store.recorded(0, 200)
    store.seal(read[-1].sequence, [folded(200, 200)])

    sweeps = sum(1 for _ in iter(store.sweep, False))

    assert sweeps < 250
    assert len(store.recorded(0, 1000)) == 50
    assert store.counts().pending == Tally(250, 250)


def test_a_recorded_batch_is_stored_once(store: Store) -> None:
    """Also when it is sealed and swept away by the time it is repeated."""
    store.append([unsealed(1, [5])], Tally())
    (read,) = store.recorded(0, 10)
    store.seal(read.sequence, [folded(5, 1)])
    while store.sweep():
        pass

    store.append([unsealed(1, [5])], Tally())

    assert store.recorded(0, 10) == []
    assert store.counts().recorded == Tally(1, 5)
