"""The lock that is taken in turns."""

from __future__ import annotations

import threading
from typing import List

import pytest

from tests.buffer.helpers import wait_until
from x402tools._fair_lock import FairLock


def is_next(lock: FairLock) -> bool:
    """Whether somebody waits who gets it before anybody else."""
    if lock._turnstile.acquire(blocking=False):
        lock._turnstile.release()
        return False
    return True


def test_who_waits_gets_it_before_whoever_had_it() -> None:
    """Giving it back and asking for it again at once comes second, every time."""
    lock = FairLock()
    order: List[str] = []

    def wait() -> None:
        with lock:
            order.append("who waited")

    for _ in range(50):
        waiting = threading.Thread(target=wait)
        with lock:
            waiting.start()
            wait_until(lambda: is_next(lock), "the other waits")
        with lock:
            order.append("who had it")
        waiting.join()

    assert order == ["who waited", "who had it"] * 50


def test_a_thread_takes_it_again() -> None:
    """As often as it likes; it is free when it was given back as often."""
    lock = FairLock()
    with lock, lock:
        assert lock.acquire()
        lock.release()
        assert lock.is_mine()

    assert not lock.is_mine()


def test_waiting_has_an_end() -> None:
    """False after the time-out, and nothing is held then."""
    lock = FairLock()
    answers: List[bool] = []
    with lock:
        thread = threading.Thread(target=lambda: answers.append(lock.acquire(timeout=0.05)))
        thread.start()
        thread.join(10)
        assert not is_next(lock)

    assert answers == [False]


class InterruptedLock:
    """A lock that is taken, and then an interrupt strikes before the caller knows."""

    def __init__(self) -> None:
        self.real = threading.RLock()

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def acquire(self, timeout: float = -1) -> bool:
        self.real.acquire(timeout=timeout)
        raise KeyboardInterrupt


@pytest.mark.parametrize("which", ["_turnstile", "_lock"])
def test_an_interrupt_leaves_it_free(which: str) -> None:
    """What was taken for a caller that never learned of it is given back."""
    lock = FairLock()
    whole = getattr(lock, which)
    setattr(lock, which, InterruptedLock())

    with pytest.raises(KeyboardInterrupt):
        lock.acquire()

    assert not lock.is_mine()
    setattr(lock, which, whole)
    with lock:
        assert lock.is_mine()
