"""SQL on one SQLite file, through the connection thread of sqlitedict; the only door to sqlitedict and sqlite3.

sqlitedict gives every caller of a process one connection, on a thread of its own. Left to itself it also hangs for
ever when a commit fails, hands errors to whichever thread asks next, turns syncing off, and pickles. So:

* each exchange (statements, and the wait for the last answer) happens under one lock, so an error reaches its cause;
* the wait has a deadline and watches that the thread is alive; a dead or stuck thread is abandoned for a new one;
* BEGIN, COMMIT and ROLLBACK are sent as text, which reports errors; `commit()` and `close()` are never called;
* the statements of a transaction are sent as one request, and none is run after one that failed;
* WAL and the sync level are set and read back;
* our own encoded bytes go in and out as bound parameters, and the pickling codec is replaced where it stands.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sqlite3
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import quote

import sqlitedict

from x402tools import _process, _spool_file
from x402tools._fair_lock import FairLock
from x402tools._transaction import Row, Statement, Transaction, until_unlocked
from x402tools.errors import SpoolError

DatabaseError = sqlite3.Error
PlainConnection = sqlite3.Connection

# A transaction waits this long for another process's lock before it says "database is locked". Seconds.
BUSY_TIMEOUT = 1.0

# SQLite itself waits this long, in milliseconds; then the waiting begins anew, with its short first steps.
_BUSY_STEP = 20

# Longer than SQLite itself may wait, so that running out of it means that the thread is stuck. Seconds.
_DEADLINE = 12.0
_LOOK_EVERY = 0.05  # seconds between looks whether the thread is alive

# What SQLite says when the content of the file is not what it wrote. sqlite3 has error codes only since Python 3.11.
_SIGNS_OF_DAMAGE = ("malformed", "not a database", "no such table", "no such column", "could not decode")

_SHORTEST_PATIENCE = 0.02  # seconds for an answer once the time given by `give_up_at` is over

_TOGETHER = "--together--"  # stands for a statement, see `_Cursor`

_META_TABLE = "meta"
META_TABLE = f"CREATE TABLE IF NOT EXISTS {_META_TABLE} (key TEXT PRIMARY KEY, value BLOB)"  # as sqlitedict makes it
_SYNC_LEVELS = {"NORMAL": 1, "FULL": 2}

# sqlitedict prints eighteen lines for a failed statement when logging is not configured; the error itself reaches us.
_quiet = logging.getLogger("sqlitedict")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class DamagedError(SpoolError):
    """What the file holds is not what was written to it. Trying again does not help; another file does."""


def is_damage(error: BaseException) -> bool:
    """Whether SQLite complains about the content of the file, rather than that it cannot get at it now."""
    return any(sign in str(error).lower() for sign in _SIGNS_OF_DAMAGE)


def plain(path: str, *, read_only: bool = False) -> PlainConnection:
    """A connection without sqlitedict, for what happens before it opens the file. Close it at once.

    Args:
        read_only: leave every byte of the file as it is; an ordinary connection tidies up a log when it is closed.
    """
    # Not by pathlib, which imports something at this point: the interpreter may be past importing anything.
    address = "file:" + quote(os.fsencode(path)) + ("?mode=ro" if read_only else "?mode=rw")
    # Used by whichever thread operates next, one at a time.
    return sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def in_memory() -> PlainConnection:
    """A database of nobody else's. Close it at once."""
    return sqlite3.connect(":memory:")


def prepare(path: str, schema: Sequence[str]) -> None:
    """Creates what is missing in the file, on a plain connection, before sqlitedict opens it.

    sqlitedict would hang if creating its own table failed on a full disk, and some settings only take effect before
    the first table exists.

    Raises:
        sqlite3.Error: the file is no database, is damaged, or cannot be written.
    """
    connection = plain(path)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        for statement in ("BEGIN IMMEDIATE", META_TABLE, *schema, "COMMIT"):
            connection.execute(statement)
    finally:
        connection.close()


def _identity(path: str) -> Optional[Tuple[int, int]]:
    """Device and inode of the file that is at the path now; None when there is none, or nobody can say."""
    try:
        return _spool_file.identity(path)
    except OSError:
        return None


class _Cursor(sqlite3.Cursor):
    """A cursor that runs several statements as one request to its thread, of which each costs a queue and a wake-up."""

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        """Runs a statement, or for `_TOGETHER` those in `parameters`, up to the first that fails.

        When it begins a transaction it is undone as a whole, so that it can be tried again.
        """
        if sql != _TOGETHER:
            super().execute(sql, parameters)
            return self
        try:
            for statement, its in parameters:
                super().execute(statement, its)
        except BaseException:
            if parameters[0][0].startswith("BEGIN ") and self.connection.in_transaction:
                self.connection.rollback()
            raise
        return self


class _Thread(sqlitedict.SqliteMultithread):  # type: ignore[misc]  # sqlitedict has no types
    """sqlitedict's connection thread, which dies of a row it cannot read; this one remembers of what."""

    died_of: Optional[Exception] = None
    _requests: queue.SimpleQueue[Any]

    @property
    def reqs(self) -> queue.SimpleQueue[Any]:
        """What sqlitedict makes a `Queue` of: one written in Python, each put and get of which takes three locks."""
        return self._requests

    @reqs.setter
    def reqs(self, _: object) -> None:
        self._requests = queue.SimpleQueue()

    def _connect(self) -> Tuple[sqlite3.Connection, sqlite3.Cursor]:
        connection, _ = super()._connect()
        return connection, connection.cursor(_Cursor)

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - the edge of the thread; Python would print it
            _close_what_was_open(error)
            self.died_of = error


def _close_what_was_open(error: Exception) -> None:
    """sqlitedict keeps its connection in a variable, which only the frames of the error still hold."""
    traceback = error.__traceback__
    while traceback is not None:
        connection = traceback.tb_frame.f_locals.get("conn")
        if isinstance(connection, sqlite3.Connection):
            connection.close()
        traceback = traceback.tb_next


class _Dict(sqlitedict.SqliteDict):  # type: ignore[misc]  # sqlitedict has no types
    def _new_conn(self) -> _Thread:
        return _Thread(self.filename, autocommit=False, journal_mode="WAL", outer_stack=False)


@contextmanager
def transaction_here(path: str, temporary: Sequence[str] = ()) -> Iterator[Transaction]:
    """A transaction that writes and syncs, all in the calling thread: at the end of the interpreter no other runs.

    `temporary`: as for `Connection`.

    Raises:
        SpoolError: nothing was changed; see `Connection.transaction`.
    """
    connection = plain(path)

    def exchange(statements: Sequence[Statement]) -> List[Row]:
        cursor = connection.cursor(_Cursor)
        return list(cursor.execute(_TOGETHER, statements))

    try:
        exchange([("PRAGMA synchronous=FULL", ()), *((sql, ()) for sql in temporary)])
        transaction = Transaction(exchange, "IMMEDIATE", time.monotonic() + BUSY_TIMEOUT)
        yield transaction
        transaction.commit()
    except sqlite3.Error as error:
        raise SpoolError(f"{path}: {error}") from error
    finally:
        connection.close()  # what was not committed is undone


class Connection:
    """Runs SQL on one file for all threads of this process. A forked child has to make its own.

    Args:
        path: the file; `prepare` has run on it.
        sync: "FULL" syncs at every commit; "NORMAL" leaves that to `sync()` and to checkpoints.
        temporary: statements that make what only this connection knows: views and triggers that are not in the file.
    """

    def __init__(self, path: str, sync: str, temporary: Sequence[str] = ()) -> None:
        self._path = path
        self._sync = sync
        self._temporary = temporary
        self._lock = FairLock()  # guards the one exchange under way with the connection thread
        self._dict: Optional[_Dict] = None
        self._identity: Optional[Tuple[int, int]] = None  # of the file that is open
        self._paused = False
        self._was_open = False  # when it was paused
        self.openings = 0  # how often the file was opened: SQLite may have made a new log each time
        self.may_open = True  # False: reads on through what is open, if anything is
        self.give_up_at: Optional[float] = None  # a moment of time.monotonic() after which no answer is waited for
        _process.forget_after_fork(self)
        _process.pause_for_forks(self)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> List[Row]:
        """Runs one statement; all its rows. Give it a LIMIT.

        Raises:
            SpoolError: the statement failed, or the connection thread did not answer.
        """
        with self._lock:
            return self._exchange([(sql, parameters)])

    def run_alone(self, sql: str, parameters: Sequence[Any]) -> None:
        """A transaction of one statement that writes, in one exchange. It may not begin with INSERT, UPDATE, DELETE or
        REPLACE, before which sqlite3 would begin a transaction.

        Raises:
            SpoolError: as for `transaction`.
        """
        with self._lock:
            self._try(lambda: self._exchange([(sql, parameters)]))

    def is_in_use_here(self) -> bool:
        """Whether the calling thread is in the middle of using this, or is the connection thread: what comes in between
        there (a `__del__`, or a signal handler in the middle of a fork) waits for itself if it waits for an answer."""
        opened = self._dict
        return self._lock.is_mine() or (opened is not None and opened.conn.ident == threading.get_ident())

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[Transaction]:
        """What is run inside happens as a whole when the block ends, or not at all when it raises.

        Args:
            kind: "IMMEDIATE" to write: one that begins as a reader fails at its first write if another process wrote
                in between. "DEFERRED" only to read, from one moment, without keeping writers out.

        Raises:
            SpoolError: nothing was changed, unless the very last step failed with an I/O error: then nobody can say,
                and what is repeated must be harmless to repeat.
        """
        with self._lock:
            try:
                transaction = Transaction(self._exchange, kind, self._busy_until())
                yield transaction
                transaction.commit()
            except BaseException:
                self._roll_back()
                raise

    def sync(self) -> None:
        """Syncs everything committed so far, whatever the sync level."""
        with self._lock:
            if self._sync != "FULL":
                self._exchange([("PRAGMA synchronous=FULL", ())])
                try:
                    self._write_something()
                finally:
                    self._exchange([(f"PRAGMA synchronous={self._sync}", ())])

    def close(self) -> None:
        """Ends the connection thread. What was committed stays; statements after this open the file again.

        Does not wait for long for a thread whose statement does not return: that closes what it uses itself, later.
        """
        if not self._lock.acquire(timeout=self._patience(time.monotonic())):
            return
        try:
            opened, self._dict = self._dict, None
            if opened is not None:
                opened.conn.close(force=True)  # only queues the end; the ordinary close() can wait for ever
                _wait_for_end(opened.conn, self._patience(time.monotonic()))
                opened.conn = None
        finally:
            self._lock.release()

    def pause_for_fork(self) -> None:
        """Closes the file, so that nothing of SQLite is copied into the child; see `_process`.

        Waits for the exchange under way. One that is stuck for seconds is not waited for: then the child had better
        not have forked, and the parent goes on as it was.

        A file that is no longer at the path stays open, because it could not be opened again and may hold events. Its
        copy in the child does no harm: nothing there opens that file.
        """
        self._paused = self._lock.acquire(timeout=_DEADLINE)
        self._was_open = self._paused and self._dict is not None and self._is_at_the_path()
        if self._was_open:
            self.close()

    def resume_after_fork(self) -> None:
        """Opens the file again, at once: at the end of the process no thread could be started for it any more."""
        if self._paused:
            self._paused = False
            try:
                if self._was_open:
                    self._open()
            except SpoolError:
                pass  # whoever needs it next is told
            finally:
                self._lock.release()

    def forget(self) -> None:
        """In a forked child: the thread is not here and its locks may be held. Nothing is closed: see `_process`."""
        opened, self._dict = self._dict, None
        self._lock = FairLock()
        if opened is not None:
            opened.conn = None

    def _try(self, attempt: Callable[[], Any]) -> None:
        try:
            until_unlocked(attempt, self._busy_until())
        except BaseException:
            self._roll_back()  # an I/O error may have left it open
            raise

    def _write_something(self) -> None:
        with self.transaction() as transaction:
            transaction.run(f"REPLACE INTO {_META_TABLE} VALUES ('synced', ?)", (str(time.time()),))

    def _exchange(self, statements: Sequence[Statement]) -> List[Row]:
        """Sends statements in order and waits for the rows of the last; any failure of any of them is raised."""
        if not statements:
            return []
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            thread = self._open().conn
            sql, parameters = statements[0] if len(statements) == 1 else (_TOGETHER, statements)
            thread.execute(sql, parameters, answers)
            rows: List[Row] = []
            started = time.monotonic()
            while True:
                answer = self._next_answer(answers, thread, started)
                if answer == _NO_MORE:
                    thread.check_raise_error()
                    return rows
                rows.append(answer)
        except sqlite3.Error as error:
            raise self._spool_error(error) from error

    def _next_answer(self, answers: queue.SimpleQueue[Any], thread: _Thread, started: float) -> Any:
        while True:
            try:
                return answers.get(timeout=min(_LOOK_EVERY, self._patience(started)))
            except queue.Empty:
                if thread.is_alive() and time.monotonic() < started + self._patience(started):
                    continue
            self._abandon()
            if thread.died_of is not None:
                raise self._spool_error(thread.died_of) from thread.died_of
            raise SpoolError(f"{self._path}: the connection thread died or got stuck (does the disk not answer?)")

    def _busy_until(self) -> float:
        """The moment until which a transaction waits for another process's lock."""
        moment = time.monotonic() + BUSY_TIMEOUT
        return moment if self.give_up_at is None else min(moment, self.give_up_at)

    def _patience(self, started: float) -> float:
        """Seconds that an answer may take to what was asked at that moment; less when the end is near."""
        if self.give_up_at is None:
            return _DEADLINE
        return max(min(_DEADLINE, self.give_up_at - started), _SHORTEST_PATIENCE)

    def _spool_error(self, error: Exception) -> SpoolError:
        return (DamagedError if is_damage(error) else SpoolError)(f"{self._path}: {error}")

    def _roll_back(self) -> None:
        try:
            if self._dict is not None:
                self._exchange([("ROLLBACK", ())])
        except SpoolError:
            pass  # SQLite has rolled back by itself, or the connection is gone and with it the transaction

    def _open(self) -> _Dict:
        if self._dict is None:
            if not self.may_open:
                raise SpoolError(f"{self._path}: the spool file is gone")
            if self.give_up_at is not None and time.monotonic() >= self.give_up_at:
                raise SpoolError(f"{self._path}: the disk does not answer")  # opening would wait for it
            self._dict = self._connect()
        return self._dict

    def _is_at_the_path(self) -> bool:
        """Whether the file that is open, or was open last, still has its name."""
        return self._identity is None or self._identity == _identity(self._path)

    def _connect(self) -> _Dict:
        identity = _identity(self._path)
        if identity is None:  # SQLite would make an empty one, and nobody would notice the loss
            raise SpoolError(f"{self._path}: the spool file is gone")
        if sys.is_finalizing():  # its thread would never begin to run, and starting it never return
            raise SpoolError(f"{self._path}: cannot be opened at the end of the interpreter")
        self._identity = identity
        self.openings += 1
        try:
            opened = _Dict(
                self._path,
                tablename=_META_TABLE,
                journal_mode="WAL",
                outer_stack=False,  # a stack trace per statement otherwise
                encode=json.dumps,
                decode=json.loads,
            )
        except Exception as error:  # sqlite3.Error or RuntimeError, from its thread
            raise self._spool_error(error) from error
        self._dict = opened
        self._exchange(self._settings())
        level = self._exchange([("PRAGMA synchronous", ())])
        mode = self._exchange([("PRAGMA journal_mode", ())])
        if level != [(_SYNC_LEVELS[self._sync],)] or mode != [("wal",)]:
            self._abandon()
            raise SpoolError(f"{self._path}: this file system cannot keep a write-ahead log (a network drive?)")
        return opened

    def _settings(self) -> List[Statement]:
        return [
            (f"PRAGMA busy_timeout={_BUSY_STEP}", ()),
            (f"PRAGMA synchronous={self._sync}", ()),
            ("PRAGMA trusted_schema=OFF", ()),
            ("PRAGMA cell_size_check=ON", ()),
            # What was delivered does not linger in free space. FAST would leave what filled a page of its own.
            ("PRAGMA secure_delete=ON", ()),
            (f"PRAGMA journal_size_limit={8 * 1024 * 1024}", ()),
            *((sql, ()) for sql in self._temporary),
        ]

    def _abandon(self) -> None:
        opened, self._dict = self._dict, None
        if opened is not None:
            opened.conn.close(force=True)
            opened.conn = None  # or its __del__ would queue another end


def _wait_for_end(thread: threading.Thread, seconds: float) -> None:
    """Like `join`, which alone never returns when gevent has patched `threading` after sqlitedict was imported."""
    deadline = time.monotonic() + seconds
    while thread in threading.enumerate() and time.monotonic() < deadline:
        thread.join(min(_LOOK_EVERY, seconds))


_NO_MORE = sqlitedict._RESPONSE_NO_MORE
