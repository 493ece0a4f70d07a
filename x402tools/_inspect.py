"""A spool as somebody sees it who only looks: an operator at a terminal, while the service that uses it goes on.

Nothing is made, mended, claimed or written, and nobody who writes is waited for or kept waiting: SQLite shows a reader
what was committed when it began. (It leaves an empty log beside a file that nobody had open.)
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Type, cast

from x402tools import _batch, _process, _spool_held, _spool_recorded, _spool_rows, _spool_setup
from x402tools._batch import CorruptBatchError, Post
from x402tools._connection import DatabaseError, PlainConnection, is_damage, plain
from x402tools._open_file import OpenFile
from x402tools._spool import Spool
from x402tools._store import Counts, DeadLetter
from x402tools._transaction import Row
from x402tools.errors import SpoolError

_BATCHES = (
    f"SELECT sealed.sequence, sealed.sealed_at, sealed.events, sealed.units, {_spool_rows.VALUE_IF_IT_FITS},"
    " settled.bits, settled.events, settled.units FROM sealed LEFT JOIN settled ON settled.sequence = sealed.sequence"
    " WHERE sealed.sequence > ? ORDER BY sealed.sequence LIMIT ?"
)
_BATCHES_AT_ONCE = 50
_LETTERS_AT_ONCE = 500
_VERSIONS = "SELECT CAST(key AS BLOB), value FROM meta WHERE key GLOB 'version *' LIMIT 100"
_DESTINATION = "SELECT CAST(value AS BLOB) FROM meta WHERE key = 'destination' LIMIT 1"

# Every SQLite connection to a file with a write-ahead log has a shared lock on this byte of the index of the log.
_BYTE_OF_USERS = 128


class PendingBatch(NamedTuple):
    """A batch of the spool, and what is pending of it.

    Attributes:
        sequence: its number; lower ones are older.
        sealed_at: seconds since 1970.
        events, units: what the row says is pending of it, without looking into it.
        posts: the POSTs that are pending, as its content has them; empty when it is damaged.
        fault: why it cannot be read, or how its content and the row differ; None when nothing is wrong.
    """

    sequence: int
    sealed_at: float
    events: int
    units: int
    posts: List[Post]
    fault: Optional[str]


class SpoolView:
    """Reads the spool at `path`. A context manager; for one thread.

    Raises:
        SpoolError: there is no spool, or it cannot be read; every method may raise it too.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        if not os.path.exists(self.path):
            raise SpoolError(f"{self.path}: there is no spool here")
        with _told(self.path):
            fault = _spool_setup.recognise(self.path)
            if fault == "":  # it lacks tables
                message = "is empty, or of an earlier version: the service completes it when it next starts"
                raise SpoolError(f"{self.path}: {message}")
            if fault:
                raise SpoolError(f"{self.path}: {fault}")
            self._connection = plain(self.path, read_only=True)
        self._store = _Looking(self.path, self._connection)

    def __enter__(self) -> SpoolView:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go."""
        self._connection.close()

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """Inside, everything that is read is as it was when the block began. Keep it short: until it ends the log of a
        spool that is in use can only grow."""
        with _told(self.path):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.rollback()

    def counts(self) -> Counts:
        """The ledger, see `Store.counts`."""
        with _told(self.path):
            return self._store.counts()

    def batches(self) -> Iterator[PendingBatch]:
        """Every batch that is not settled as a whole, oldest first: those still to be folded, then the sealed ones."""
        for sequence, stored_at, events, units, value in self._pages(_spool_recorded.NEXT):
            yield _pending_batch(sequence, stored_at, events, units, value, None, None, None)
        for row in self._pages(_BATCHES):
            yield _pending_batch(*row)

    def pending(self) -> Iterator[Post]:
        """Every POST that is pending and can be read, oldest first, without those that are held; an event that is
        still to be folded counts as one."""
        for batch in self.batches():
            yield from batch.posts

    def held(self) -> Iterator[Post]:
        """Every POST that is held and can be read, oldest first."""
        for row in self._pages(_spool_held.HELD):
            yield from (held.post for held in _spool_held.held_posts([row])[0])

    def _pages(self, sql: str) -> Iterator[Row]:
        """The rows of a statement that takes the number after which it goes on, and a limit."""
        after = 0
        while True:
            with _told(self.path):
                rows = self._connection.execute(sql, (after, _BATCHES_AT_ONCE)).fetchall()
            if not rows:
                return
            after = rows[-1][0]
            yield from rows

    def dead_letters(self) -> Iterator[DeadLetter]:
        """Every dead letter, oldest first."""
        after = 0
        while True:
            with _told(self.path):
                letters = self._store.dead_letters(after, _LETTERS_AT_ONCE)
            if not letters:
                return
            after = letters[-1].id
            yield from letters

    def destination(self) -> Optional[str]:
        """The fingerprint of the base URL that the events are for (see `Spool.bind`), or None."""
        rows = self._rows(_DESTINATION)
        return bytes(rows[0][0]).decode("ascii", "replace") if rows else None

    def versions(self) -> List[Tuple[str, float]]:
        """The versions of x402tools that a client opened the spool with, and when each last did (since 1970)."""
        rows = self._rows(_VERSIONS)
        return [(bytes(key).decode("ascii", "replace").split(" ", 1)[1], float(value)) for key, value in rows]

    def check_structure(self) -> List[str]:
        """What SQLite finds wrong with the file; nothing when it is sound. Reads all of it."""
        found = self._rows("PRAGMA quick_check(20)")
        return [str(row[0]) for row in found if row[0] != "ok"]

    def _rows(self, sql: str) -> List[Row]:
        with _told(self.path):
            return self._connection.execute(sql).fetchall()


def delivering_process(path: str) -> Optional[int]:
    """The process id of whoever delivers this spool now; 0 for one that cannot be seen from here (another container),
    None when nobody does. Takes no lock."""
    return _process.holder_of(os.path.abspath(path) + ".lock")


def using_process(path: str) -> Optional[int]:
    """The process id of one that has the spool open, as above. Ask before this process opens it: closing a file makes
    a process lose its own locks on it."""
    return _process.holder_of(os.path.abspath(path) + "-shm", byte=_BYTE_OF_USERS)


class _Looking(Spool):
    """What a `Spool` can tell, in its own words, from a file that is only read."""

    def __init__(self, path: str, connection: PlainConnection) -> None:
        self.path = path
        self._file = cast(OpenFile, _ReadOnlyFile(connection))
        self._begin_totals()


class _ReadOnlyFile:
    """As much of an `OpenFile`, of its connection and of a transaction as reading needs."""

    def __init__(self, connection: PlainConnection) -> None:
        self._connection = connection

    @contextmanager
    def use(self) -> Iterator[_ReadOnlyFile]:
        yield self

    @contextmanager
    def transaction(self, kind: str) -> Iterator[_ReadOnlyFile]:
        if self._connection.in_transaction:  # of `one_moment`
            yield self
            return
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield self
        finally:
            self._connection.rollback()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> List[Row]:
        return self._connection.execute(sql, parameters).fetchall()


@contextmanager
def _told(path: str) -> Iterator[None]:
    """What SQLite says, as an error that names the file and what to do."""
    try:
        yield
    except DatabaseError as error:
        advice = "cannot be read"
        if is_damage(error):
            advice = "is damaged; the service sets it aside and goes on with what can be read of it when it next starts"
        elif "unable to open" in str(error) or "readonly" in str(error):
            advice = "cannot be read by this user: be the one that the service runs as"
        raise SpoolError(f"{path}: {advice} ({error})") from error


def _pending_batch(
    sequence: int, sealed_at: float, events: int, units: int, value: Optional[bytes], *settled: Any
) -> PendingBatch:
    left = events - (settled[1] or 0), units - (settled[2] or 0)
    if value is None:
        return PendingBatch(sequence, sealed_at, *left, [], "is larger than any that is written")
    try:
        posts = _batch.decode(value)
    except CorruptBatchError as error:
        return PendingBatch(sequence, sealed_at, *left, [], str(error))
    state = _spool_rows.progress(posts, *settled)
    pending = [post for at, post in enumerate(posts) if not state.bits >> at & 1]
    truth = sum(post.events for post in pending), sum(post.amount for post in pending)
    fault = (
        None if truth == left else f"counts for {left[0]} events of {left[1]} units, and holds {truth[0]} of {truth[1]}"
    )
    return PendingBatch(sequence, sealed_at, *left, pending, fault)
