"""A local spool behind a server: what the server does not take is kept in a file, and handed on later, once."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from typing import Iterator, List

import pytest

from tests.buffer.helpers import FakeClock, assert_adds_up, make_batch, wait_until
from tests.stores import servers
from tests.stores.servers import Proxy, Server
from x402tools import RedisStore, UsageBuffer, X402Client
from x402tools._batch import EncodedBatch
from x402tools._redis_store import Engine
from x402tools._spill import Spilling
from x402tools._spool import Deposit, Spool
from x402tools._store import Tally
from x402tools.errors import SpoolError
from x402tools.testing import Emulator


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    servers.require(servers.REDIS)
    with Server(tmp_path / "server") as started:
        yield started


@pytest.fixture
def network(server: Server) -> Iterator[Proxy]:
    """Between the one that spills and the server."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def spilling(network: Proxy, folder: pathlib.Path, clock: FakeClock) -> Spilling:
    store = RedisStore(network.url, timeout=1.0)
    return Spilling(Engine(store, max_bytes=2**40, clock=clock), file_in(folder), clock=clock)


def file_in(folder: pathlib.Path) -> Spool:
    return Spool(str(folder / "spill.db"), sync="FULL", max_bytes=2**40)


def sent(engine: Engine) -> List[str]:
    """The keys of all POSTs that the server has, in the order in which they came."""
    return [post.key for batch in engine.oldest_sealed(0, 100) for _, post in batch.posts]


def unsealed(name: int) -> EncodedBatch:
    return make_batch(name)._replace(is_sealed=False)


def test_what_the_server_does_not_take_comes_later_and_in_order(
    server: Server, network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """Also what is recorded when it is back, while the file is not empty: the server takes a lower number for a
    repetition."""
    store = spilling(network, tmp_path, clock)
    store.deposit(Deposit(1, [make_batch(1)]))
    before = store.counts()
    network.cut()
    store.deposit(Deposit(2, [make_batch(2), make_batch(3)]))
    while_away = store.counts()

    network.mend()
    store.deposit(Deposit(3, [make_batch(4)]))
    with_server = Engine(RedisStore(server.url), max_bytes=2**40)
    left_alone = with_server.counts().pending
    clock.advance(2.0)
    store.deposit(Deposit(4, [make_batch(5)]))

    assert before.pending == Tally(1, 1)
    assert while_away.recorded == while_away.pending == Tally(3, 3)
    assert left_alone == Tally(1, 1)  # nobody waits for one time-out after the other
    assert sent(with_server) == ["rec-1-0", "rec-2-0", "rec-3-0", "rec-4-0", "rec-5-0"]
    assert store.counts().pending == with_server.counts().pending == Tally(5, 5)
    assert_adds_up(store.counts())
    assert [notice.partition(":")[0] for notice in store.notices] == ["redis", "redis"]
    store.close()
    with_server.close()


def test_what_was_stored_and_not_answered_is_not_doubled(
    server: Server, network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """The server has it, the file too, and handing it on adds nothing."""
    store = spilling(network, tmp_path, clock)
    with_server = Engine(RedisStore(server.url), max_bytes=2**40)
    with_server.deposit(Deposit(0, [make_batch(1)]))
    network.cut()
    store.deposit(Deposit(1, [make_batch(1)]))

    network.mend()
    store.look()

    assert sent(with_server) == ["rec-1-0"]
    assert with_server.counts().recorded == Tally(1, 1)
    assert store.counts().pending == Tally(1, 1)
    store.close()
    with_server.close()


def test_what_is_to_be_folded_is_folded_on_the_server(
    server: Server, network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """The file changes nothing of what a batch is."""
    store = spilling(network, tmp_path, clock)
    network.cut()
    store.deposit(Deposit(1, [unsealed(1), make_batch(2)]))

    network.mend()
    store.look()

    with_server = Engine(RedisStore(server.url), max_bytes=2**40)
    assert [batch.recorder for batch in with_server.recorded(0, 10)] == ["rec"]
    assert sent(with_server) == ["rec-2-0"]
    store.close()
    with_server.close()


def test_the_next_process_hands_on_what_one_left(
    server: Server, network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """It was killed while the server was away; nothing more has to be recorded for it."""
    network.cut()
    program = """
import sys, os
from x402tools import RedisStore, UsageBuffer
buffer = UsageBuffer(store=RedisStore(sys.argv[1], spill=sys.argv[2], timeout=1.0), durability="commit")
for _ in range(100):
    buffer.record("env_1", 2)
print(buffer.stats().in_memory, flush=True)
os._exit(9)
"""
    url, spill = f"redis://{servers.HOST}:{network.port}/0", str(tmp_path / "spill.db")
    killed = subprocess.run([sys.executable, "-c", program, url, spill], capture_output=True, text=True, timeout=60)
    network.mend()

    with UsageBuffer(store=RedisStore(url, spill=spill)) as buffer:
        with_server = Engine(RedisStore(server.url), max_bytes=2**40)
        wait_until(lambda: with_server.counts().recorded == Tally(100, 200), "it is handed on")
        stats = buffer.stats()

    assert killed.stdout.strip() == "0", killed.stderr
    assert stats.pending == Tally(100, 200)
    with_server.close()


def test_every_event_of_an_outage_is_billed_once(
    server: Server, network: Proxy, emulator: Emulator, tmp_path: pathlib.Path
) -> None:
    """Recorded before, during and after it, and delivered by a worker."""
    envelope_id = emulator.create_envelope()
    store = RedisStore(f"redis://{servers.HOST}:{network.port}/0", spill=tmp_path / "spill.db", timeout=1.0)
    worker = UsageBuffer(server.url, deliver=True, flush_interval=0.05)

    with X402Client(emulator.api_key, emulator.base_url, buffer=worker) as client:
        with UsageBuffer(store=store) as buffer:
            for change in (network.cut, network.mend, lambda: None):
                for _ in range(200):
                    buffer.record(envelope_id, 1)
                wait_until(lambda: buffer.stats().in_memory == 0, "it is stored")
                change()
            wait_until(lambda: emulator.ledger().events == 600, "it is delivered")
            stats = buffer.stats()
        client.flush(10)

    assert emulator.ledger().events == emulator.ledger().units == 600
    assert stats.recorded == Tally(600, 600)
    assert stats.problem is None


def test_a_file_for_another_server_is_refused(
    server: Server, network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """What lies in it would end on the wrong bill."""
    store = spilling(network, tmp_path, clock)
    network.cut()
    store.deposit(Deposit(1, [make_batch(1)]))
    store.close()

    with pytest.raises(SpoolError, match="another"):
        Spilling(Engine(RedisStore(server.url, namespace="other"), max_bytes=2**40), file_in(tmp_path))


@pytest.mark.parametrize("comes_late", [True, False])
def test_what_was_dropped_is_counted_once(server: Server, tmp_path: pathlib.Path, comes_late: bool) -> None:
    """Though the server did not answer in time: it runs the deposit later, or never got it."""
    clock = FakeClock()
    with Proxy(server.port) as network:
        engine = Engine(RedisStore(network.url, timeout=0.3), max_bytes=2**40, clock=clock)
        store = Spilling(engine, file_in(tmp_path), clock=clock)
        store.deposit(Deposit(1, [make_batch(1)]))
        on_server = Engine(RedisStore(server.url), max_bytes=2**40)

        os.kill(server.pid, signal.SIGSTOP)
        if not comes_late:
            network.cut()
        store.deposit(Deposit(2, [make_batch(2)], dropped=Tally(3, 7)))
        os.kill(server.pid, signal.SIGCONT)
        if comes_late:
            wait_until(lambda: on_server.counts().dropped == Tally(3, 7), "the server runs it")
        network.mend()
        clock.advance(2.0)
        store.look()
        store.deposit(Deposit(3, [make_batch(3)]))

        assert store.counts().dropped == Tally(3, 7)
        assert store.counts().recorded == Tally(6, 10)
        assert_adds_up(store.counts())
        on_server.close()
        store.close()


def test_a_loss_that_nobody_can_tell_of_is_counted_meanwhile(
    network: Proxy, tmp_path: pathlib.Path, clock: FakeClock
) -> None:
    """While the server is away, and when the process ends before it is back."""
    store = spilling(network, tmp_path, clock)
    network.cut()
    store.deposit(Deposit(1, dropped=Tally(3, 7)))

    meanwhile = store.counts()
    store.close()

    assert meanwhile.dropped == meanwhile.recorded == Tally(3, 7)
    assert file_in(tmp_path).counts().dropped == Tally(3, 7)
