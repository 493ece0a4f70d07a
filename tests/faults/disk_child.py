"""Scenarios for a process of its own, whose system calls fail; prints what happened as a line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any, Dict, List

from tests.faults.disk_tools import Service, Spool, eventually
from x402tools import UsageBuffer
from x402tools.errors import SpoolError


def deliver_all(path: str, events: str, durability: str = "interval") -> Dict[str, Any]:
    """Records in small groups, with a commit between them, and delivers; the slowest call, and the ledger.

    In a thread: the main thread never waits for the disk by itself.
    """
    spool = Spool(path, Service(), durability=durability)  # type: ignore[arg-type]  # a str is a path too
    slowest, pause = 0.0, threading.Event()

    def record() -> None:
        nonlocal slowest
        for _ in range(int(events) // 10):
            for _ in range(10):
                started = time.monotonic()
                spool.buffer.record("env_1", 1)
                slowest = max(slowest, time.monotonic() - started)
            pause.wait(0.02)

    recording = threading.Thread(target=record)
    recording.start()
    recording.join()
    flushed = bool(spool.buffer.flush(10))
    stats = spool.stats()
    started = time.monotonic()
    spool.buffer.close()
    return {
        "flushed": flushed,
        "slowest": slowest,
        "closing": time.monotonic() - started,
        "booked": spool.service.events,
        "repeats": spool.service.repeats,
        "recorded": stats.recorded.events,
        "delivered": stats.delivered.events,
        "pending": stats.pending.events,
        "errors": spool.errors,
    }


def write_hangs_in_a_caller(path: str) -> Dict[str, Any]:
    """A thread records with durability="commit" until a write of its does not return; then the buffer is closed."""
    service = Service()
    service.open.clear()  # or the flusher would write too
    spool = Spool(path, service, durability="commit")  # type: ignore[arg-type]  # a str is a path too
    began, returned = time.monotonic(), 0

    def record() -> None:
        nonlocal began, returned
        for number in range(1000):
            began = time.monotonic()
            spool.buffer.record("env_1", 1, idempotency_key=f"key-{number}")
            returned += 1

    hanging = threading.Thread(target=record, daemon=True)
    hanging.start()
    eventually(lambda: time.monotonic() > began + 0.5, "a write hangs")
    stored = returned
    beside = threading.Thread(target=lambda: spool.buffer.record("env_1", 1, idempotency_key="beside"), daemon=True)
    beside.start()
    beside.join(4)
    is_beside_waiting = beside.is_alive()
    spool.buffer.record("env_1", 1, idempotency_key="main")
    started = time.monotonic()
    result = spool.buffer.close()
    closing = time.monotonic() - started
    return {
        "stored": stored,
        "closing": closing,
        "problem": result.problem,
        "is_still_hanging": hanging.is_alive(),
        "is_beside_waiting": is_beside_waiting,
        "errors": spool.errors,
        "dropped": len(spool.dropped),
    }


def limited_file_size(path: str, events: str) -> Dict[str, Any]:
    """No file may grow beyond what it has; then it may again."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    service = Service()
    spool = Spool(path, service)  # type: ignore[arg-type]  # a str is a path too
    spool.record(10)
    spool.settle()
    size = max(os.path.getsize(path + end) for end in ("", "-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    service.open.clear()  # or the log would be emptied as often as everything is delivered, and never grow
    spool.record(int(events), size=2000)
    eventually(lambda: path in str(spool.stats().problem), "noticed")
    problem = spool.stats().problem
    service.open.set()
    eventually(lambda: service.events == int(events) + 10, "delivered from memory")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stats = spool.settle()
    spool.buffer.close()
    return {"problem": problem, "delivered": stats.delivered.events, "booked": service.events}


def limited_handles(path: str) -> Dict[str, Any]:
    """Not one more file can be opened: while the buffer is open, and for one that is made now."""
    spool = Spool(path, Service())  # type: ignore[arg-type]  # a str is a path too
    used = len(os.listdir("/proc/self/fd"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, most))
    spool.record(100)
    delivered = bool(spool.buffer.flush(5))
    try:
        UsageBuffer(path + "2")
        refusal = ""
    except SpoolError as error:
        refusal = str(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    spool.record(100)
    stats = spool.settle()
    spool.buffer.close()
    UsageBuffer(path + "2").close()
    return {"delivered_meanwhile": delivered, "refusal": refusal, "delivered": stats.delivered.events}


def fork_beside_a_deleted_file(path: str) -> Dict[str, Any]:
    """The file is deleted under the process, which forks before it has noticed."""
    service = Service()
    service.open.clear()
    spool = Spool(path, service)  # type: ignore[arg-type]  # a str is a path too
    spool.record(300)
    eventually(lambda: spool.stats().in_memory == 0, "stored")
    os.unlink(path)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    service.open.set()
    stats = spool.settle()
    spool.buffer.close()
    return {"recorded": stats.recorded.events, "booked": service.events, "errors": spool.errors}


def open_as(path: str, uid: str) -> Dict[str, Any]:
    """Opens a spool as another user; the refusal."""
    if int(uid):
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    started = time.monotonic()
    try:
        UsageBuffer(path).close()
        refusal = ""
    except SpoolError as error:
        refusal = str(error)
    return {"refusal": refusal, "seconds": time.monotonic() - started}


def commit_one_by_one(path: str, events: str, durability: str) -> Dict[str, Any]:
    """Says on descriptor 1 after each record that it returned, for the power cut."""
    buffer = UsageBuffer(path, durability=durability, deliver=False)
    os.write(1, b"READY\n")
    for number in range(int(events)):
        buffer.record("env_1", 1, idempotency_key=f"key-{number}")
        os.write(1, b"ACK %d\n" % number)
    os._exit(0)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        deliver_all,
        write_hangs_in_a_caller,
        limited_file_size,
        limited_handles,
        fork_beside_a_deleted_file,
        open_as,
        commit_one_by_one,
    )
}


def main(arguments: List[str]) -> None:
    print(json.dumps(SCENARIOS[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
