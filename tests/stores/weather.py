"""The store of a round, and what happens to it meanwhile: an engine is killed, full, or cut off from everybody."""

from __future__ import annotations

import contextlib
import pathlib
import random
import threading
from typing import Callable, Dict, Iterator, NamedTuple

from tests.stores import servers
from tests.stores.chaos_plan import CLUSTER, SQLITE, Plan
from tests.stores.servers import Cluster, Proxy, Server
from x402tools._redis_nodes import slot_of

# Seconds between two strokes, and how long each lasts.
_PAUSES, _LENGTHS = (0.5, 2.0), (0.3, 1.5)

# Bytes beyond what is in use at which an engine is full.
_ROOM_LEFT = 20_000


class Place(NamedTuple):
    """Where the store is.

    Attributes:
        store: the path or URL for the round's processes.
        behind: the same for whoever looks at the end, past the proxy.
        strike: one stroke of the weather, from its beginning to its end; waits with the function it is given.
    """

    store: str
    behind: str
    strike: Callable[[random.Random, Callable[[float], object]], None]


@contextlib.contextmanager
def place(plan: Plan, folder: pathlib.Path) -> Iterator[Place]:
    """The store of a round."""
    if plan.store == SQLITE:
        path = str(folder / "usage.db")
        yield Place(path, path, lambda *_: None)
        return
    if plan.store == CLUSTER:
        with servers.clustered(folder / "engine") as cluster:
            url = f"{cluster.url}?partitions={plan.partitions}" if plan.partitions else cluster.url
            on_nodes = {"killed": _kill_one, "slots moved": _move_slots}[plan.weather]
            yield Place(url, url, lambda rng, wait: on_nodes(cluster, rng, wait))
        return
    with Server(folder / "engine", plan.store, ("--appendfsync", "always")) as server, Proxy(server.port) as proxy:
        strokes: Dict[str, Callable[[random.Random, Callable[[float], object]], None]] = {
            "calm": lambda *_: None,
            "killed": lambda rng, wait: _kill(server, rng, wait),
            "cut off": lambda rng, wait: _cut(proxy, rng, wait),
            "full": lambda rng, wait: _fill(server, rng, wait),
        }
        split = f"?partitions={plan.partitions}" if plan.partitions else ""
        yield Place(proxy.url + split, server.url + split, strokes[plan.weather])


def blow(plan: Plan, there: Place, over: threading.Event) -> int:
    """Strikes again and again until it is over; how often."""
    rng = random.Random(f"weather/{plan.store}/{plan.seed}/{plan.number}")
    strokes = 0
    while plan.weather != "calm" and not over.wait(rng.uniform(*_PAUSES)):
        there.strike(rng, over.wait)
        strokes += 1
    return strokes


def _kill(server: Server, rng: random.Random, wait: Callable[[float], object]) -> None:
    server.kill()
    wait(rng.uniform(*_LENGTHS))
    server.start()


def _kill_one(cluster: Cluster, rng: random.Random, wait: Callable[[float], object]) -> None:
    _kill(rng.choice(cluster.nodes), rng, wait)
    cluster.wait_until_ok()


def _move_slots(cluster: Cluster, rng: random.Random, _: Callable[[float], object]) -> None:
    """Some of the store's partitions, and what is the namespace's own."""
    tags = [f"{{x402:x402:{partition}}}" for partition in rng.sample(range(16), 4)]
    for tag in (*tags, "{x402:x402}"):
        cluster.move(slot_of(tag), rng.choice(cluster.nodes))


def _cut(proxy: Proxy, rng: random.Random, wait: Callable[[float], object]) -> None:
    proxy.cut()
    wait(rng.uniform(*_LENGTHS))
    proxy.mend()


def _fill(server: Server, rng: random.Random, wait: Callable[[float], object]) -> None:
    in_use = next(line for line in server.ask("INFO", "memory").items() if line[0] == "used_memory")[1]
    server.ask("CONFIG", "SET", "maxmemory", int(in_use) + _ROOM_LEFT)
    wait(rng.uniform(*_LENGTHS))
    server.ask("CONFIG", "SET", "maxmemory", 0)
