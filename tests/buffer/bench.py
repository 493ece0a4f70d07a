"""A flusher, a fake store and a scripted service on a bench: turn by turn, by a clock that no test waits for."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from tests.buffer.helpers import (
    Answer,
    FakeClock,
    FakeStore,
    RecordingObserver,
    ScriptedDelivery,
    Shelf,
    assert_adds_up,
    make_batch,
)
from x402tools._flusher import Flusher
from x402tools._store import Tally


class Bench:
    """A flusher with everything around it made by hand."""

    def __init__(self, deliver: ScriptedDelivery, **options: Any) -> None:
        self.shelf = Shelf()
        self.store = FakeStore(self.shelf)
        self.writer = FakeStore(self.shelf)  # the other side of the same shelf, as the writer thread has it
        self.deliver = deliver
        self.observer = RecordingObserver()
        self.clock = FakeClock()
        settings: Dict[str, Any] = {
            "concurrency": 4,
            "max_attempts": 5,
            "flush_at": 100,
            "flush_interval": 1.0,
            "clock": self.clock,
            **options,
        }
        self.flusher = Flusher(self.store, deliver, self.observer, **settings)
        self.turn_takes = 0.0  # seconds
        self._batches = 0

    def record(self, *amounts: int) -> None:
        """One more sealed batch."""
        self._batches += 1
        self.writer.append([make_batch(self._batches, amounts)], Tally())

    def turn(self) -> None:
        """One step, and what comes after it: the next answer, or else the passing of time."""
        self.clock.advance(self.turn_takes)
        pause = self.flusher._safe_step()
        assert pause >= 0
        if self.flusher.in_flight:
            self.flusher._senders.wait(10.0)
        else:
            self.clock.advance(pause)

    def run_until(self, condition: Callable[[], object], turns: int = 20_000) -> None:
        for _ in range(turns):
            if condition():
                return
            self.turn()
        pytest.fail(f"not within {turns} turns; {self.writer.counts()}", pytrace=False)

    def run_for(self, seconds: float) -> None:
        end = self.clock() + seconds
        self.run_until(lambda: self.clock() >= end, turns=500_000)

    def is_empty(self) -> bool:
        return not self.shelf.sealed

    def check(self) -> None:
        """What holds at the end of every test."""
        assert self.deliver.faults == []
        assert_adds_up(self.writer.counts())


MakeBench = Callable[..., Bench]


@contextlib.contextmanager
def benches() -> Iterator[MakeBench]:
    """`make(script, default, **options)` inside; every bench is checked at the end."""
    made: List[Bench] = []

    def make(script: Optional[Dict[str, Sequence[Answer]]] = None, default: Answer = None, **options: Any) -> Bench:
        made.append(Bench(ScriptedDelivery(script, default), **options))
        return made[-1]

    yield make
    for bench in made:
        bench.flusher._senders.stop()
        bench.check()
