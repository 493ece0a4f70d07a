"""What recording, storing and delivering cost on this machine. Run it with `make bench` or `python benchmarks/run.py`.

Three sections, each beside what bounds it:

    hot-path   seconds of the caller's time for one buffered record_usage, while the writer commits and syncs;
               beside it appending to a deque (the least there is), queue.Queue, and waiting for the service
    durable    events committed and synced per second, and CPU per event, all threads counted
    delivery   POSTs per second and CPU per POST against the emulator in a process of its own; beside it the same
               number of plain `requests.Session.post`

What it does not measure: a network (everything is on this machine; a real round trip makes delivery a matter of
`max_concurrency`), other SDKs, many processes on one spool, and recovery after a crash. The emulator takes about as
much CPU for a POST as the client, so on two cores `delivery` says more by its CPU column than by its rate.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import queue
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List

import requests

from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator

METADATA = {"endpoint": "/api/users", "method": "GET", "user_id": "user_123"}
PERCENTILES = (50, 90, 99, 99.9)


def hot_path(quick: bool) -> None:
    calls = 20_000 if quick else 200_000
    print(f"hot-path: microseconds of one call, {calls:,} calls at about 25,000/s, 3 metadata keys")
    ready: collections.deque[Any] = collections.deque()
    waiting: queue.Queue[Any] = queue.Queue()
    with tempfile.TemporaryDirectory() as folder, Emulator(process=True) as emulator:
        envelope = emulator.create_envelope()
        buffer = UsageBuffer(os.path.join(folder, "usage.db"))
        plain = X402Client(emulator.api_key, emulator.base_url)
        _distribution("deque.append of a ready tuple", calls, lambda: ready.append((1, "env", METADATA)))
        _distribution("queue.Queue.put of a ready tuple", calls, lambda: waiting.put((1, "env", METADATA)))
        _distribution("record_usage, buffered", calls, lambda: buffer.record(envelope, 1, METADATA))
        _distribution("record_usage, synchronous", calls // 200, lambda: plain.record_usage(envelope, 1, METADATA))
        dropped = buffer.stats().dropped.events
        print(f"  dropped by the buffer: {dropped}")


def _distribution(name: str, calls: int, call: Callable[[], object]) -> None:
    clock, pause = time.perf_counter_ns, time.sleep
    taken: List[int] = []
    for number in range(calls):
        start = clock()
        call()
        taken.append(clock() - start)
        if number % 50 == 0:
            pause(0.002)
    taken.sort()
    values = [taken[min(int(calls * percent / 100), calls - 1)] / 1000 for percent in PERCENTILES]
    columns = "  ".join(f"p{percent:g} {value:9.2f}" for percent, value in zip(PERCENTILES, values))
    print(f"  {name:34} {columns}  max {taken[-1] / 1000:9.1f}")


def durable(quick: bool) -> None:
    events = 200_000 if quick else 2_000_000
    print(f"durable: {events:,} events committed and synced (durability='interval'), 3 metadata keys, 5,000 users")
    metadata = [{**METADATA, "user_id": f"user_{number * 7919 % 5000}"} for number in range(5000)]
    with tempfile.TemporaryDirectory() as folder:
        buffer = UsageBuffer(os.path.join(folder, "usage.db"), on_queue_full="block")
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(events):
            buffer.record("env_1", 1, metadata[number % 5000])
        buffer.flush(0)  # nobody delivers here: this waits for the commit alone
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        stats = buffer.stats()
        assert stats.pending.events == events, stats
        assert stats.in_memory == 0, stats
        size = stats.spool_bytes / events
        print(f"  {events / wall:,.0f} events/s, {cpu / events * 1e6:.2f} us CPU per event, {size:.1f} bytes on disk")


def delivery(quick: bool) -> None:
    posts = 2_000 if quick else 20_000
    print(f"delivery: {posts:,} POSTs over loopback, 8 under way")
    with Emulator(process=True) as emulator, tempfile.TemporaryDirectory() as folder:
        envelope = emulator.create_envelope()
        session = requests.Session()
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        body: Dict[str, Any] = {"envelopeId": envelope, "amount": 1, "metadata": METADATA}

        def post(_: int) -> None:
            session.post(emulator.base_url + "/usage", json=body, headers=headers, timeout=10).raise_for_status()

        wall, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(post, range(posts)))
        _rate("requests.Session.post, 8 threads", posts, wall, cpu)

        buffer = UsageBuffer(os.path.join(folder, "usage.db"))
        with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(posts):
                client.record_usage(envelope, 1, METADATA)
            delivered = client.flush(timeout=300)
            _rate("recorded, stored and delivered", posts, wall, cpu)
        booked = emulator.ledger().events
        assert delivered, delivered
        assert booked == 2 * posts, booked
        print(f"  booked by the emulator: {booked:,} of {2 * posts:,}")


def _rate(name: str, posts: int, wall: float, cpu: float) -> None:
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {name:34} {posts / wall:8,.0f} POSTs/s  {cpu / posts * 1e6:7.0f} us CPU per POST")


SECTIONS = {"hot-path": hot_path, "durable": durable, "delivery": delivery}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=sorted(SECTIONS), action="append", help="only this one (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.system()}, {machine}")
    for name in arguments.section or SECTIONS:
        SECTIONS[name](arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
