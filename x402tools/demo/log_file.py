"""Lines that several processes append to one file, and that survive the SIGKILL of the process that wrote them."""

from __future__ import annotations

import os
import time
from typing import Iterator, List, NamedTuple

_TAIL = 4096  # bytes; a line has about a hundred


class Entry(NamedTuple):
    """One line: when it was written (seconds since 1970), by which process, and what it says."""

    at: float
    pid: int
    words: List[str]


class LogFile:
    """Appends lines to a file.

    A line is one `os.write` on a descriptor opened with O_APPEND: it is with the kernel when `write` returns, so that
    no kill takes it back, and lines of several processes do not mix.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, *words: object) -> None:
        """Appends the time, this process's id and the words.

        Raises:
            OSError: the line could not be written whole.
        """
        line = (" ".join([f"{time.time():.6f}", str(os.getpid()), *map(str, words)]) + "\n").encode("utf-8")
        if os.write(self._descriptor, line) != len(line):
            raise OSError("the disk took only a part of a line of the log")


def entries(path: str) -> Iterator[Entry]:
    """Every line of the file, oldest first; none when there is no file yet.

    Raises:
        ValueError: a line is not one that `LogFile` wrote.
    """
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield _entry(line)


def last_entries(path: str) -> List[Entry]:
    """The last few lines, oldest first."""
    with open(path, "rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(size - _TAIL, 0))
        text = lines.read().decode("utf-8", "replace")
    complete = text[: text.rfind("\n") + 1].splitlines()
    return [_entry(line) for line in (complete if size <= _TAIL else complete[1:])]


def _entry(line: str) -> Entry:
    words = line.split()
    return Entry(float(words[0]), int(words[1]), words[2:])
