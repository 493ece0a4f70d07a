"""A primary dies in the middle of the work and its replica takes over: with `replicas=1` nothing is lost or doubled."""

from __future__ import annotations

import pathlib

import pytest

from tests.buffer.helpers import wait_until
from tests.stores import servers
from tests.stores.servers import HOST, Proxy, Server
from x402tools import RedisStore, UsageBuffer, X402Client
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
    with servers.replicated(tmp_path) as (primary, replica), Proxy(primary.port) as network:
        store = RedisStore(network.url, replicas=1, lease=1.0, timeout=1.0)
        worker = UsageBuffer(store=store, deliver=True, coalesce=True, coalesce_window=0.1, flush_interval=0.05)
        client = X402Client(emulator.api_key, emulator.base_url, buffer=worker)
        with client, UsageBuffer(store=store, coalesce=coalesce) as buffer:
            for number in range(EVENTS):
                buffer.record(envelope_ids[number % GROUPS], 1)
            wait_until(lambda: emulator.ledger().units > EVENTS // 4, "some of it is delivered")

            network.cut()
            primary.kill()
            for number in range(EVENTS):
                buffer.record(envelope_ids[number % GROUPS], 1)
            replica.ask("REPLICAOF", "NO", "ONE")
            options = ("--replicaof", f"{HOST} {replica.port}", "--repl-diskless-sync-delay", "0")
            with Server(tmp_path / "next", options=options):
                network.target = replica.port
                network.mend()

                wait_until(lambda: buffer.stats().delivered.units == 2 * EVENTS, "all of it is delivered", 60)
                stats = buffer.stats()

    assert emulator.ledger().units == 2 * EVENTS
    assert stats.recorded == stats.delivered
    assert stats.pending.events == stats.in_memory == 0
