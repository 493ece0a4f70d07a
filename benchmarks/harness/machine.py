"""What the figures were measured on, and what a process uses of it."""

from __future__ import annotations

import os
import platform
import resource
import sqlite3
import sys
import time
from typing import Any, Dict

# ru_maxrss counts kilobytes on Linux, bytes on macOS.
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def describe() -> Dict[str, Any]:
    """The machine, the interpreter, and the load before anything is measured."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "load": [round(load, 2) for load in os.getloadavg()],
        "additions_ms": [additions_ms()],
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def line(machine: Dict[str, Any]) -> str:
    """The same for people."""
    load = " ".join(str(value) for value in machine["load"])
    taken = " and ".join(f"{one:.0f}" for one in machine["additions_ms"])
    return (
        f"{machine['python']}, SQLite {machine['sqlite']}, {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, load {load}, "
        f"a million additions {taken} ms, {machine['time']}"
    )


def additions_ms() -> float:
    """Milliseconds that a million additions take now, the median of five times: how fast the machine is at the moment.
    A core that is shared with other machines may be half as fast as an hour before, which the load does not tell."""
    taken = []
    for _ in range(5):
        total, begin = 0, time.perf_counter()
        for number in range(1_000_000):
            total += number
        taken.append((time.perf_counter() - begin) * 1000)
    return round(sorted(taken)[2], 1)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for text in file:
                if text.startswith("model name"):
                    return text.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def resident_bytes() -> int:
    """Memory of this process now; where that is not told, its peak."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT


class Usage:
    """Wall and CPU seconds, all threads, from its making to `stop`."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Dict[str, float]:
        """{"wall": …, "cpu": …}"""
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}
