"""A thread that does for the main thread what must not be interrupted.

A signal handler, or the KeyboardInterrupt of Ctrl-C, strikes the main thread in the middle of a transaction too; a
handler that then records, flushes or closes would wait for ever for what it has interrupted. Here the main thread only
waits for an answer, which it can do any number of times over. Other threads are never struck and work themselves. So
the main thread must hold no lock while it waits here that work done here needs.

Two things remain that come in between on a thread that has the store's lock: a `__del__` when the collector runs in
the middle of SQL, on whatever thread, and a signal handler in the middle of a fork, during which the forking thread
keeps the store (see `_process`). Whatever they waited for would wait for them. They are refused at once; what they
record is stored by the next commit.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple, TypeVar

from x402tools._threads import LastingThread
from x402tools.errors import SpoolError

Result = TypeVar("Result")
Outcome = Tuple[Any, Optional[Exception]]

_LOOK_EVERY = 0.5  # seconds between looks whether the thread that has to answer is alive


class InBetweenError(SpoolError):
    """This thread is in the middle of using the store, or of a fork."""


class _Job:
    """Something to be done, and its outcome."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def do(self) -> None:
        try:
            outcome: Outcome = self._work(), None
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome = None, error
        self._outcomes.put(outcome)

    def outcome(self, seconds: float) -> Optional[Outcome]:
        """What the work returned, or what it raised; None when it is not done in time."""
        try:
            return self._outcomes.get(timeout=seconds)
        except queue.Empty:
            return None


class Desk:
    """The thread and what waits for it.

    Args:
        is_in_use_here: whether the calling thread is in the middle of using what the work is about.
    """

    def __init__(self, is_in_use_here: Callable[[], bool]) -> None:
        self.is_in_between = is_in_use_here
        self._jobs: Deque[_Job] = deque()  # taken out when they are done: a thread that is started again finds them
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closing = False
        self._thread = LastingThread(self._serve, "x402tools-desk")
        self._thread.start()

    def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns, or raises.

        Raises:
            InBetweenError: the calling thread cannot wait for it.
        """
        if self.is_in_between():
            raise InBetweenError("this thread is in the middle of using the spool, or of a fork: try again afterwards")
        if threading.get_ident() != threading.main_thread().ident or sys.is_finalizing():
            return work()
        return self._have_done(_Job(work))  # type: ignore[no-any-return]  # what the work returned

    def close(self) -> None:
        """Ends the thread when all jobs are done; jobs after this run where they are."""
        self._closing = True
        self._calls.put(None)
        self._thread.join(_LOOK_EVERY)

    def _have_done(self, job: _Job) -> Any:
        self._jobs.append(job)
        self._calls.put(None)
        outcome = job.outcome(_LOOK_EVERY if self._thread.is_alive() else 0)
        while outcome is None:
            if not self._thread.is_alive():  # there is none, or it ended before this job
                job.do()  # once more, in vain, if it ended just after it: the first outcome counts
                self._forget(job)
            outcome = job.outcome(_LOOK_EVERY)
        result, error = outcome
        if error is not None:
            try:
                raise error
            finally:
                del outcome, error  # the traceback holds this frame
        return result

    def _forget(self, job: _Job) -> None:
        try:
            self._jobs.remove(job)
        except ValueError:
            pass  # the thread that has just ended did it

    def _serve(self) -> None:
        while True:
            while self._jobs:
                job = self._jobs[0]
                job.do()
                self._forget(job)
                del job  # or what it holds would live until the next one comes
            if self._closing:
                return
            self._calls.get()
