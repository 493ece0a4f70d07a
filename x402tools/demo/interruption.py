"""Ctrl-C, SIGTERM and SIGHUP as an event to wait on, instead of an exception in the middle of anything."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any, Iterator

EXIT_CODE = 130  # what shells say of a program that Ctrl-C has ended


class Interrupted(Exception):
    """Somebody wants it to end."""


@contextlib.contextmanager
def noticed() -> Iterator[threading.Event]:
    """Yields an event that is set by the first of these signals; outside the main thread nothing ever sets it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def notice(*signal_and_frame: Any) -> None:  # noqa: ARG001 - it makes no difference which
        event.set()

    earlier = {number: signal.signal(number, notice) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield event
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
