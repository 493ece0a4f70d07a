"""To wait for another thread, and be woken by it, where a signal handler may come in between.

A handler runs in the main thread, in the middle of anything, and may call whatever a user may call. A plain `Lock`
that the interrupted code holds (an `Event` and a `Condition` have one inside) would then be waited for for ever. Here
nothing is locked: whoever waits puts a queue of its own where the others find it.
"""

from __future__ import annotations

import queue
from typing import Dict


class Bell:
    """Wakes all who wait for something to change."""

    def __init__(self) -> None:
        self._rung = object()  # another one each time it rings
        self._waiting: Dict[int, queue.SimpleQueue[None]] = {}

    @property
    def rung(self) -> object:
        """When it rang last; what is looked at after reading this is not missed by `wait`."""
        return self._rung

    def ring(self) -> None:
        self._rung = object()
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def wait(self, since: object, seconds: float) -> None:
        """Returns when it has rung after `rung` was `since`, or after the seconds."""
        mine: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting[id(mine)] = mine
        try:
            if self._rung is since and seconds > 0:  # looked at after it can be found, so that no ring slips through
                mine.get(timeout=seconds)
        except queue.Empty:
            pass
        finally:
            del self._waiting[id(mine)]


class Flag:
    """Goes up once, and wakes all who wait for it: what `threading.Event` is to ordinary code."""

    def __init__(self) -> None:
        self._up = False
        self._bell = Bell()

    def set(self) -> None:
        self._up = True
        self._bell.ring()

    def is_set(self) -> bool:
        return self._up

    def wait(self, seconds: float) -> bool:
        """Returns when it is up, or after the seconds; whether it is up."""
        rung = self._bell.rung
        if not self._up:
            self._bell.wait(rung, seconds)
        return self._up
