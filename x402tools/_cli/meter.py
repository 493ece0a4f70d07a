"""A line that shows how far something is: a bar in a terminal, a line now and then in a pipe; all on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Optional, Type

from x402tools._cli import screen
from x402tools._cli.output import say

_EVERY = 5.0  # seconds between two lines in a pipe


class Meter:
    """Shows how much is done. A context manager; for one thread.

    Args:
        what: what is going on, in a word or two.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar = screen.Bar(what) if sys.stderr.isatty() else None
        self._next = time.monotonic() + _EVERY

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, note: str, done: int, total: Optional[int]) -> None:
        """How far it is now: in words, and as a part of the total, where that is known."""
        if self._bar is not None:
            self._bar.show(note, done, total)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            say(f"{self._what}: {note}")

    def say(self, text: str) -> None:
        """A line that stays, on stderr."""
        if self._bar is not None:
            self._bar.say(text)
        else:
            say(text)
