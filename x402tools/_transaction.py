"""A transaction: statements that are sent together, and tried again while another process keeps the file locked."""

from __future__ import annotations

import time
from typing import Any, Callable, List, Optional, Sequence, Tuple, TypeVar

from x402tools.errors import SpoolError

Statement = Tuple[str, Sequence[Any]]
Row = Tuple[Any, ...]
_Result = TypeVar("_Result")


class Transaction:
    """The statements of one transaction. They are sent together, because every wait costs two changes of thread.

    Args:
        exchange: runs statements in order up to the first that fails; the rows of the last. What starts with a BEGIN
            happens as a whole or not at all.
        kind: see `Connection.transaction`.
        give_up: the moment of `time.monotonic()` until which another process's lock is waited for.
    """

    def __init__(self, exchange: Callable[[Sequence[Statement]], List[Row]], kind: str, give_up: float) -> None:
        self._exchange = exchange
        self._begin: Optional[Statement] = (f"BEGIN {kind}", ())  # None when it has begun
        self._give_up = give_up
        self._waiting: List[Statement] = []

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Adds a statement; its failure shows at the next `rows` or at the end."""
        self._waiting.append((sql, parameters))

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> List[Row]:
        """Runs what was added and then this statement; its rows."""
        return self._send((sql, parameters))

    def commit(self) -> None:
        self._send(("COMMIT", ()))  # not reached when a statement before it fails

    def _send(self, last: Statement) -> List[Row]:
        statements, self._waiting = [*self._waiting, last], []
        if self._begin is None:
            return self._exchange(statements)
        beginning = [self._begin, *statements]
        rows = until_unlocked(lambda: self._exchange(beginning), self._give_up)
        self._begin = None
        return rows


def until_unlocked(attempt: Callable[[], _Result], give_up: float) -> _Result:
    """Tries again while another process keeps the file locked; raises what it said when the time is over.

    SQLite itself waits in steps that grow to 100 ms, and so comes too late beside a process that commits back to back.
    """
    while True:
        try:
            return attempt()
        except SpoolError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up:
                raise
