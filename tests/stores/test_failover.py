"""A primary dies in the middle of the work and its replica takes over: with `replicas=1` nothing is lost or doubled."""

from __future__ import annotations

import itertools
import pathlib
import time

import pytest

from tests.buffer.helpers import make_batch, wait_until
from tests.stores import servers
from tests.stores.pair import Pair
from x402tools import RedisStore, UsageBuffer, X402Client
from x402tools._redis_leases import Leases
from x402tools._redis_link import Link
from x402tools._redis_store import Engine
from x402tools._spool import Deposit
from x402tools._store import Tally
from x402tools.testing import Emulator, Fault

EVENTS = 400  # in each half
GROUPS = 20


@pytest.mark.full
@pytest.mark.parametrize("coalesce", [False, True])
def test_a_replica_that_takes_over_has_all_that_counts(
    emulator: Emulator, tmp_path: pathlib.Path, coalesce: bool
) -> None:
    """Recorded before the primary is killed, while it is away, and after: each on the bill once."""
    servers.require(servers.REDIS)
    envelope_ids = [emulator.create_envelope() for _ in range(GROUPS)]
    emulator.set_faults(Fault.status(503, share=0.1), Fault.reset_after_commit(share=0.1))
    with Pair(tmp_path) as pair:
        store = RedisStore(pair.network.url, replicas=1, lease=1.0, timeout=1.0)
        worker = UsageBuffer(store=store, deliver=True, coalesce=True, coalesce_window=0.1, flush_interval=0.05)
        client = X402Client(emulator.api_key, emulator.base_url, buffer=worker)
        with client, UsageBuffer(store=store, coalesce=coalesce) as buffer:
            for number in range(EVENTS):
                buffer.record(envelope_ids[number % GROUPS], 1)
            wait_until(lambda: emulator.ledger().units > EVENTS // 4, "some of it is delivered")

            pair.lose_primary()
            for number in range(EVENTS):
                buffer.record(envelope_ids[number % GROUPS], 1)
            pair.promote()
            pair.renew()

            wait_until(lambda: buffer.stats().delivered.units == 2 * EVENTS, "all of it is delivered", 60)
            stats = buffer.stats()

    assert emulator.ledger().units == 2 * EVENTS
    assert stats.recorded == stats.delivered
    assert stats.pending.events == stats.in_memory == 0


@pytest.mark.full
def test_what_a_replica_does_not_know_to_be_read_is_folded_once(tmp_path: pathlib.Path) -> None:
    """It has the events, and not that a worker has read them: the same worker reads them from it once more."""
    servers.require(servers.REDIS)
    with Pair(tmp_path) as pair:
        worker = Engine(RedisStore(pair.network.url, replicas=1), max_bytes=2**40)
        worker.deposit(Deposit(1, [make_batch(1, [5])._replace(is_sealed=False)]))
        pair.cut_off_replica()
        (read,) = worker.recorded(0, 10)

        pair.lose_primary()
        pair.promote()
        again = worker.recorded(read.sequence, 10)
        pair.renew()
        worker.seal(read.sequence, [make_batch(9, [5])])

        assert again == []
        assert [post.key for batch in worker.oldest_sealed(0, 10) for _, post in batch.posts] == ["rec-9-0"]
        assert worker.counts().pending == Tally(1, 5)
        worker.close()


@pytest.mark.full
def test_what_only_the_lost_primary_had_is_not_sent(tmp_path: pathlib.Path) -> None:
    """A worker that is stalled between reading and sending, while the replica takes over, finds that it is gone: its
    events are recorded again, and would be sent under another key too."""
    servers.require(servers.REDIS)
    with Pair(tmp_path) as pair:
        store = RedisStore(pair.network.url)
        link = Link(store)
        leases = Leases(link, "{x402:x402}:out", "post", "worker", 60.0, time.monotonic, itertools.count(1).__next__)
        alone = Engine(store, max_bytes=2**40)
        alone.deposit(Deposit(1, [make_batch(1)]))
        kept = leases.still_held(leases.read(1), lambda *asked: link.run_and_wait(*asked, 1, 10.0))
        pair.cut_off_replica()
        alone.deposit(Deposit(2, [make_batch(2)]))
        read = leases.read(1)

        pair.lose_primary()
        pair.promote()
        pair.renew()
        held = leases.still_held([*kept, *read], link.run)

        assert (len(kept), len(read)) == (1, 1)
        assert held == kept
        assert list(leases.ids) == [kept[0].number]
        link.close()
        alone.close()
