"""Runs the user's callbacks on a thread of their own, so that one that raises, blocks or calls back into the buffer
disturbs neither a request nor a delivery."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Callable, Optional, Tuple

log = logging.getLogger("x402tools")

# Calls waiting for a callback that is slower than its events. Beyond it calls are left out and counted.
_MOST_WAITING = 10_000


class Callbacks:
    """Calls are made in order, one at a time. Without any callback there is no thread."""

    def __init__(self) -> None:
        self.left_out = 0
        self._calls: queue.SimpleQueue[Optional[Tuple[Callable[..., object], Any]]] = queue.SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()  # guards starting the thread, and left_out

    def call(self, callback: Optional[Callable[..., object]], argument: Any) -> None:
        """Has `callback(argument)` called soon; does nothing when there is no callback."""
        if callback is None:
            return
        with self._lock:
            if self._calls.qsize() >= _MOST_WAITING:
                self.left_out += 1
                if self.left_out == 1:
                    log.warning("a callback of the usage buffer is too slow: calls to it are left out")
                return
            self._calls.put((callback, argument))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="x402tools-callbacks", daemon=True)
                self._thread.start()

    def stop(self, timeout: float) -> None:
        """Makes the calls that are waiting, for at most `timeout` seconds, and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            if thread is not threading.current_thread():  # a callback may close the buffer
                thread.join(max(timeout, 0.0))

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
