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
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def line(machine: Dict[str, Any]) -> str:
    """The same for people."""
    load = " ".join(str(value) for value in machine["load"])
    return (
        f"{machine['python']}, SQLite {machine['sqlite']}, {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, load {load}, {machine['time']}"
    )


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
