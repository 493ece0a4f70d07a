"""A process of a round: records through the public API, or delivers, on whichever store it is given.

    python -m tests.stores.chaos_process recorder STORE REPLICAS BASE_URL NAME EVENTS SECONDS COALESCE SPILL
    python -m tests.stores.chaos_process worker STORE REPLICAS BASE_URL NAME

STORE is a path or an engine's URL; REPLICAS of it have to have what is stored; SPILL is a path, for what an engine does
not take, or nothing. A recorder prints one line of JSON at its end: what `record_usage` took, by envelope. A worker
prints "ready" and delivers until its standard input ends.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import threading
import time
from typing import Any, Dict, List, Tuple

from tests.stores.chaos_plan import LEASE, amount_of
from x402tools import SpoolError, UsageBuffer, X402Client
from x402tools._inspect import SpoolView
from x402tools.buffer import BufferStats

ENVELOPES = 10
_ENDPOINTS = ("/a", "/b", "/c")

# Seconds. An engine that is away is back long before; `close` returns as soon as everything is stored.
_CLOSE = 60.0

# Seconds. Short, so that a round has many folds.
_WINDOW = 0.2


def open_buffer(store: str, spill: str = "", replicas: int = 0, **options: Any) -> UsageBuffer:
    """A buffer on this store, with leases short enough to be stolen."""
    if "://" not in store:
        return UsageBuffer(store, **options)
    from x402tools import RedisStore

    return UsageBuffer(store=RedisStore(store, lease=LEASE, spill=spill or None, replicas=replicas), **options)


def _started(store: str, base_url: str, name: str, **options: Any) -> Tuple[X402Client, UsageBuffer]:
    """A client and its buffer; tries again as whoever supervises a process would. A file cannot be opened while another
    process is stalled in the middle of a transaction."""
    never = threading.Event()  # only waited on
    deadline = time.monotonic() + _CLOSE
    while True:
        try:
            buffer = open_buffer(store, **options)
            return X402Client(lambda: f"sk_{name}", base_url, timeout=(1.0, 1.0), buffer=buffer), buffer
        except SpoolError:
            if time.monotonic() > deadline:
                raise
        never.wait(0.1)


def record(
    store: str, replicas: int, base_url: str, name: str, events: int, seconds: float, *, coalesce: bool, spill: str
) -> None:
    """Records so many events in about so many seconds, and tells what was taken."""
    rng = random.Random(name)
    never = threading.Event()  # only waited on
    options = {"deliver": False, "coalesce": coalesce, "spill": spill, "replicas": replicas}
    client, buffer = _started(store, base_url, name, **options)
    taken: Dict[str, List[int]] = {}
    marks: List[str] = []
    with client:
        start = time.monotonic()
        for count in range(events):
            envelope, amount, mark = f"env_{rng.randrange(ENVELOPES)}", amount_of(rng), f"{name}/{count}"
            metadata = {"endpoint": rng.choice(_ENDPOINTS)} if coalesce else {"mark": mark}
            if client.record_usage(envelope, amount, metadata).pending:
                sums = taken.setdefault(envelope, [0, 0])
                sums[0] += 1
                sums[1] += amount
                if not coalesce:
                    marks.append(mark)
            if count % 20 == 19:
                never.wait(max(start + seconds * (count + 1) / events - time.monotonic(), 0.0))
        buffer.close(_CLOSE)
        stats = _stats(buffer, never)
    if spill:
        _hand_on(store, spill, replicas, never)
    print(json.dumps({"taken": taken, "marks": marks, "in_memory": stats.in_memory, "problem": stats.problem}))


def _hand_on(store: str, spill: str, replicas: int, never: threading.Event) -> None:
    """Waits, as the next process would, until the engine has what lies in the file."""
    deadline = time.monotonic() + _CLOSE
    with open_buffer(store, spill, replicas, deliver=False), SpoolView(spill) as file:
        while file.counts().pending.events and time.monotonic() < deadline:
            never.wait(0.1)


def _stats(buffer: UsageBuffer, never: threading.Event) -> BufferStats:
    """What it says as soon as the engine can be asked."""
    deadline = time.monotonic() + _CLOSE
    while True:
        try:
            return buffer.stats()
        except SpoolError:
            if time.monotonic() > deadline:
                raise
        never.wait(0.1)


def work(store: str, replicas: int, base_url: str, name: str) -> None:
    """Delivers until standard input ends."""
    options = {"coalesce": True, "coalesce_window": _WINDOW, "flush_interval": 0.1, "replicas": replicas}
    client, buffer = _started(store, base_url, name, deliver=True, **options)
    with client:
        print("ready", flush=True)
        sys.stdin.read()
        buffer.close(10.0)


def main() -> None:
    faulthandler.enable()  # a hang is ended with SIGABRT, to see where it was
    role, store, replicas, base_url, name, *rest = sys.argv[1:]
    if role == "worker":
        work(store, int(replicas), base_url, name)
        return
    events, seconds, coalesce, spill = rest
    record(store, int(replicas), base_url, name, int(events), float(seconds), coalesce=coalesce == "True", spill=spill)


if __name__ == "__main__":
    main()
