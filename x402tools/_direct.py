"""A second connection on the open spool file, for small transactions in the calling thread.

Everything else goes through sqlitedict's connection. That costs two changes of thread, which is twice what SQLite
takes to commit one event; hence this one, for a statement that is a transaction by itself and is not synced.

1. It is open only while sqlitedict's is, on the same file, and closed with it: before a fork, after an error, at the
   end.
2. Checkpoints, which sync, are left to the connection thread (`checkpoint_is_due` says when), and so is the first write
   after one. Only where somebody else made the checkpoint, the flusher or another process, the first write is one from
   here, and waits for one sync.
3. A disk that does not answer keeps whoever asked it, and only for another thread one can stop waiting. Here the thread
   that records asks, as any program that writes to that disk. So it holds nothing meanwhile but the use of the file,
   for which the others stop waiting (`OpenFile.use`): they see since when it is `busy_since`.
"""

from __future__ import annotations

import time
from typing import Any, Callable, List, Optional, Protocol, Sequence


class PlainConnection(Protocol):
    """What is needed of a connection of sqlite3, which comes in by another door."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any: ...

    def close(self) -> None: ...


# Transactions after which a checkpoint is due: one of a small batch changes about six pages of the file, and SQLite by
# itself makes one after a thousand.
_MOST = 160


class Direct:
    """The connection, opened when it is first needed. Hold the lock of the connection it belongs to.

    Args:
        connect: opens a plain connection on the file that is in use, ready for our statements, without checkpoints.
    """

    def __init__(self, connect: Callable[[], PlainConnection]) -> None:
        self._connect = connect
        self._opened: Optional[PlainConnection] = None
        self._done = 0  # transactions since the last checkpoint
        self.busy_since: Optional[float] = None  # a moment of time.monotonic(), while a statement runs

    def run(self, sql: str, parameters: Sequence[Any]) -> None:
        """A transaction of one statement, of which no failure leaves anything behind.

        Raises:
            sqlite3.Error: nothing was changed, unless it is an I/O error: then nobody can say.
        """
        self.busy_since = time.monotonic()
        try:
            opened = self._opened
            if opened is None:
                opened = self._opened = self._connect()
            opened.execute(sql, parameters)
        finally:
            self.busy_since = None
        self._done += 1

    def checkpoint_is_due(self) -> bool:
        """Whether the log is long enough by now."""
        return self._done >= _MOST

    def checkpoint_was_made(self) -> None:
        self._done = 0

    def close(self) -> None:
        """Gives the file back; what a failed statement left open is undone."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def forget(self) -> None:
        """In a forked child: kept as it is, unused, because closing it would touch the parent's log.

        As a rule it is closed, see `_process`; not where the parent forked in the middle of something that was stuck.
        """
        if self._opened is not None:
            _left_alone.append(self._opened)
        self._opened = None


_left_alone: List[PlainConnection] = []
