"""A contestant that puts events into a store for a while, or times each record of a durable one."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List

from benchmarks.harness.machine import Usage, peak_bytes
from benchmarks.peers import events, stores


class Storer:
    """Options: those of `stores.make`."""

    def __init__(self, options: Dict[str, Any]) -> None:
        self._store = stores.make(options)
        self._stored = 0

    def round(self, seconds: float = 0.0, count: int = 0) -> Dict[str, Any]:
        """Puts events for so many seconds, or so many events, and waits until all are on disk."""
        usage, begin, stored = Usage(), time.perf_counter(), 0
        while stored < count or time.perf_counter() - begin < seconds:
            self._store.put(self._store.step)
            stored += self._store.step
        self._store.settle()
        self._stored += stored
        return {"events": stored, "stored": self._stored, "peak": peak_bytes(), **usage.stop()}

    def size(self) -> int:
        """Bytes on disk."""
        return self._store.size()

    def drain(self) -> Any:
        """Of ours only; see `stores.Ours`."""
        assert isinstance(self._store, stores.Ours)
        return self._store.drain()

    def commits(self, seconds: float, rate: float, burst: int, after: float) -> Dict[str, Any]:
        """Of ours only: records at a pace, and waits for the commit after each burst; nanoseconds of each wait.

        Args:
            after: seconds until the first burst, so that several processes do not all come at once.
        """
        assert isinstance(self._store, stores.Ours)
        buffer, clock = self._store.buffer, time.perf_counter_ns
        taken: List[int] = []
        time.sleep(after)
        usage, begin = Usage(), time.perf_counter()
        while time.perf_counter() - begin < seconds:
            self._store.put(burst)
            start = clock()
            buffer.flush(0)  # nobody delivers here: it returns after the commit and a look at what is pending
            taken.append(clock() - start)
            time.sleep(max(len(taken) * burst / rate - (time.perf_counter() - begin), 0.0))
        return {"events": len(taken) * burst, "nanoseconds": taken, **usage.stop()}

    def timed(self, threads: int, seconds: float) -> Dict[str, Any]:
        """Of ours only: records from several threads for so many seconds; nanoseconds of each call."""
        assert isinstance(self._store, stores.Ours)
        record, metadata, clock = self._store.buffer.record, self._store.metadata, time.perf_counter_ns
        taken: List[List[int]] = [[] for _ in range(threads)]
        end = time.perf_counter_ns() + int(seconds * 1e9)

        def run(mine: List[int]) -> None:
            number, now = 0, clock()
            while now < end:
                start = clock()
                record(events.ENVELOPE, 1, metadata[number % events.USERS])
                now = clock()
                mine.append(now - start)
                number += 1

        usage = Usage()
        workers = [threading.Thread(target=run, args=(mine,)) for mine in taken]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        used = usage.stop()
        calls = [value for mine in taken for value in mine]
        # The pipe to the parent need not carry a million numbers: every so manyth tells the same.
        return {"events": len(calls), "nanoseconds": calls[:: max(len(calls) // 50_000, 1)], **used}
