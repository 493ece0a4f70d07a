"""A contestant that records, at a pace or as fast as it can, and can be killed while it does: how many calls have
returned is in a file that its death does not take along."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from benchmarks.harness.machine import Usage, resident_bytes
from benchmarks.peers import events, recorders

_SLOT = 8  # bytes a thread
MOST_THREADS = 64


def returned(path: str) -> int:
    """Calls that have returned in the process that was given this progress file."""
    with open(path, "rb") as file:
        content = file.read()
    return sum(struct.unpack(f"<{len(content) // _SLOT}Q", content))


class Recording:
    """Options: those of `recorders.make`, groups (0: users), progress (path of the file)."""

    def __init__(self, options: Dict[str, Any]) -> None:
        if options["peer"] == "ours":
            from x402tools import UsageBuffer, X402Client  # noqa: F401 - importing is no part of opening

        self._opened_at = time.monotonic()
        self._memory_before = resident_bytes()
        self._recorder = recorders.make(options)
        self._metadata = events.groups(options["groups"]) if options.get("groups") else events.metadata()
        self._room: Optional[Callable[[], bool]] = None
        if options["peer"] == "segment":
            queue = self._recorder.client.queue
            self._room = lambda: queue.qsize() < 9000
        self._progress: Optional[mmap.mmap] = None
        if "progress" in options:
            with open(options["progress"], "w+b") as file:
                file.truncate(_SLOT * MOST_THREADS)
                self._progress = mmap.mmap(file.fileno(), _SLOT * MOST_THREADS)

    def record(
        self, count: int = 0, seconds: float = 0.0, rate: float = 0.0, threads: int = 1, waits: bool = False
    ) -> Dict[str, Any]:
        """Records so many events, or for so many seconds.

        Args:
            count: events of each thread.
            seconds: instead of a count.
            rate: events a second of each thread; 0 is as fast as it can.
            threads: how many record.
            waits: whether a peer that would drop is waited for; only segment needs it.

        Returns:
            events recorded, and wall and CPU seconds.
        """
        done = [0] * threads
        usage = Usage()

        def run(thread: int) -> None:
            done[thread] = self._record(thread, count, seconds, rate, self._room if waits else None)

        if threads == 1:
            run(0)
        else:
            workers = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        return {"events": sum(done), **usage.stop()}

    def _record(self, thread: int, count: int, seconds: float, rate: float, room: Any) -> int:
        call, metadata, progress = self._recorder.call, self._metadata, self._progress
        size, place, number, begin = len(metadata), thread * _SLOT, 0, time.monotonic()
        while number < count if count else time.monotonic() - begin < seconds:
            for _ in range(20):
                call(events.ENVELOPE, 1, metadata[number % size])
                number += 1
                if progress is not None:
                    progress[place : place + _SLOT] = number.to_bytes(_SLOT, "little")
            ahead = number / rate - (time.monotonic() - begin) if rate else 0.0
            if ahead > 0:
                time.sleep(ahead)
            while room is not None and not room():
                time.sleep(0.001)
        return number

    def settle(self, seconds: float) -> Dict[str, Any]:
        """Waits until all is delivered, at most so long; returns the recorder's account, wall and CPU seconds."""
        usage = Usage()
        self._recorder.settle(seconds)
        return {**usage.stop(), **self._recorder.account()}

    def watch(self, seconds: float) -> Dict[str, Any]:
        """Of ours only: lets it deliver for so long.

        Returns:
            when it was opened (monotonic clock), memory before and at the most in MiB, events delivered.
        """
        most, end = resident_bytes(), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            most = max(most, resident_bytes())
        account = self._recorder.account()
        return {
            "opened": self._opened_at,
            "before": self._memory_before / 2**20,
            "most": most / 2**20,
            "delivered": account["delivered"],
        }

    def serve(self, seconds: float, rate: float, work: int, samples: int) -> Dict[str, Any]:
        """Of ours only: a service that computes all the time and records at a pace.

        Returns:
            events recorded; per sample the memory in MiB and the age of the oldest pending event; wall and CPU.
        """
        call, metadata = self._recorder.call, self._metadata
        stats = self._recorder.buffer.stats
        memory: List[float] = []
        ages: List[float] = []
        usage, begin, number, sampled = Usage(), time.monotonic(), 0, 0
        while True:
            now = time.monotonic() - begin
            if now > seconds:
                break
            while number < now * rate:
                call(events.ENVELOPE, 1, metadata[number % len(metadata)])
                number += 1
            sum(range(work))
            if now >= (sampled + 1) * seconds / samples:
                sampled += 1
                memory.append(resident_bytes() / 2**20)
                ages.append(stats().oldest_pending_age or 0.0)
        return {"events": number, "memory": memory, "ages": ages, **usage.stop()}

    def metering(self, seconds: float, rate: float, work: int) -> Dict[str, float]:
        """A service that computes all the time and records at a pace; what of its CPU the metering takes.

        Measured by the CPU clocks of the threads, because the work beside it varies by more than the metering costs.

        Returns:
            CPU microseconds of an event: in the calls (with the clock's own time) and in all other threads.
        """
        call, metadata, clock = self._recorder.call, self._metadata, time.thread_time_ns
        in_calls, number, begin = 0, 0, time.monotonic()
        process, main = time.process_time(), time.thread_time()
        while True:
            now = time.monotonic() - begin
            if now > seconds:
                break
            while number < now * rate:
                before = clock()
                call(events.ENVELOPE, 1, metadata[number % len(metadata)])
                in_calls += clock() - before
                number += 1
            sum(range(work))
        self._recorder.settle(0.0)
        elsewhere = (time.process_time() - process) - (time.thread_time() - main)
        return {"calls": in_calls / number / 1000, "threads": elsewhere / number * 1e6}


def new_progress(folder: str) -> str:
    """The path of a progress file."""
    return os.path.join(folder, "progress")
