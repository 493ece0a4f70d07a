"""How long this machine keeps processes waiting: for a processor, and for the disk.

What may be lost in the last 20 ms is lost in more when the machine stops everybody for 100. So the round measures
that beside its processes, and the judge allows for it.
"""

from __future__ import annotations

import os
import pathlib
import threading
from collections import deque
from typing import Deque, Tuple

from tests.conservation.logs import now

_LOOK_EVERY = 0.01  # seconds
_SYNC_EVERY = 5  # looks; more often it would be a load of its own
_BLOCK = b"x" * 4096

# A process that stores has to win a processor, write and sync, and may just have missed a turn of each.
_TURNS = 2

# Nanoseconds before a moment in which a pause still mattered for it, and moments that are remembered.
_BEFORE = 1_000_000_000
_KEPT = 100_000


class Pulse:
    """A thread that waits for 10 ms, again and again, and notes how late it was; a context manager."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / "pulse"
        self._pauses: Deque[Tuple[int, int]] = deque(maxlen=_KEPT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def stall(self, start: int, end: int) -> int:
        """Nanoseconds that something may have been kept waiting from `start` to `end`, or shortly before."""
        pauses = [pause for at, pause in list(self._pauses) if start - _BEFORE <= at <= end]
        return _TURNS * max(pauses, default=0)

    def _run(self) -> None:
        descriptor = os.open(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        looks = 0
        before = now()
        while not self._ended.wait(_LOOK_EVERY):
            looks += 1
            if looks % _SYNC_EVERY == 0:
                # At the end of the file, like a write-ahead log that grows: then the sync waits for the journal of the
                # file system too, and with it for what everybody else has just written.
                os.pwrite(descriptor, _BLOCK, looks * len(_BLOCK))
                os.fsync(descriptor)
            at = now()
            self._pauses.append((at, at - before - int(_LOOK_EVERY * 1e9)))
            before = at
        os.close(descriptor)
