"""What a server does that a file does not: its answer is lost on the way, it comes back with nothing on it, several
processes deliver from it at once, it has replicas, and it may be one that throws usage away.
"""

from __future__ import annotations

import os
import pathlib
import threading
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.buffer.helpers import FakeClock, assert_adds_up, make_batch
from tests.stores import servers
from tests.stores.servers import Server
from x402tools import UsageBuffer
from x402tools._batch import EncodedBatch
from x402tools._redis_store import Engine
from x402tools._spool import Deposit
from x402tools._store import Acknowledgement, ChangedError, SealedBatch, Tally
from x402tools.errors import SpoolError, ValidationError
from x402tools.redis_store import RedisStore

LEASE = 60.0
SHORT_LEASE = 0.05  # seconds of the server's own clock

OpenEngine = Callable[[], Engine]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers.require(servers.REDIS)
    with Server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(server: Server, clock: FakeClock) -> Iterator[Engine]:
    """Delivers from a namespace of its own."""
    opened = Engine(RedisStore(server.url, namespace=os.urandom(6).hex(), lease=LEASE), max_bytes=2**40, clock=clock)
    yield opened
    opened.close()


def test_what_was_dropped_is_counted_once_however_often_it_is_told(engine: Engine) -> None:
    """The answer may be lost on its way, and then the same deposit is sent once more; a later one counts again."""
    deposit = Deposit(1, [make_batch(1, [5])], dropped=Tally(3, 7))

    engine.deposit(deposit)
    engine.deposit(deposit)
    once = engine.counts()
    engine.deposit(Deposit(2, dropped=Tally(1, 1)))
    engine.deposit(deposit)

    assert (once.recorded, once.pending, once.dropped) == (Tally(4, 12), Tally(1, 5), Tally(3, 7))
    assert engine.counts().dropped == Tally(4, 8)
    assert engine.has_deposit(2)


def test_a_deposit_that_comes_late_counts_nothing_twice(engine: Engine) -> None:
    """It was given up after a time-out, the server had not run it by then and does so later: before or after another
    one of the same things was made."""
    late = Deposit(1, [make_batch(1, [5])], dropped=Tally(3, 7))
    again = late._replace(number=2)

    has_it = engine.has_deposit(1), engine.has_deposit(1)
    engine.deposit(late)
    engine.deposit(again)
    engine.deposit(late)

    assert has_it == (False, False)
    assert engine.has_deposit(2)
    assert (engine.counts().recorded, engine.counts().dropped) == (Tally(4, 12), Tally(3, 7))
    assert_adds_up(engine.counts())


def test_a_server_that_comes_back_empty_is_worked_on(engine: Engine, server: Server, clock: FakeClock) -> None:
    """What it lost is lost; who held some of it notices, and takes what comes later."""
    engine.deposit(Deposit(1, [make_batch(1), _recorded(2)]))
    assert engine.claim()
    folded, sent = engine.recorded(0, 10), engine.oldest_sealed(0, 10)

    server.ask("FLUSHDB")
    clock.advance(LEASE)

    assert engine.claim()
    with pytest.raises(ChangedError):
        engine.seal(folded[-1].sequence, [make_batch(9)])
    engine.deposit(Deposit(2, [make_batch(3), _recorded(4)]))
    assert [len(batch.rows) for batch in engine.recorded(0, 10)] == [1]
    assert [post.key for batch in engine.oldest_sealed(sent[-1].sequence, 10) for _, post in batch.posts] == ["rec-3-0"]


@pytest.fixture
def open_engine(server: Server, clock: FakeClock) -> Iterator[OpenEngine]:
    """Called twice it gives two, as two processes have them; what one holds the other may take after a moment."""
    store = RedisStore(server.url, namespace=os.urandom(6).hex(), lease=SHORT_LEASE)
    opened: List[Engine] = []

    def open_one() -> Engine:
        opened.append(Engine(store, max_bytes=2**40, clock=clock))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def test_what_another_has_taken_over_is_not_folded(open_engine: OpenEngine, clock: FakeClock) -> None:
    """Whoever was slow is told to read again, and the other one's fold is the only one."""
    slow, other = open_engine(), open_engine()
    slow.deposit(Deposit(1, [_recorded(1), _recorded(2)]))
    read = slow.recorded(0, 10)
    taken = _until(clock, lambda: other.recorded(0, 10))

    with pytest.raises(ChangedError):
        slow.seal(read[-1].sequence, [make_batch(8, [2])])
    other.seal(taken[-1].sequence, [make_batch(9, [2])])

    assert [post.key for batch in other.oldest_sealed(0, 10) for _, post in batch.posts] == ["rec-9-0"]
    assert_adds_up(other.counts())


def test_what_was_lost_after_it_was_read_is_not_folded_either(open_engine: OpenEngine, clock: FakeClock) -> None:
    """Also when what was read with it is still held, and is handed out once more in between."""
    slow, other = open_engine(), open_engine()
    slow.deposit(Deposit(1, [_recorded(1), _recorded(2), _recorded(3)]))
    read = slow.recorded(0, 10)
    _until(clock, lambda: other.recorded(0, 1))  # the first of the three

    again = _until(clock, lambda: slow.recorded(read[1].sequence, 10))

    assert [batch.sequence for batch in again] == [read[2].sequence]
    with pytest.raises(ChangedError):
        slow.seal(read[1].sequence, [make_batch(8, [2])])


def test_what_comes_back_after_a_stall_is_folded_once(open_engine: OpenEngine, clock: FakeClock) -> None:
    """Who was silent for longer than its lease finds its own work among that of the dead, and has it already."""
    slow, other = open_engine(), open_engine()
    slow.deposit(Deposit(1, [_recorded(1), make_batch(2)]))
    (read,) = slow.recorded(0, 10)
    sent = slow.oldest_sealed(0, 10)
    assert other.claim()
    _until(clock, lambda: other.recorded(0, 10))
    _until(clock, lambda: other.oldest_sealed(0, 10))
    other.release()
    clock.advance(LEASE)

    again = slow.recorded(read.sequence, 10), slow.oldest_sealed(sent[-1].sequence, 10)
    slow.seal(read.sequence, [make_batch(9)])

    assert again == ([], [])
    assert slow.counts().pending == Tally(2, 2)
    assert [post.key for batch in slow.oldest_sealed(sent[-1].sequence, 10) for _, post in batch.posts] == ["rec-9-0"]


def test_another_destination_is_refused(open_engine: OpenEngine) -> None:
    """While anything waits for the one that it has; then it may go there."""
    one, other = open_engine(), open_engine()
    one.bind("https://one.example")
    one.deposit(Deposit(1, [make_batch(1)]))

    with pytest.raises(SpoolError, match="another base_url"):
        other.bind("https://other.example")

    one.settle(_acknowledged(one.oldest_sealed(0, 10)), [])
    other.bind("https://other.example")


def test_one_of_those_that_deliver_folds(open_engine: OpenEngine, clock: FakeClock) -> None:
    """The others leave what is recorded to it, until it ends."""
    first, second = open_engine(), open_engine()
    first.deposit(Deposit(1, [_recorded(1)]))
    assert first.claim()
    read = first.recorded(0, 10)
    first.deposit(Deposit(2, [_recorded(2)]))

    passed_over = second.recorded(0, 10)
    first.seal(read[-1].sequence, [make_batch(9)])
    first.release()

    assert passed_over == []
    assert [len(batch.rows) for batch in _until(clock, lambda: second.recorded(0, 10))] == [1]


def test_what_two_have_sent_is_counted_once(open_engine: OpenEngine, clock: FakeClock) -> None:
    """A POST that was sent by a slow process and by the one that took its work over is delivered once in the ledger."""
    slow, other = open_engine(), open_engine()
    slow.deposit(Deposit(1, [make_batch(1, [5, 7])]))
    sent = slow.oldest_sealed(0, 10)
    again = _until(clock, lambda: other.oldest_sealed(0, 10))

    slow.settle(_acknowledged(sent)[:1], [])
    other.settle(_acknowledged(again), [])
    slow.settle(_acknowledged(sent)[1:], [])

    assert other.counts().delivered == Tally(2, 12)
    assert other.counts().pending == Tally()
    assert_adds_up(other.counts())


def test_what_is_released_is_taken_at_once(server: Server) -> None:
    """Not only after the lease: a worker that ends in order leaves nothing waiting."""
    store = RedisStore(server.url, namespace=os.urandom(6).hex(), lease=3600.0)
    first, second = Engine(store, max_bytes=2**40), Engine(store, max_bytes=2**40)
    first.deposit(Deposit(1, [make_batch(1)]))
    assert first.claim()
    assert first.oldest_sealed(0, 10)

    first.close()

    assert second.oldest_sealed(0, 10)
    second.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_throws_keys_away_is_refused(tmp_path: pathlib.Path, policy: str) -> None:
    """It would lose usage when its memory is full; whoever wants it all the same has to say so."""
    servers.require(servers.REDIS)
    with Server(tmp_path / "server", options=("--maxmemory-policy", policy)) as server:
        with pytest.raises(SpoolError, match=f"maxmemory-policy is {policy}.*noeviction"):
            UsageBuffer(server.url)

        UsageBuffer(store=RedisStore(server.url, allow_eviction=True)).close()


def test_replicas_have_what_is_stored_and_what_is_sent(tmp_path: pathlib.Path) -> None:
    """While one is away nothing counts as stored, and nothing is sent that only the primary has."""
    servers.require(servers.REDIS)
    with servers.replicated(tmp_path) as (primary, replica):
        alone = Engine(RedisStore(primary.url), max_bytes=2**40)
        engine = Engine(RedisStore(primary.url, replicas=1), max_bytes=2**40)
        engine.deposit(Deposit(1, [make_batch(1)]))
        replica.kill()

        with pytest.raises(SpoolError, match="0 of 1 replicas"):
            engine.deposit(Deposit(2, [make_batch(2)]))
        with pytest.raises(SpoolError, match="0 of 1 replicas"):
            engine.has_deposit(2)
        with pytest.raises(SpoolError, match="0 of 1 replicas"):
            engine.oldest_sealed(0, 10)

        assert alone.counts().recorded == Tally(2, 2)
        alone.close()
        engine.close()


def test_no_secret_of_the_address_is_shown() -> None:
    """Neither by the store, nor by a buffer on it, nor by what goes wrong."""
    store = RedisStore("redis://someone:hunter2@127.0.0.1:1/0", timeout=0.2)
    servers.require(servers.REDIS)

    with UsageBuffer(store=store) as buffer:
        buffer.record("env_1", 1)
        buffer.close(0.2)
        shown = f"{store!r} {buffer!r} {buffer.path} {buffer.health()!r}"

    assert "127.0.0.1:1" in shown
    assert "hunter2" not in shown
    assert "someone" not in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"store": "http://localhost"}, "store"),
        ({"path": "usage.db", "store": "redis://localhost"}, "not both"),
        ({"path": "redis://localhost", "on_unknown": "hold"}, "on_unknown"),
        ({"path": "redis://localhost", "durability": "fsync"}, "durability"),
    ],
)
def test_what_a_server_cannot_do_is_refused(arguments: Dict[str, str], named: str) -> None:
    """With the argument and what would be right."""
    with pytest.raises(ValidationError, match=named):
        UsageBuffer(**arguments)  # type: ignore[arg-type]  # what is wrong here is what is tested


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "localhost"},
        {"url": "redis://localhost", "namespace": "a b"},
        {"url": "redis://localhost", "replicas": -1},
        {"url": "redis://localhost", "lease": 0},
        {"url": "redis://localhost", "timeout": "2"},
        {"url": "redis://localhost", "rate": 0},
    ],
)
def test_arguments_of_a_store_are_checked(arguments: Dict[str, object]) -> None:
    """Before anything is connected; the last one given is named."""
    with pytest.raises(ValidationError, match=list(arguments)[-1]):
        RedisStore(**arguments)  # type: ignore[arg-type]  # what is wrong here is what is tested


def _until(clock: FakeClock, read: Callable[[], List[Any]]) -> List[Any]:
    """What is read in the end: the lease runs out by the server's clock, and is looked for by ours."""
    pause = threading.Event()  # never set: only waited on
    for _ in range(600):
        found = read()
        if found:
            return found
        pause.wait(SHORT_LEASE)
        clock.advance(LEASE)
    raise AssertionError("nothing came within half a minute")


def _acknowledged(batches: List[SealedBatch]) -> List[Acknowledgement]:
    return [Acknowledgement(place, post) for batch in batches for place, post in batch.posts]


def _recorded(name: int) -> EncodedBatch:
    return make_batch(name)._replace(is_sealed=False)
