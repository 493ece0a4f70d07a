"""How a spool, or a store on a server, stands at a moment: for `status`, `watch` and whoever else tells it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

from x402tools import _inspect, _spool_file
from x402tools._inspect import SpoolView
from x402tools._store import Counts, Tally

LEDGER = ("recorded", "delivered", "pending", "dead", "dropped")


class Glance(NamedTuple):
    """A spool at a moment.

    Attributes:
        counts: its ledger.
        deliverer: the process that delivers; 0 when it cannot be seen from here, None when nobody does.
        at: seconds since 1970.
        file_bytes: of the file and its log together.
        set_aside: damaged files beside it.
        workers: of a store on a server, how many deliver; None for a file.
    """

    path: str
    counts: Counts
    deliverer: Optional[int]
    at: float
    file_bytes: int
    set_aside: Tuple[str, ...]
    workers: Optional[int] = None

    @property
    def oldest_pending_age(self) -> Optional[float]:
        """Seconds."""
        oldest = self.counts.oldest_pending_at
        return None if oldest is None else max(self.at - oldest, 0.0)

    @property
    def adds_up(self) -> bool:
        """Whether recorded = delivered + pending + dead + dropped, in events and in units."""
        counts = self.counts
        return counts.recorded == counts.delivered.plus(counts.pending).plus(counts.dead).plus(counts.dropped)

    @property
    def who_delivers(self) -> str:
        """For people."""
        if self.workers is None:
            return process_name(self.deliverer)
        return f"{self.workers} worker{'' if self.workers == 1 else 's'}" if self.workers else "nobody"

    def tallies(self) -> Iterator[Tuple[str, Tally]]:
        """The ledger by name, and whatever else the store counts in events and units."""
        counted = self.counts._asdict()
        yield from ((name, counted[name]) for name in LEDGER)
        yield from ((name, one) for name, one in counted.items() if name not in LEDGER and isinstance(one, Tally))

    def document(self) -> Dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            **dict(self.tallies()),
            "oldest_pending_age": self.oldest_pending_age,
            "delivering_pid": self.deliverer,
            "adds_up": self.adds_up,
            "spool_bytes": self.counts.size,
            "file_bytes": self.file_bytes,
            "set_aside": list(self.set_aside),
            **({} if self.workers is None else {"workers": self.workers}),
        }


def take(view: SpoolView) -> Glance:
    """Looks once.

    Raises:
        SpoolError: the spool cannot be read.
    """
    counts = view.counts()
    return Glance(
        path=view.path,
        counts=counts,
        deliverer=_inspect.delivering_process(view.path),
        at=time.time(),
        file_bytes=sum(_size(view.path + part) for part in ("", "-wal")),
        set_aside=tuple(_spool_file.files_set_aside(view.path)),
    )


def process_name(pid: Optional[int]) -> str:
    """A process for people: its id and the name of its program, never its arguments, which may hold a key."""
    if pid is None:
        return "nobody"
    if pid == 0:
        return "a process that cannot be seen from here"
    name = ""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
    return f"process {pid} ({name})" if name else f"process {pid}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
