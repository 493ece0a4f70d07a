"""A Redis Cluster of three nodes: partitions lie on different nodes, slots move, and every node has to be trusted."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from typing import Callable, Iterator, List

import pytest

from tests.buffer.helpers import FakeClock, make_batch
from tests.stores import servers
from tests.stores.servers import Cluster, Server
from x402tools import RedisStore, UsageBuffer
from x402tools._batch import EncodedBatch
from x402tools._redis_nodes import slot_of
from x402tools._redis_partitions import Partitions
from x402tools._spool import Deposit
from x402tools._store import Acknowledgement, Tally
from x402tools.errors import SpoolError

pytestmark = pytest.mark.full

COUNT = 16


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    servers.require(servers.REDIS)
    with servers.clustered(tmp_path_factory.mktemp("cluster")) as formed:
        yield formed


@pytest.fixture
def namespace() -> str:
    return os.urandom(6).hex()


@pytest.fixture
def store(cluster: Cluster, namespace: str) -> Iterator[Partitions]:
    opened = Partitions(RedisStore(cluster.url, namespace=namespace), max_bytes=2**40, clock=FakeClock())
    yield opened
    opened.close()


def test_partitions_lie_on_all_nodes_and_the_ledger_is_one(cluster: Cluster, namespace: str, store: Partitions) -> None:
    """A batch of each partition is stored, handed out and settled."""
    store.deposit(Deposit(1, _batches(1)))
    assert store.claim()
    owners = {cluster.owner(_slot(namespace, number)).port for number in range(COUNT)}

    sent = store.oldest_sealed(0, 100)
    store.settle([Acknowledgement(place, post) for batch in sent for place, post in batch.posts], [])

    assert len(owners) == 3
    assert store.counts().delivered == Tally(COUNT, COUNT)
    assert store.counts().pending == Tally()
    assert store.allowance(5).posts == 5


def test_a_slot_that_has_moved_is_followed(cluster: Cluster, namespace: str, store: Partitions) -> None:
    """Without any trouble, once it is there."""
    store.deposit(Deposit(1, _batches(1)))
    for number in range(COUNT):
        cluster.move(_slot(namespace, number), cluster.nodes[number % 3])

    store.deposit(Deposit(2, _batches(2)))

    assert store.counts().pending == Tally(2 * COUNT, 2 * COUNT)


def test_what_meets_a_slot_on_its_way_is_sent_again_and_added_once(
    cluster: Cluster, namespace: str, store: Partitions
) -> None:
    """It is refused as long as a part of the slot is on either node."""
    store.deposit(Deposit(1, _batches(1)))
    slot = _slot(namespace, 5)
    target = next(node for node in cluster.nodes if node is not cluster.owner(slot))

    with cluster.moving(slot, target), pytest.raises(SpoolError):
        store.deposit(Deposit(2, _batches(2), dropped=Tally(1, 1)))
    unsure = store.has_deposit(2)
    store.deposit(Deposit(3, _batches(2), dropped=Tally(1, 1)))

    assert not unsure
    assert store.counts().pending == Tally(2 * COUNT, 2 * COUNT)
    assert store.counts().dropped == Tally(1, 1)


def test_a_node_that_is_killed_and_comes_back_has_all_of_it(
    cluster: Cluster, namespace: str, store: Partitions
) -> None:
    """While it is away a deposit fails; then it is stored, once."""
    store.deposit(Deposit(1, _batches(1)))
    node = cluster.owner(_slot(namespace, 5))

    node.kill()
    with pytest.raises(SpoolError):
        store.deposit(Deposit(2, _batches(2)))
    node.start()
    cluster.wait_until_ok()
    _until(lambda: store.deposit(Deposit(3, _batches(2))))

    assert store.counts().pending == Tally(2 * COUNT, 2 * COUNT)


def test_the_node_that_has_the_slot_is_asked_for_its_replicas(cluster: Cluster, namespace: str) -> None:
    """None of these has one, so nothing counts as stored, and nobody can say whether it is."""
    store = Partitions(RedisStore(cluster.url, namespace=namespace, replicas=1), max_bytes=2**40)

    with pytest.raises(SpoolError, match="0 of 1 replicas"):
        store.deposit(Deposit(1, _batches(1)))
    with pytest.raises(SpoolError, match="0 of 1 replicas"):
        store.has_deposit(1)

    store.close()


def test_every_node_has_to_be_one_that_evicts_nothing(cluster: Cluster, namespace: str) -> None:
    """The last one too."""
    cluster.nodes[2].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(SpoolError, match="maxmemory-policy is allkeys-lru"):
            UsageBuffer(store=RedisStore(cluster.url, namespace=namespace))
    finally:
        cluster.nodes[2].ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_a_node_is_not_taken_for_a_server_nor_a_server_for_a_node(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    """Each is told what the address has to be."""
    with pytest.raises(SpoolError, match=r"take redis\+cluster://"):
        UsageBuffer(f"redis://{servers.HOST}:{cluster.nodes[0].port}/0")
    with Server(tmp_path / "server") as server, pytest.raises(SpoolError, match="take redis://"):
        UsageBuffer(f"redis+cluster://{servers.HOST}:{server.port}")


def test_a_cluster_that_is_away_is_no_error_and_shows_no_secret() -> None:
    """Events wait in memory, as before a server."""
    store = RedisStore("redis+cluster://someone:hunter2@127.0.0.1:1", timeout=0.2)
    servers.require(servers.REDIS)

    with UsageBuffer(store=store) as buffer:
        buffer.record("env_1", 1)
        buffer.close(0.2)
        shown = f"{store!r} {buffer!r} {buffer.path} {buffer.health()!r}"

    assert "127.0.0.1:1" in shown
    assert "hunter2" not in shown
    assert "someone" not in shown


def _batches(name: int) -> List[EncodedBatch]:
    """One of each partition."""
    return [make_batch(COUNT * name + number)._replace(partition=number) for number in range(COUNT)]


def _slot(namespace: str, partition: int) -> int:
    return slot_of(f"{{x402:{namespace}:{partition}}}:in")


def _until(done: Callable[[], object]) -> None:
    pause = threading.Event()  # never set: only waited on
    for _ in range(600):
        with contextlib.suppress(SpoolError):
            done()
            return
        pause.wait(0.05)
    raise AssertionError("it did not come about within half a minute")
