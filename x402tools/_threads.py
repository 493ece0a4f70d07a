"""Threads that outlive what goes wrong in them, and one that does for the main thread what must not be interrupted."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple, TypeVar

log = logging.getLogger("x402tools")

Result = TypeVar("Result")

# Seconds. Work that fails the moment it starts must not keep a processor busy.
_REST_AFTER_FAILURE = 0.5

_TRY_TO_START_EVERY = 1.0  # seconds; what could not be started is tried again by whoever passes by
_LOOK_EVERY = 0.5  # seconds between looks whether the thread that has to answer is alive


class LastingThread:
    """A daemon thread whose work begins again when an exception ended it, `SystemExit` and `MemoryError` included.

    Args:
        work: returns when the thread may end.
        name: for logs and debuggers.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self.name = name
        self.failure: Optional[str] = None  # what ended the work last, or why the thread cannot be started
        self._work = work
        self._thread: Optional[threading.Thread] = None
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
        thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if self.failure is None:
                log.warning("%s cannot be started (%s): the calling threads do its work", self.name, error)
            self.failure = f"no thread can be started ({error})"
            self._next_try = time.monotonic() + _TRY_TO_START_EVERY
        else:
            self._thread = thread
            self.failure = None

    @property
    def was_started(self) -> bool:
        return self._thread is not None

    @property
    def is_current(self) -> bool:
        """Whether this is asked by the thread itself."""
        return self._thread is threading.current_thread()

    def is_alive(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive()

    def join(self, seconds: float) -> None:
        """Waits for its end, for at most so long; not at all for a thread that does not run or is the calling one."""
        if self._thread is not None and not self.is_current:
            self._thread.join(max(seconds, 0.0))

    def _run(self) -> None:
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


class _Job:
    """Something to be done, and its outcome."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._outcomes: queue.SimpleQueue[Tuple[Any, Optional[Exception]]] = queue.SimpleQueue()

    def do(self) -> None:
        try:
            outcome: Tuple[Any, Optional[Exception]] = self._work(), None
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome = None, error
        self._outcomes.put(outcome)

    def outcome(self, seconds: float) -> Optional[Tuple[Any, Optional[Exception]]]:
        """What the work returned, or what it raised; None when it is not done in time."""
        try:
            return self._outcomes.get(timeout=seconds)
        except queue.Empty:
            return None


class Desk:
    """Runs what must not be interrupted on a thread of its own, for the main thread.

    A signal handler, or the KeyboardInterrupt of Ctrl-C, strikes the main thread in the middle of a transaction too;
    a handler that then records, flushes or closes would wait for what it has interrupted. Here the main thread only
    waits for an answer, which it can do any number of times over. Other threads are never struck and work themselves.

    So the main thread must hold no lock while it waits here that work done here needs.
    """

    def __init__(self) -> None:
        self._jobs: Deque[_Job] = deque()  # the first is being done; it is taken out when it is done
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closing = False
        self._thread = LastingThread(self._serve, "x402tools-desk")
        self._thread.start()

    def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns, or raises."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or not self._thread.is_alive() or sys.is_finalizing():
            return work()
        job = _Job(work)
        self._add(job)
        outcome = None
        while outcome is None:
            if not self._thread.is_alive():
                job.do()  # the thread ended before it came to this job; if it did come to it, the first outcome counts
            outcome = job.outcome(_LOOK_EVERY)
        result, error = outcome
        if error is not None:
            try:
                raise error
            finally:
                del outcome, error  # the traceback holds this frame
        return result  # type: ignore[no-any-return]  # what the work returned

    def post(self, work: Callable[[], object]) -> bool:
        """Has the work done soon, without waiting; False when there is no thread for it. Safe in a `__del__`."""
        if not self._thread.is_alive():
            return False
        self._add(_Job(work))
        return True

    def close(self) -> None:
        """Ends the thread when all jobs are done; jobs after this run where they are."""
        self._closing = True
        self._calls.put(None)
        self._thread.join(_LOOK_EVERY)

    def _add(self, job: _Job) -> None:
        self._jobs.append(job)
        self._calls.put(None)

    def _serve(self) -> None:
        while True:
            while self._jobs:  # also what was there when the thread was started again
                self._jobs[0].do()
                self._jobs.popleft()
            if self._closing:
                return
            self._calls.get()
