"""What a fleet has on a server as somebody sees it who only looks: the counterpart of `SpoolView`, in its words.

It is seen while it moves: events that are folded meanwhile may be missed, and nothing is seen twice.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import TracebackType
from typing import Callable, Iterator, List, Optional, Tuple, Type, Union

from x402tools import RedisStore
from x402tools._batch import Post
from x402tools._cli.glance import Glance
from x402tools._inspect import SpoolView
from x402tools._redis_partitions import engine_of
from x402tools._store import Counts, DeadLetter

_BATCHES_AT_ONCE = 50
_LETTERS_AT_ONCE = 500
_NO_LIMIT = 2**62  # bytes; nothing is stored here

# Seconds. A worker gives a sign every second, and four in the time of its lease when it has much to do.
ALIVE = 30.0


class FleetView:
    """Reads the store at this address. A context manager; for one thread.

    Raises:
        SpoolError: the server cannot be reached or used; every method may raise it too.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(self, store: str) -> None:
        # Also one that would lose usage: nothing is trusted to it here, and what it has may be saved.
        self._engine = engine_of(RedisStore(store, allow_eviction=True), max_bytes=_NO_LIMIT)
        self.path = self._engine.path

    def __enter__(self) -> FleetView:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._engine.close()

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """There is none on a server; see the head of this file."""
        yield

    def counts(self) -> Counts:
        """The ledger, see `Store.counts`."""
        return self._engine.counts()

    def pending(self) -> Iterator[Post]:
        """Every POST that is pending and can be read: first the events that are still to be folded, each as one."""
        # Asked for first, so that what is folded from here on is not seen as events and as a POST too.
        for engine in self._engine.engines:
            sealed = engine.last_sequence()
            yield from self._pages(engine.pending_events, engine.last_recorded())
            yield from self._pages(engine.pending_posts, sealed)

    def _pages(self, page: Callable[[int, int, int], Tuple[int, List[Post]]], up_to: int) -> Iterator[Post]:
        after = 0
        while True:
            after, posts = page(after, up_to, _BATCHES_AT_ONCE)
            if not after:
                return
            yield from posts

    def held(self) -> Iterator[Post]:
        """Nothing is held on a server."""
        return iter(())

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, oldest first."""
        after = 0
        while True:
            letters = self._engine.dead_letters(after, _LETTERS_AT_ONCE)
            if not letters:
                return
            yield from letters
            after = letters[-1].id

    def workers(self) -> List[str]:
        """The names of those that deliver: each has the host and the process id."""
        return sorted(name for name, idle in self._engine.deliverers().items() if idle < ALIVE)


def opened(path: Optional[str], store: Optional[str]) -> Union[SpoolView, FleetView]:
    """The one of the two that is given."""
    if store is not None:
        return FleetView(store)
    assert path is not None
    return SpoolView(path)


def take(view: FleetView) -> Glance:
    """Looks once.

    Raises:
        SpoolError: the server cannot be asked.
    """
    counts, workers = view.counts(), view.workers()
    return Glance(view.path, counts, 0 if workers else None, time.time(), counts.size, (), len(workers))
