"""What is seen while it runs: lines that stay, and one that changes in place, or comes once a second in a pipe."""

from __future__ import annotations

import os
import time
from typing import Callable, Optional, TextIO

WIDTH = 80  # columns
_ERASE = "\r\x1b[K"
_EVERY = 1.0  # seconds between two lines in a pipe


class Progress:
    """Writes to `stream`. Safe in one thread only.

    Args:
        stream: where to.
        in_place: change a line in place, with escape codes. Default: when the stream is a terminal that knows them.
        clock: seconds that never go back.
    """

    def __init__(
        self, stream: TextIO, *, in_place: Optional[bool] = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._clock = clock
        is_able = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._in_place = is_able if in_place is None else in_place
        self._shown = ""
        self._next = 0.0

    def say(self, line: str = "") -> None:
        """A line that stays."""
        if self._shown:
            self._stream.write(_ERASE)
        self._stream.write(line + "\n" + self._shown)
        self._stream.flush()

    def show(self, line: str, *, last: bool = False) -> None:
        """How things stand now; in a pipe only when a second has passed since the last time, or for the last time."""
        line = line[: WIDTH - 1]  # in the last column some terminals begin a new line
        if self._in_place:
            self._stream.write(_ERASE + line)
            self._stream.flush()
            self._shown = line
        elif last or self._clock() >= self._next:
            self._next = self._clock() + _EVERY
            self.say(line)

    def rest(self) -> None:
        """What was shown last stays; what follows begins a new line."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = ""
