"""A lock that is taken in turns: who waits gets it before whoever had it gets it again."""

from __future__ import annotations

import threading


class FairLock:
    """Like `threading.RLock`, for a few threads of which one would otherwise win again and again.

    Threads that record with durability="fsync" take the connection back to back; with an ordinary lock the flusher,
    which has to wake up first, can lose to them for hundreds of milliseconds, and what it wants to write down is sent
    again if the process is killed meanwhile. Here whoever waits for the lock stands in a turnstile, and the next one
    has to wait behind it.
    """

    def __init__(self) -> None:
        self._turnstile = threading.Lock()  # held by the one who is next
        self._lock = threading.Lock()
        self._owner = 0  # the thread that has it, or 0; only ever compared with one's own
        self._depth = 0

    @property
    def is_mine(self) -> bool:
        """True when this thread has it."""
        return self._owner == threading.get_ident()

    def acquire(self, timeout: float = -1) -> bool:
        """Takes the lock, again if this thread has it; False when `timeout` seconds pass first, twice at the most."""
        me = threading.get_ident()
        if self._owner != me:
            if not self._turnstile.acquire(timeout=timeout):
                return False
            try:
                if not self._lock.acquire(timeout=timeout):
                    return False
            finally:
                self._turnstile.release()
            self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        """Gives it back, when it was released as often as it was acquired."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()
