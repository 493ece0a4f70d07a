"""Runs the user's callbacks on a thread of their own, so that one that raises, blocks or calls back into the buffer
disturbs neither a request nor a delivery."""

from __future__ import annotations

import logging
import queue
import time
from typing import Any, Callable, Optional, Tuple

from x402tools._threads import LastingThread

log = logging.getLogger("x402tools")

# Calls waiting for a callback that is slower than its events. Beyond it calls are left out and counted.
_MOST_WAITING = 10_000


class Callbacks:
    """Calls are made in order, one at a time. Without any callback there is no thread.

    No lock is taken, because a signal handler that records may drop an event while one is being reported.
    """

    def __init__(self, any_callback: bool) -> None:
        self.left_out = 0  # counted without a lock: of two at the same moment one may be missing
        self._calls: queue.SimpleQueue[Optional[Tuple[Callable[..., object], Any]]] = queue.SimpleQueue()
        self._thread = LastingThread(self._run, "x402tools-callbacks")
        if any_callback:
            self._thread.start()

    def call(self, callback: Optional[Callable[..., object]], argument: Any) -> None:
        """Has `callback(argument)` called soon; does nothing when there is no callback."""
        if callback is None:
            return
        if self._calls.qsize() >= _MOST_WAITING:
            self.left_out += 1
            if self.left_out == 1:
                log.warning("a callback of the usage buffer is too slow: calls to it are left out")
            return
        self._calls.put((callback, argument))
        self._thread.start()  # does nothing unless it could not be started before

    def stop(self, deadline: float) -> None:
        """Makes the calls that are waiting until the deadline (of `time.monotonic()`), and ends the thread."""
        if self._thread.was_started:
            self._calls.put(None)
            self._thread.join(deadline - time.monotonic())  # not for itself: a callback may close the buffer

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            callback, argument = call
            try:
                callback(argument)
            except BaseException:  # the user's code, sys.exit() included; the edge of this thread
                log.exception("a callback of the usage buffer raised")
