"""Which cores a process may use, so that what is measured and what drives it do not take CPU from each other."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from typing import Iterator, NamedTuple, Optional, Set

# For who delivers, and for who only keeps a core busy: the load comes before them.
NICE = 10


class Cores(NamedTuple):
    """One core for what is measured, the others for the rest."""

    measured: Set[int]
    others: Set[int]


def apart() -> Optional[Cores]:
    """How the cores of this process are shared out; None where there is only one, or they cannot be chosen."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        return None
    usable = sorted(os.sched_getaffinity(0))
    return Cores({usable[0]}, set(usable[1:])) if len(usable) > 1 else None


@contextlib.contextmanager
def on(cores: Set[int]) -> Iterator[None]:
    """The calling thread, and every process that it starts in the block, runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def give_way(pid: int) -> None:
    """Makes all threads of a process nice."""
    for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """While the block runs a nice process computes on the cores of this one."""
    process = subprocess.Popen([sys.executable, "-c", f"import os\nos.nice({NICE})\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def group_cpu(group: int) -> Optional[float]:
    """CPU seconds used by the processes of a process group so far; None where that is not told."""
    ticks = 0
    try:
        for place in pathlib.Path("/proc").iterdir():
            if place.name.isdigit():
                ticks += _ticks(place, group)
    except FileNotFoundError:  # no /proc
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(place: pathlib.Path, group: int) -> int:
    try:
        # After the name, which may hold spaces: state, parent, group, and from the twelfth on the times.
        fields = (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0  # it has just ended
    return int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
