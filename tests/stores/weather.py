"""The store of a round, and what happens to it meanwhile: an engine is killed, full, or cut off from everybody, or its
replica is, and takes over.
"""

from __future__ import annotations

import collections
import contextlib
import pathlib
import random
import threading
from typing import Callable, Counter, Dict, Iterator, NamedTuple

from tests.stores import servers
from tests.stores.chaos_plan import CLUSTER, FAILOVER, SQLITE, Plan
from tests.stores.pair import Pair
from tests.stores.servers import Cluster, Proxy, Server
from x402tools._redis_nodes import slot_of

# One stroke, from its beginning to its end; waits with the function it is given, and says what it did.
Strike = Callable[[random.Random, Callable[[float], object]], str]

# Seconds between two strokes, and how long each lasts.
_PAUSES, _LENGTHS = (0.5, 2.0), (0.3, 1.5)

# Or so long, of a primary that dies cut off from its replica: shorter than the window of a fold, so that what was read
# meanwhile, of which the replica does not know, is not sealed by then.
_MOMENT = (0.0, 0.15)

# Bytes beyond what is in use at which an engine is full.
_ROOM_LEFT = 20_000


class Place(NamedTuple):
    """Where the store is.

    Attributes:
        store: the path or URL for the round's processes.
        behind: the same for whoever looks at the end, past the proxy.
        strike: one stroke of the weather.
        replicas: so many have to have what is stored.
    """

    store: str
    behind: str
    strike: Strike
    replicas: int = 0


@contextlib.contextmanager
def place(plan: Plan, folder: pathlib.Path) -> Iterator[Place]:
    """The store of a round."""
    if plan.store == SQLITE:
        path = str(folder / "usage.db")
        yield Place(path, path, lambda *_: "")
        return
    split = f"?partitions={plan.partitions}" if plan.partitions else ""
    if plan.weather == FAILOVER:
        with Pair(folder / "engine", plan.store) as pair:
            url = pair.network.url + split
            yield Place(url, url, lambda rng, wait: _fail_over(pair, rng, wait), replicas=1)
        return
    if plan.store == CLUSTER:
        with servers.clustered(folder / "engine") as cluster:
            url = cluster.url + split
            on_nodes = {"killed": _kill_one, "slots moved": _move_slots}[plan.weather]
            yield Place(url, url, lambda rng, wait: on_nodes(cluster, rng, wait))
        return
    with Server(folder / "engine", plan.store, ("--appendfsync", "always")) as server, Proxy(server.port) as proxy:
        strokes: Dict[str, Strike] = {
            "calm": lambda *_: "",
            "killed": lambda rng, wait: _kill(server, rng, wait),
            "cut off": lambda rng, wait: _cut(proxy, rng, wait),
            "full": lambda rng, wait: _fill(server, rng, wait),
        }
        yield Place(proxy.url + split, server.url + split, strokes[plan.weather])


def blow(plan: Plan, there: Place, over: threading.Event) -> Counter[str]:
    """Strikes again and again until it is over; what, and how often."""
    rng = random.Random(f"weather/{plan.store}/{plan.seed}/{plan.number}")
    strokes: Counter[str] = collections.Counter()
    while plan.weather != "calm" and not over.wait(rng.uniform(*_PAUSES)):
        strokes[there.strike(rng, over.wait)] += 1
    return strokes


def _kill(server: Server, rng: random.Random, wait: Callable[[float], object]) -> str:
    server.kill()
    wait(rng.uniform(*_LENGTHS))
    server.start()
    return "killed"


def _kill_one(cluster: Cluster, rng: random.Random, wait: Callable[[float], object]) -> str:
    _kill(rng.choice(cluster.nodes), rng, wait)
    cluster.wait_until_ok()
    return "killed"


def _move_slots(cluster: Cluster, rng: random.Random, _: Callable[[float], object]) -> str:
    """Some of the store's partitions, and what is the namespace's own."""
    tags = [f"{{x402:x402:{partition}}}" for partition in rng.sample(range(16), 4)]
    for tag in (*tags, "{x402:x402}"):
        cluster.move(slot_of(tag), rng.choice(cluster.nodes))
    return "slots moved"


def _cut(proxy: Proxy, rng: random.Random, wait: Callable[[float], object]) -> str:
    proxy.cut()
    wait(rng.uniform(*_LENGTHS))
    proxy.mend()
    return "cut off"


def _fill(server: Server, rng: random.Random, wait: Callable[[float], object]) -> str:
    in_use = next(line for line in server.ask("INFO", "memory").items() if line[0] == "used_memory")[1]
    server.ask("CONFIG", "SET", "maxmemory", int(in_use) + _ROOM_LEFT)
    wait(rng.uniform(*_LENGTHS))
    server.ask("CONFIG", "SET", "maxmemory", 0)
    return "full"


def _fail_over(pair: Pair, rng: random.Random, wait: Callable[[float], object]) -> str:
    """The replica is cut off, or the primary dies and it takes over, or the one and then the other: then all that the
    primary took meanwhile is gone with it, and must not have counted."""
    is_cut, dies = rng.choice(((True, False), (False, True), (True, True)))
    if is_cut:
        pair.cut_off_replica()
        wait(rng.uniform(*(_MOMENT if dies and rng.random() < 0.5 else _LENGTHS)))
    if not dies:
        pair.mend_replica()
        return "replica cut off"
    pair.lose_primary()
    wait(rng.uniform(0.0, _LENGTHS[0]))
    pair.promote()
    wait(rng.uniform(0.0, _LENGTHS[0]))
    pair.renew()
    return "replica promoted after a cut" if is_cut else "replica promoted"
