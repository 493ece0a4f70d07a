"""Contestants that deliver: senders on threads of their own, and ours, which records and is flushed."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from benchmarks.harness.machine import Usage
from benchmarks.peers import events, senders


class Poster:
    """Options: peer, url, threads."""

    def __init__(self, options: Dict[str, Any]) -> None:
        make, url = senders.SENDERS[options["peer"]], options["url"]
        count: int = options["threads"]
        if options["peer"] in senders.SHARED:
            self._senders: List[senders.Send] = [make(url)] * count
        else:
            self._senders = [make(url) for _ in range(count)]
        self._total = 0

    def round(self, posts: int = 0, seconds: float = 0.0, spins: bool = False) -> Dict[str, Any]:
        """Sends so many POSTs, or for so many seconds; the main thread computes meanwhile when `spins`."""
        numbers = itertools.count()
        end = time.monotonic() + seconds
        failures: List[BaseException] = []
        sent: List[int] = []

        def run(send: senders.Send) -> None:
            mine = 0
            try:
                for number in numbers:
                    if number >= posts if posts else time.monotonic() > end:
                        break
                    send(number)
                    mine += 1
            except Exception as error:  # noqa: BLE001 - a peer's error belongs into the report, whatever it is
                failures.append(error)
            sent.append(mine)

        usage = Usage()
        workers = [threading.Thread(target=run, args=(send,)) for send in self._senders]
        for worker in workers:
            worker.start()
        turns = spin(seconds) if spins else None
        for worker in workers:
            worker.join()
        used = usage.stop()
        if failures:
            raise failures[0]
        self._total += sum(sent)
        return {"posts": sum(sent), "total": self._total, "turns": turns, **used}


class Buffered:
    """Options: url, folder, buffer (arguments of UsageBuffer)."""

    def __init__(self, options: Dict[str, Any]) -> None:
        from benchmarks.peers.recorders import Ours

        self._recorder = Ours(options)
        self._metadata = events.metadata()

    def round(self, posts: int = 0, seconds: float = 0.0, spins: bool = False) -> Dict[str, Any]:
        """Records so many events and waits until they are delivered; or counts what is delivered in that time."""
        record = self._recorder.client.record_usage
        before = self._recorder.buffer.stats().delivered.events
        # With a time instead of a number: more than can be delivered in it, recorded before the time begins.
        wanted = posts or int(seconds * 3000)
        usage = Usage()
        for number in range(wanted):
            record(events.ENVELOPE, 1, self._metadata[number % events.USERS])
        turns: Optional[float] = None
        if posts:
            if not self._recorder.client.flush(timeout=300):
                raise RuntimeError("not everything was delivered within 300 seconds")
        elif spins:
            turns = spin(seconds)
        else:
            time.sleep(seconds)
        used = usage.stop()
        total = self._recorder.buffer.stats().delivered.events
        return {"posts": total - before, "total": total, "turns": turns, **used}

    def flush(self) -> bool:
        """Waits until all is delivered."""
        return bool(self._recorder.client.flush(timeout=300))


class Idle:
    """A main thread that computes with nobody beside it."""

    def __init__(self, options: Dict[str, Any]) -> None:
        del options

    def round(self, posts: int = 0, seconds: float = 0.0, spins: bool = True) -> Dict[str, Any]:
        """Computes for so many seconds."""
        del posts, spins
        return {"posts": 0, "turns": spin(seconds), "wall": seconds, "cpu": seconds}


def spin(seconds: float, work: Callable[[], Any] = lambda: sum(range(200))) -> float:
    """Computes in this thread for so many seconds; returns turns a second of CPU that was there to be had."""
    begin = time.monotonic()
    end, turns = begin + seconds, 0
    while time.monotonic() < end:
        work()
        turns += 1
    return turns / (time.monotonic() - begin)
