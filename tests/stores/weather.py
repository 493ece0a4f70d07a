"""The store of a round, and what happens to it meanwhile: an engine is killed, full, or cut off from everybody."""

from __future__ import annotations

import contextlib
import pathlib
import random
import threading
from typing import Callable, Dict, Iterator, NamedTuple

from tests.stores.chaos_plan import SQLITE, Plan
from tests.stores.servers import Proxy, Server

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
    with Server(folder / "engine", plan.store, ("--appendfsync", "always")) as server, Proxy(server.port) as proxy:
        strokes: Dict[str, Callable[[random.Random, Callable[[float], object]], None]] = {
            "calm": lambda *_: None,
            "killed": lambda rng, wait: _kill(server, rng, wait),
            "cut off": lambda rng, wait: _cut(proxy, rng, wait),
            "full": lambda rng, wait: _fill(server, rng, wait),
        }
        yield Place(proxy.url, server.url, strokes[plan.weather])


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


def _cut(proxy: Proxy, rng: random.Random, wait: Callable[[float], object]) -> None:
    proxy.cut()
    wait(rng.uniform(*_LENGTHS))
    proxy.mend()


def _fill(server: Server, rng: random.Random, wait: Callable[[float], object]) -> None:
    in_use = next(line for line in server.ask("INFO", "memory").items() if line[0] == "used_memory")[1]
    server.ask("CONFIG", "SET", "maxmemory", int(in_use) + _ROOM_LEFT)
    wait(rng.uniform(*_LENGTHS))
    server.ask("CONFIG", "SET", "maxmemory", 0)
