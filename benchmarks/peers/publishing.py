"""Contestants that publish to an engine for a while, or only record, and one that takes from the engine and POSTs."""

from __future__ import annotations

import time
from typing import Any, Dict

from benchmarks.harness.machine import Usage, peak_bytes
from benchmarks.peers import publishers


class Publishing:
    """Options: those of `publishers.make`."""

    def __init__(self, options: Dict[str, Any]) -> None:
        self._publisher = publishers.make(options)

    def round(self, seconds: float = 0.0, count: int = 0, rate: float = 0.0) -> Dict[str, Any]:
        """Publishes for so many seconds, or so many events, at a rate or as fast as it can, until the server has all.

        Returns:
            events, the seconds until the last was handed over, wall and CPU seconds until the server has it.
        """
        usage, begin, put, step = Usage(), time.perf_counter(), 0, self._publisher.step
        while put < count or time.perf_counter() - begin < seconds:
            self._publisher.put(step)
            put += step
            ahead = put / rate - (time.perf_counter() - begin) if rate else 0.0
            if ahead > 0:
                time.sleep(ahead)
        handed = time.perf_counter() - begin
        self._publisher.settle()
        return {"events": put, "handed": handed, "peak": peak_bytes(), **usage.stop()}

    def close(self) -> None:
        """Ends the publisher."""
        self._publisher.close()


class Recording:
    """Only records: each batch is published before the next, and that is not counted.

    Options: those of `publishers.make`.
    """

    def __init__(self, options: Dict[str, Any]) -> None:
        self._publisher = publishers.make(options)

    def round(self, seconds: float) -> Dict[str, Any]:
        """Records for so many seconds.

        Returns:
            events, and the wall and CPU seconds that recording them takes: by the fastest of the batches, because it
            is said to be the most that there is.
        """
        begin, walls, cpus, step = time.perf_counter(), [], [], self._publisher.step
        while not walls or time.perf_counter() - begin < seconds:
            usage = Usage()
            self._publisher.put(step)
            used = usage.stop()
            walls.append(used["wall"])
            cpus.append(used["cpu"])
            self._publisher.settle()
        return {"events": len(walls) * step, "wall": min(walls) * len(walls), "cpu": min(cpus) * len(cpus)}

    def close(self) -> None:
        """Ends the publisher."""
        self._publisher.close()


class Delivering:
    """A worker in a process of its own.

    Options: engine, url, buffer (arguments of UsageBuffer), phase: the part of a second of the monotonic clock at which
    it starts. A worker looks once a second and takes what came since anybody looked: those that start together leave
    all of it to the first.
    """

    def __init__(self, options: Dict[str, Any]) -> None:
        from x402tools import UsageBuffer, X402Client

        time.sleep((options["phase"] - time.monotonic()) % 1.0)
        self._opened = time.monotonic()
        self._usage = Usage()
        self._buffer = UsageBuffer(store=options["engine"], deliver=True, **options.get("buffer", {}))
        self._client = X402Client("key", options["url"], buffer=self._buffer)

    def used(self) -> Dict[str, Any]:
        """When it was opened (monotonic clock); wall and CPU seconds since, and the memory."""
        return {"opened": self._opened, "peak": peak_bytes(), **self._usage.stop()}

    def close(self) -> None:
        """Lets others have what it holds."""
        self._client.close()
