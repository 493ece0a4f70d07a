"""A second connection on the open spool file, for small transactions in the calling thread.

What goes through sqlitedict's connection thread costs two changes of thread, which is twice what SQLite takes to commit
one event. But a disk that does not answer keeps whoever asked it, and only for another thread one can stop waiting. So
what is committed here is not synced: it goes to the system's memory. Checkpoints, which sync, are left to the
connection thread (`checkpoint_is_due` says when), and so is the first write after one. Only where somebody else made
the checkpoint, the flusher or another process, the first write is one from here, and waits for one sync.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Protocol, Sequence


class PlainConnection(Protocol):
    """What is needed of a connection of sqlite3, which comes in by another door."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any: ...

    def close(self) -> None: ...


# Pages of the log after which a checkpoint is due, as SQLite has it by itself; a transaction of one small batch changes
# about six.
_PAGES = 1000
_PAGES_PER_BATCH = 6
_PAGE = 4096  # bytes


class Direct:
    """The connection, opened when it is first needed. Hold the lock of the connection it belongs to.

    Args:
        connect: opens a plain connection on the file that is in use, ready for our statements, without checkpoints.
    """

    def __init__(self, connect: Callable[[], PlainConnection]) -> None:
        self._connect = connect
        self._opened: Optional[PlainConnection] = None
        self._pages = 0.0  # written since the last checkpoint, roughly

    def run(self, sql: str, parameters: Sequence[Any]) -> None:
        """A transaction of one statement, of which no failure leaves anything behind.

        Raises:
            sqlite3.Error: nothing was changed, unless it is an I/O error: then nobody can say.
        """
        opened = self._opened
        if opened is None:
            opened = self._opened = self._connect()
        opened.execute(sql, parameters)
        self._pages += _PAGES_PER_BATCH + sum([len(value) for value in parameters if type(value) is bytes]) / _PAGE

    def checkpoint_is_due(self) -> bool:
        """Whether the log is long enough by now; true once."""
        if self._pages < _PAGES:
            return False
        self._pages = 0.0
        return True

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
