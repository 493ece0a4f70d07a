"""What a server does that a file does not: its answer is lost on the way, and it comes back with nothing on it."""

from __future__ import annotations

import os
from typing import Iterator

import pytest

from tests.buffer.helpers import FakeClock, make_batch
from tests.stores import servers
from tests.stores.servers import Server
from x402tools._batch import EncodedBatch
from x402tools._redis_store import Engine
from x402tools._spool import Deposit
from x402tools._store import ChangedError, Tally
from x402tools.redis_store import RedisStore

LEASE = 60.0


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


def _recorded(name: int) -> EncodedBatch:
    return make_batch(name)._replace(is_sealed=False)
