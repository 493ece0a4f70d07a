"""A store in several partitions: events are split by envelope, each partition is folded by one of the workers, and one
that fails doubles nothing and keeps nobody from the others.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Callable, Iterator, List

import pytest

from tests.buffer.helpers import FakeClock, assert_adds_up, make_batch
from tests.stores import servers
from tests.stores.servers import Proxy, Server
from x402tools import RedisStore, UsageBuffer
from x402tools._batch import MOST_EVENTS, EncodedBatch
from x402tools._event import Event
from x402tools._partition import partition_of, split
from x402tools._redis_partitions import Partitions
from x402tools._redis_share import share_of
from x402tools._redis_store import Engine
from x402tools._spill import Spilling
from x402tools._spool import Deposit, Spool
from x402tools._store import Acknowledgement, Burial, SealedBatch, Tally
from x402tools.errors import SpoolError, ValidationError

COUNT = 4
LEASE = 60.0

OpenStore = Callable[[], Partitions]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers.require(servers.REDIS)
    with Server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def namespace() -> str:
    return os.urandom(6).hex()


@pytest.fixture
def open_store(server: Server, namespace: str, clock: FakeClock) -> Iterator[OpenStore]:
    """Called twice it gives two, as two processes have them."""
    opened: List[Partitions] = []

    def open_one() -> Partitions:
        described = RedisStore(server.url, namespace=namespace, partitions=COUNT, lease=LEASE)
        opened.append(Partitions(described, max_bytes=2**40, clock=clock))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Partitions:
    return open_store()


def test_events_are_split_by_envelope_and_keep_their_order() -> None:
    """None is lost, none is doubled, and no part is larger than a batch may be."""
    events = [_event(number) for number in range(3000)]

    parts = split(events, COUNT)

    assert sorted(event for part in parts for event in part) == events
    assert max(len(part) for part in parts) <= MOST_EVENTS
    for part in parts:
        (_,) = {partition_of(event[1], COUNT) for event in part}
        assert part == sorted(part)
    by_partition = [
        [event for part in parts for event in part if partition_of(event[1], COUNT) == one] for one in range(COUNT)
    ]
    assert all(some == sorted(some) for some in by_partition)


def test_where_an_envelope_belongs_never_changes() -> None:
    """What is stored of it lies there: another version of the package has to find the same."""
    found = [partition_of(envelope, 16) for envelope in ("env_1", "env_2", "ünï", "")]

    assert found == [3, 9, 10, 0]


@pytest.mark.parametrize(("workers", "share"), [(1, 16), (2, 8), (3, 6), (16, 1), (40, 1)])
def test_shares_are_even_and_cover_all(workers: int, share: int) -> None:
    """All workers together may fold at least as many partitions as there are."""
    assert share_of(16, workers) == share
    assert share * workers >= 16


def test_workers_share_out_the_folding(open_store: OpenStore, clock: FakeClock) -> None:
    """The first one folds all, until there is a second; when one ends, the other takes its partitions."""
    first, second = open_store(), open_store()
    assert second.claim()

    alone = _folds(first)
    shared: List[int] = []
    for _ in range(4):
        clock.advance(1.0)
        shared = [_folds(first), _folds(second)]
    second.close()
    clock.advance(1.0)

    assert alone == COUNT
    assert shared == [COUNT // 2, COUNT // 2]
    assert _folds(first) == COUNT


def test_a_worker_takes_no_more_than_its_share(open_store: OpenStore) -> None:
    """Though nobody else has the rest yet."""
    first, second = open_store(), open_store()
    first.parts()[0].recorded(0, 10)

    for part in second.parts():
        part.recorded(0, 10)

    assert [engine.folds for engine in second.engines] == [False, True, True, False]


def test_a_partition_is_not_let_go_with_something_in_hand(open_store: OpenStore, clock: FakeClock) -> None:
    """What was read and not sealed would be read by the next one too; so it goes after it is sealed."""
    first, second = open_store(), open_store()
    first.deposit(Deposit(1, [_unsealed(number, number % COUNT) for number in range(1, COUNT + 1)]))
    parts = first.parts()
    read = [part.recorded(0, 10)[-1].sequence for part in parts]
    for _ in range(3):
        _folds(second)
        clock.advance(1.0)

    for part, last in zip(parts, read):
        part.recorded(last, 10)
    in_hand = [engine.folds for engine in first.engines]
    for number, (part, last) in enumerate(zip(parts, read)):
        part.seal(last, [make_batch(number, recorder="fold")])
    sealed = _folds(first)

    assert in_hand == [True] * COUNT
    assert sealed == COUNT // 2
    assert first.counts().pending == Tally(COUNT, COUNT)


def test_another_number_of_partitions_is_refused(server: Server, namespace: str, store: Partitions) -> None:
    """It is told both numbers, and what to do; also one that would have the whole in one."""
    for other in (1, 8):
        with pytest.raises(SpoolError, match=f"into {COUNT} partitions, not into {other}.*another namespace"):
            UsageBuffer(store=RedisStore(server.url, namespace=namespace, partitions=other))


def test_what_an_earlier_version_stored_is_in_one(server: Server, namespace: str) -> None:
    """It wrote no number of partitions down; its keys are where they were, and nobody splits them."""
    one = Engine(RedisStore(server.url, namespace=namespace), max_bytes=2**40)
    one.deposit(Deposit(1, [make_batch(1)]))
    server.ask("HDEL", f"{{x402:{namespace}}}:meta", "partitions")

    with pytest.raises(SpoolError, match="into 1 partitions, not into 4"):
        UsageBuffer(store=RedisStore(server.url, namespace=namespace, partitions=4))

    assert server.ask("XLEN", f"{{x402:{namespace}}}:out") == 1
    again = Engine(RedisStore(server.url, namespace=namespace), max_bytes=2**40)
    assert _keys(again.oldest_sealed(0, 10)) == ["rec-1-0"]
    again.close()
    one.close()


def test_a_deposit_that_fails_in_one_partition_is_repeated_and_doubles_nothing(
    server: Server, namespace: str, store: Partitions
) -> None:
    """Neither its batches nor what was dropped, whichever of the partitions fails."""
    for number, failing in enumerate((0, 3), start=1):
        batches = [_sealed(10 * number + at, at) for at in range(COUNT)]
        with _broken(server, f"{{x402:{namespace}:{failing}}}:recorders"):
            with pytest.raises(SpoolError):
                store.deposit(Deposit(2 * number, batches, dropped=Tally(2, 7)))
            with contextlib.suppress(SpoolError):
                assert not store.has_deposit(2 * number)

        assert not store.has_deposit(2 * number)
        store.deposit(Deposit(2 * number + 1, batches, dropped=Tally(2, 7)))
        store.deposit(Deposit(2 * number + 1, batches, dropped=Tally(2, 7)))

        assert store.has_deposit(2 * number + 1)
        assert store.counts().dropped == Tally(2 * number, 7 * number)
        assert store.counts().pending == Tally(COUNT * number, COUNT * number)
        assert_adds_up(store.counts())


def test_what_was_dropped_is_counted_once_though_it_is_told_late(store: Partitions) -> None:
    """A question that was given up may arrive after the one that was asked instead: it is known by its number, because
    the same partition counts for both."""
    store.deposit(Deposit(3, [_sealed(1, 2)], dropped=Tally(1, 5)))

    store.deposit(Deposit(2, dropped=Tally(1, 5)))

    assert store.counts().dropped == Tally(1, 5)


def test_the_others_go_on_while_one_fails(server: Server, namespace: str, store: Partitions, clock: FakeClock) -> None:
    """What is in it waits, and comes when it answers again; people are told."""
    store.deposit(Deposit(1, [_sealed(at + 1, at) for at in range(COUNT)]))
    assert store.claim()

    with _broken(server, f"{{x402:{namespace}:2}}:out"):
        sent = store.oldest_sealed(0, 10)
        clock.advance(10.0)
        assert store.claim()
        nothing = store.oldest_sealed(sent[-1].sequence, 10)
        assert store.claim()
    clock.advance(10.0)
    rest = store.oldest_sealed(sent[-1].sequence, 10)
    assert store.claim()

    assert sorted(_keys(sent)) == ["rec-1-0", "rec-2-0", "rec-4-0"]
    assert nothing == []
    assert _keys(rest) == ["rec-3-0"]
    assert ["partitions that wait: 2;" in notice for notice in store.notices] == [True, False]


def test_what_was_read_in_vain_is_not_passed_over(
    server: Server, namespace: str, open_store: OpenStore, clock: FakeClock
) -> None:
    """Though other partitions have handed out more since, under higher numbers."""
    dead, store = open_store(), open_store()
    store.deposit(Deposit(1, [_sealed(1, 1)]))
    assert dead.claim()
    assert dead.oldest_sealed(0, 10)
    dead.release()
    (entry,) = server.ask("XRANGE", f"{{x402:{namespace}:1}}:out", "-", "+")
    store.deposit(Deposit(2, [_sealed(2, 2)]))

    with _broken(server, f"{{x402:{namespace}:1}}:bits:{entry[0].decode()}", kind="list"):
        others = store.oldest_sealed(0, 10)
    clock.advance(10.0)
    late = store.oldest_sealed(others[-1].sequence, 10)

    assert _keys(others) == ["rec-2-0"]
    assert _keys(late) == ["rec-1-0"]
    assert late[0].sequence < others[0].sequence


def test_no_partition_is_starved(store: Partitions) -> None:
    """Each has its turn, however much there is in the others."""
    store.deposit(Deposit(1, [_sealed(number, 0) for number in range(1, 40)] + [_sealed(40, 3)]))

    seen: List[str] = []
    for _ in range(COUNT):
        seen += _keys(store.oldest_sealed(10**9, 2))

    assert "rec-40-0" in seen


def test_what_is_settled_twice_because_another_partition_failed_is_counted_once(
    server: Server, namespace: str, store: Partitions, clock: FakeClock
) -> None:
    """And the batch of which only a part is settled stays with the worker."""
    store.deposit(Deposit(1, [make_batch(1, [5, 7])._replace(partition=1), _sealed(2, 2)]))
    assert store.claim()
    sent = _acknowledged(store.oldest_sealed(0, 10))
    some = [one for one in sent if one.post.key != "rec-1-1"]

    with _broken(server, f"{{x402:{namespace}:2}}:out"):
        for _ in range(3):
            with pytest.raises(SpoolError):
                store.settle(some, [])
            clock.advance(10.0)
    store.settle(some, [])
    left = store.counts()
    store.settle([one for one in sent if one not in some], [])

    assert left.delivered == Tally(2, 6)
    assert left.pending == Tally(1, 7)
    assert store.counts().delivered == Tally(3, 13)
    assert store.first_sequence() is None


def test_dead_letters_of_all_partitions_have_numbers_of_their_own(store: Partitions) -> None:
    """They are listed page by page, and each is delivered again from where it is."""
    store.deposit(Deposit(1, [_sealed(at + 1, at % COUNT) for at in range(6)]))
    assert store.claim()
    sent = _acknowledged(store.oldest_sealed(0, 10))
    store.settle([], [Burial(one.place, one.post, "no such envelope", 404, 1) for one in sent])

    first = store.dead_letters(0, 4)
    second = store.dead_letters(first[-1].id, 4)
    pages = [[letter.key for letter in letters] for letters in (first, second)]
    ids = [letter.id for letter in store.dead_letters(0, 10)]
    requeued = store.requeue(ids[:3]), store.requeue(ids)

    assert [len(page) for page in pages] == [4, 2]
    assert sorted(key for page in pages for key in page) == [f"rec-{at}-0" for at in range(1, 7)]
    assert requeued == (3, 3)
    assert store.counts().pending == Tally(6, 6)
    assert len(_keys(store.oldest_sealed(10**9, 10))) == 6


def test_what_a_file_took_goes_to_its_partition(
    server: Server, namespace: str, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """What is folded elsewhere would be a POST more; what is to be folded still is."""
    with Proxy(server.port) as network:
        described = RedisStore(network.url, namespace=namespace, partitions=COUNT, timeout=1.0)
        behind = Partitions(described, max_bytes=2**40, clock=clock)
        file = Spool(str(tmp_path / "spill.db"), sync="FULL", max_bytes=2**40)
        spilling = Spilling(behind, file, clock=clock)
        network.cut()
        spilling.deposit(Deposit(1, [_sealed(1, 0), _unsealed(2, 3), _sealed(3, 3), _unsealed(4, 0)]))
        network.mend()
        clock.advance(10.0)
        spilling.look()

        assert [engine.counts().pending.events for engine in behind.engines] == [2, 0, 0, 2]
        assert sorted(_keys(behind.oldest_sealed(0, 10))) == ["rec-1-0", "rec-3-0"]
        assert [len(part.recorded(0, 10)) for part in behind.parts()] == [1, 0, 0, 1]
        spilling.close()


def test_a_buffer_records_into_all_partitions_and_each_envelope_into_one(server: Server, namespace: str) -> None:
    """Nothing is lost though a commit makes many batches; a late event finds its partition too."""
    described = RedisStore(server.url, namespace=namespace, partitions=COUNT)
    buffer = UsageBuffer(store=described, coalesce=True)

    for number in range(5000):
        buffer.record(f"env_{number % 20}", 1)
        if number % 1000 == 999:
            buffer.flush(0.0)
    buffer.close(30.0)

    with contextlib.closing(Partitions(described, max_bytes=2**40)) as store:
        found = [[row[1] for batch in part.recorded(0, 1000) for row in batch.rows] for part in store.parts()]
        assert sum(map(len, found)) == store.counts().recorded.events == 5000
        for number, envelopes in enumerate(found):
            assert {partition_of(envelope, COUNT) for envelope in envelopes} == {number}


def test_who_looks_sees_all_partitions_and_each_worker_once(server: Server) -> None:
    """What is pending, dead or delivering, with the number of partitions in the address."""
    pytest.importorskip("click", reason="the command line is the extra `cli`")
    from x402tools._cli.fleet_view import FleetView

    server.ask("FLUSHALL")
    url = f"{server.url}?partitions={COUNT}"
    with contextlib.closing(Partitions(RedisStore(url), max_bytes=2**40)) as store, FleetView(url) as view:
        store.deposit(Deposit(1, [*(_sealed(at + 1, at) for at in range(COUNT)), _unsealed(9, 2)]))
        assert store.claim()
        (one, *_) = _acknowledged(store.oldest_sealed(0, 10))
        store.settle([], [Burial(one.place, one.post, "no such envelope", 404, 1)])

        assert len(list(view.pending())) == COUNT
        assert [letter.key for letter in view.dead_letters()] == [one.post.key]
        assert view.counts().recorded == Tally(COUNT + 1, COUNT + 1)
        assert len(view.workers()) == 1


@pytest.mark.parametrize(
    ("url", "partitions"),
    [
        ("redis://localhost", 0),
        ("redis://localhost", 257),
        ("redis://localhost", True),
        ("redis://localhost?partitions=4", 4),
        ("redis://localhost?partitions=x", None),
        ("redis+cluster://localhost/3", None),
    ],
)
def test_partitions_that_cannot_be_are_refused(url: str, partitions: int) -> None:
    """Before anything is connected."""
    with pytest.raises(ValidationError, match=r"partitions|database"):
        RedisStore(url, partitions=partitions)


def test_an_address_may_say_how_many_partitions_there_are() -> None:
    """For a worker at a terminal and for the environment; a cluster has 16 unless it says otherwise."""
    said = RedisStore("rediss://u:p@host:1/2?partitions=8&ssl_cert_reqs=none")

    assert (said.partitions, said.url) == (8, "rediss://u:p@host:1/2?ssl_cert_reqs=none")
    assert RedisStore("redis://host").partitions == 1
    assert RedisStore("valkeys+cluster://host").partitions == 16


@contextlib.contextmanager
def _broken(server: Server, key: str, kind: str = "string") -> Iterator[None]:
    """Has the server fail whatever needs this key: it is of another kind meanwhile."""
    there = bool(server.ask("EXISTS", key))
    if there:
        server.ask("RENAME", key, f"{key}-away")
    server.ask(*(("SET", key, "x") if kind == "string" else ("RPUSH", key, "x")))
    try:
        yield
    finally:
        server.ask("DEL", key)
        if there:
            server.ask("RENAME", f"{key}-away", key)


def _folds(store: Partitions) -> int:
    """How many partitions it folds, once each of them was asked for what there is."""
    for part, engine in zip(store.parts(), store.engines):
        if not engine.is_folding:
            part.recorded(0, 10)
    return sum(engine.folds for engine in store.engines)


def _event(number: int) -> Event:
    return (number, f"env_{number % 7}", 1, None, 1.0)


def _sealed(name: int, partition: int) -> EncodedBatch:
    return make_batch(name)._replace(partition=partition)


def _unsealed(name: int, partition: int) -> EncodedBatch:
    return make_batch(name)._replace(partition=partition, is_sealed=False)


def _acknowledged(batches: List[SealedBatch]) -> List[Acknowledgement]:
    return [Acknowledgement(place, post) for batch in batches for place, post in batch.posts]


def _keys(batches: List[SealedBatch]) -> List[str]:
    return [post.key for batch in batches for _, post in batch.posts]
