"""A contestant that times each call of a recorder, at a steady pace, from one thread or several."""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List

from benchmarks.harness.machine import Usage, peak_bytes
from benchmarks.peers import events, recorders


class Caller:
    """Options: those of `recorders.make`."""

    def __init__(self, options: Dict[str, Any]) -> None:
        self._recorder = recorders.make(options)
        self._metadata = events.metadata()
        self._calls = 0

    def round(self, calls: int, threads: int, rate: float, burst: int) -> Dict[str, Any]:
        """Calls in bursts, `rate` calls a second in all.

        Returns:
            nanoseconds of each call; wall and CPU seconds of the round.
        """
        taken: List[List[int]] = [[] for _ in range(threads)]
        interval = burst / rate * threads
        usage = Usage()
        if threads == 1:
            self._run(taken[0], calls, interval, burst)
        else:
            workers = [
                threading.Thread(target=self._run, args=(one, calls // threads, interval, burst)) for one in taken
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        used = usage.stop()
        self._calls += sum(len(one) for one in taken)
        return {"nanoseconds": [value for one in taken for value in one], **used}

    def _run(self, taken: List[int], calls: int, interval: float, burst: int) -> None:
        call, clock, metadata = self._recorder.call, time.perf_counter_ns, self._metadata
        envelope, users = events.ENVELOPE, len(self._metadata)
        due = time.perf_counter()
        for number in range(calls):
            if number % burst == 0:
                due += interval
                rest = due - time.perf_counter()
                if rest > 0:
                    time.sleep(rest)
            usage = metadata[number % users]
            start = clock()
            call(envelope, 1, usage)
            taken.append(clock() - start)

    def settle(self, seconds: float) -> Dict[str, Any]:
        """Waits for deliveries; returns the recorder's own account, the calls so far, and the memory."""
        self._recorder.settle(seconds)
        return {"calls": self._calls, "peak": peak_bytes(), **self._recorder.account()}

    def close(self) -> None:
        """Ends the recorder."""
        self._recorder.close()
