"""Ctrl-C, SIGTERM and SIGHUP as a flag to wait for, instead of an exception in the middle of anything.

Not an `Event`: the handler runs in the main thread, which may hold the event's lock at that moment, and then waits for
itself for ever.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any, Iterator

from x402tools._bell import Flag

EXIT_CODE = 130  # what shells say of a program that Ctrl-C has ended


class Interrupted(Exception):
    """Somebody wants it to end."""


@contextlib.contextmanager
def noticed() -> Iterator[Flag]:
    """Yields a flag that is set by the first of these signals; outside the main thread nothing ever sets it."""
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def notice(*signal_and_frame: Any) -> None:  # noqa: ARG001 - it makes no difference which
        flag.set()

    earlier = {number: signal.signal(number, notice) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield flag
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
