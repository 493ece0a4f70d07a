"""Threads that outlive what goes wrong in them."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from x402tools._bell import Flag

log = logging.getLogger("x402tools")

# Seconds. Work that fails the moment it starts must not keep a processor busy.
_REST_AFTER_FAILURE = 0.5

_TRY_TO_START_EVERY = 1.0  # seconds; what could not be started is tried again by whoever passes by

_LAST_STEPS = 1.0  # seconds for what Python itself does at the end of a thread; it takes microseconds


class LastingThread:
    """A daemon thread whose work begins again when an exception ended it, `SystemExit` and `MemoryError` included.

    It keeps its own account of whether it runs: up to CPython 3.12 a `threading.Thread` says of itself that it has
    ended once Ctrl-C has interrupted a `join()`, and the work would be begun a second time beside the first.

    Args:
        work: returns when the thread may end.
        name: for logs and debuggers.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self.name = name
        self.failure: Optional[str] = None  # what ended the work last, or why the thread cannot be started
        self._work = work
        self._thread: Optional[threading.Thread] = None
        self._ended = Flag()  # of _thread
        self._done = False
        self._next_try = 0.0
        self._starting = threading.Lock()  # held by the one who starts it; nobody waits for it

    def start(self) -> None:
        """Starts it if that is possible, and it does not run and has not done its work; never raises.

        It is impossible at the system's limit of threads, and from CPython 3.12 on while the interpreter is ending.
        """
        if self._done or self.is_alive() or time.monotonic() < self._next_try:
            return
        if not self._starting.acquire(blocking=False):  # another thread, or the code that a signal has interrupted
            return
        try:
            if not self.is_alive():
                self._start()
        finally:
            self._starting.release()

    def _start(self) -> None:
        # Known before it runs: an interrupt can come while start() waits for the thread, which runs all the same.
        self._ended = Flag()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), name=self.name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            if self.failure is None:
                log.warning("%s cannot be started (%s): the calling threads do its work", self.name, error)
            self.failure = f"no thread can be started ({error})"
            self._next_try = time.monotonic() + _TRY_TO_START_EVERY
        else:
            self.failure = None

    @property
    def was_started(self) -> bool:
        return self._thread is not None

    @property
    def is_current(self) -> bool:
        """Whether this is asked by the thread itself."""
        return self._thread is not None and self._thread.ident == threading.get_ident()

    def is_alive(self) -> bool:
        return self._thread is not None and not self._ended.is_set()

    def join(self, seconds: float) -> None:
        """Waits for its end, for at most so long; not at all for a thread that does not run or is the calling one."""
        thread = self._thread
        if thread is not None and not self.is_current and self._ended.wait(seconds):
            thread.join(_LAST_STEPS)

    def _run(self, ended: Flag) -> None:
        try:
            self._work_until_done()
        finally:
            ended.set()

    def _work_until_done(self) -> None:
        failed = False
        while True:
            try:
                if failed:
                    time.sleep(_REST_AFTER_FAILURE)
                self._work()
                self._done = True
                return
            except BaseException as error:  # whatever it is, nobody else would do the work
                failed = True
                self.failure = f"failed and was started again ({type(error).__name__})"
                log.exception("%s failed unexpectedly; nothing is lost and it starts again", self.name)
