"""A thread that does for the main thread what must not be interrupted.

A signal handler, or the KeyboardInterrupt of Ctrl-C, strikes the main thread in the middle of a transaction too; a
handler that then records, flushes or closes would wait for ever for what it has interrupted. Here the main thread only
waits for an answer, which it can do any number of times over. Other threads are never struck and work themselves. So
the main thread must hold no lock while it waits here that work done here needs.

A fork is such work too: just before it the store is brought to rest (see `_process`), and keeps everybody out until it
is done. A handler may strike in between, and the fork cannot go on before it returns:

1. The forking thread asks for the pause; the desk takes the store's lock and closes the file.
2. A signal: the handler, on the same thread, asks for a commit. Waiting for the fork it would wait for itself.
3. So for this caller the desk opens the file, does the work, closes it again, and only then answers.

Who else asks during the fork waits until it is over.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from typing import Any, Callable, Deque, Optional, Set, Tuple, TypeVar

from x402tools import _process
from x402tools._process import Pausing
from x402tools._threads import LastingThread

Result = TypeVar("Result")
Outcome = Tuple[Any, Optional[Exception]]

_LOOK_EVERY = 0.5  # seconds between looks whether the thread that has to answer is alive


class _Job:
    """Something to be done for a thread, and its outcome."""

    def __init__(self, work: Callable[[], Any], *, of_a_fork: bool = False) -> None:
        self.caller = threading.get_ident()
        self.of_a_fork = of_a_fork
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
        pausing: what has to be at rest while the process forks.
    """

    def __init__(self, pausing: Pausing) -> None:
        self._pausing = pausing
        self._jobs: Deque[_Job] = deque()  # taken out when they are done: a thread that is started again finds them
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._forking: Set[int] = set()  # threads in the middle of a fork; only looked at by the desk's thread
        self._closing = False
        self._thread = LastingThread(self._serve, "x402tools-desk")
        self._thread.start()
        _process.pause_for_forks(self)

    def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns, or raises."""
        if threading.get_ident() != threading.main_thread().ident or sys.is_finalizing():
            return work()
        return self._have_done(_Job(work))  # type: ignore[no-any-return]  # what the work returned

    def close(self) -> None:
        """Ends the thread when all jobs are done; jobs after this run where they are."""
        self._closing = True
        self._calls.put(None)
        self._thread.join(_LOOK_EVERY)

    def pause_for_fork(self) -> None:
        """Runs in the parent just before a fork, on the forking thread."""
        me = threading.get_ident()
        self._have_done(_Job(lambda: self._pause(me), of_a_fork=True))

    def resume_after_fork(self) -> None:
        """Runs in the parent just after the fork."""
        me = threading.get_ident()
        self._have_done(_Job(lambda: self._resume(me), of_a_fork=True))

    def _have_done(self, job: _Job) -> Any:
        self._jobs.append(job)
        self._calls.put(None)
        outcome = None
        while outcome is None:
            if not self._thread.is_alive():
                self._do(job)  # there is none, or it ended before this job; or just after it: the first outcome counts
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

    # -- the thread ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            job = self._next()
            if job is not None:
                self._do(job)
                self._forget(job)
                del job  # or what it holds would live until the next one comes
            elif self._closing and not self._forking:
                return
            else:
                self._calls.get()

    def _next(self) -> Optional[_Job]:
        """The first job that may be done now."""
        for job in list(self._jobs):
            if job.of_a_fork or not self._forking - {job.caller}:
                return job
        return None

    def _do(self, job: _Job) -> None:
        interrupts_a_fork = job.caller in self._forking and not job.of_a_fork
        if not interrupts_a_fork:
            job.do()
            return
        self._pausing.resume_after_fork()
        try:
            job.do()
        finally:
            self._pausing.pause_for_fork()

    def _pause(self, forking: int) -> None:
        if not self._forking:
            self._pausing.pause_for_fork()
        self._forking.add(forking)

    def _resume(self, forking: int) -> None:
        self._forking.discard(forking)
        if not self._forking:
            self._pausing.resume_after_fork()
