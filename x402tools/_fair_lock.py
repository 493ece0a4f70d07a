"""A lock that is taken in turns: who waits gets it before whoever had it gets it again."""

from __future__ import annotations

import threading


class FairLock:
    """Like `threading.RLock`, for a few threads of which one would otherwise win again and again.

    Threads that record with durability="fsync" take the connection back to back; with an ordinary lock the flusher,
    which has to wake up first, can lose to them for hundreds of milliseconds, and what it wants to write down is sent
    again if the process is killed meanwhile. Here whoever waits for the lock stands in a turnstile, and the next one
    has to wait behind it.

    A signal handler strikes the main thread between any two steps of this too, and may come here again. So both are
    locks that a thread can take twice, and who has the lock is asked of the lock itself: a note of our own would for a
    moment say something else.
    """

    def __init__(self) -> None:
        self._turnstile = threading.RLock()  # held by the one who is next
        self._lock = threading.RLock()

    def acquire(self, timeout: float = -1) -> bool:
        """Takes the lock, again if this thread has it; False when `timeout` seconds pass first, twice at the most."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # what threading.Condition asks it, too
            return self._lock.acquire()
        try:
            return self._turnstile.acquire(timeout=timeout) and self._lock.acquire(timeout=timeout)
        except BaseException:  # an interrupt just after it was taken: nobody would give it back
            if self._lock._is_owned():  # type: ignore[attr-defined]  # as above
                self._lock.release()
            raise
        finally:
            if self._turnstile._is_owned():  # type: ignore[attr-defined]  # as above
                self._turnstile.release()

    def is_mine(self) -> bool:
        """Whether the calling thread has it, or is next."""
        return bool(self._lock._is_owned() or self._turnstile._is_owned())  # type: ignore[attr-defined]  # as above

    def release(self) -> None:
        """Gives it back, when it was released as often as it was acquired."""
        self._lock.release()

    __enter__ = acquire  # not one call more in which an interrupt could lose it

    def __exit__(self, *exception: object) -> None:
        self.release()
