"""Makes a spool file ready before anything is read from it: creates it, recognises it, sets aside what is damaged.

What is at the path          then
nothing, or an empty file    the tables are made
a spool of this format       used, if it holds exactly our tables
a spool of an earlier one    the tables that it lacks are made
a spool of a later format    refused and left as it is
another program's database   refused and left as it is
anything else                damaged, or made by somebody: set aside under a name that says so, and a new one is made
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import Iterator, NamedTuple, Optional, Sequence, Set, Tuple

from x402tools import _spool_file, _spool_held
from x402tools._connection import META_TABLE, DatabaseError, PlainConnection, in_memory, is_damage, plain, prepare
from x402tools._process import FileLock
from x402tools.errors import SpoolError

FORMAT = 2  # of the tables; in PRAGMA user_version
_APPLICATION = 0x78343032  # "x402", in PRAGMA application_id, so that another program's database is not taken for ours

_FIRST_TABLES = (  # of format 1
    (
        "CREATE TABLE IF NOT EXISTS sealed (sequence INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT UNIQUE NOT NULL,"
        " sealed_at REAL NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, value BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS recorded (sequence INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT UNIQUE NOT NULL,"
        " stored_at REAL NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, value BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS settled (sequence INTEGER PRIMARY KEY, events INTEGER NOT NULL,"
        " units INTEGER NOT NULL, bits BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS dead (id INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT UNIQUE NOT NULL,"
        " key TEXT NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, readable INTEGER NOT NULL,"
        " details TEXT NOT NULL, value BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, events INTEGER NOT NULL, high INTEGER NOT NULL,"
        " low INTEGER NOT NULL)"
    ),
)
_TABLES = (*_FIRST_TABLES, *_spool_held.TABLES)
_SCHEMA = (
    *_TABLES,
    "INSERT OR IGNORE INTO ledger VALUES ('recorded', 0, 0, 0), ('delivered', 0, 0, 0), ('dropped', 0, 0, 0)",
    f"PRAGMA application_id={_APPLICATION}",
    f"PRAGMA user_version={FORMAT}",
)
_OBJECTS = "SELECT type, CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"

_LONGEST_LOCK = 5.0  # seconds to wait for a program that has locked the file
_PATIENCE = 6.0  # seconds to wait for another process that is making or mending it, and may be waiting itself
_LOOK_EVERY = 0.02  # seconds


class Aside(NamedTuple):
    """A file that was set aside."""

    path: str
    reason: str


def make_ready(path: str, *, make_folder: bool) -> Optional[Aside]:
    """Makes the file at `path` usable, whatever is there; what had to be set aside for that. Hold `alone(path)`.

    Raises:
        SpoolError: it cannot be used, and was left as it is.
    """
    give_up, pause = time.monotonic() + _LONGEST_LOCK, threading.Event()  # the event is never set: only waited on
    while True:
        try:
            return _look_and_mend(path, make_folder=make_folder)
        except DatabaseError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up:
                message = f"{path}: cannot be used as a spool ({error}): make room or choose another path"
                raise SpoolError(message) from error
        pause.wait(_LOOK_EVERY)


def _look_and_mend(path: str, *, make_folder: bool) -> Optional[Aside]:
    _spool_file.ensure(path, make_folder=make_folder)
    if os.path.getsize(path) == 0 and os.path.exists(path + "-wal"):
        # The file was deleted or emptied without its log. SQLite would delete the log; it may hold events.
        return _replace(path, "the file is empty and its log is not")
    try:
        fault = _fault(path)
        if fault is None:
            return None
        if fault:
            return _replace(path, fault)
        prepare(path, _SCHEMA)
    except DatabaseError as error:
        if not is_damage(error):
            raise
        return _replace(path, str(error))
    return None


@contextmanager
def alone(path: str) -> Iterator[None]:
    """While the block runs, no other process and no other spool of this one makes or mends this file."""
    lock = FileLock(path + ".setup")
    deadline = time.monotonic() + _PATIENCE
    retry = threading.Event()  # never set: only waited on
    try:
        while not lock.acquire():
            if time.monotonic() >= deadline:
                raise SpoolError(f"{path}: another process is mending it")
            retry.wait(_LOOK_EVERY)
    except OSError as error:
        raise SpoolError(f"{path}: the spool cannot be used there ({error.strerror}): choose another path") from error
    try:
        yield
    finally:
        lock.release()


def _replace(path: str, reason: str) -> Aside:
    aside = _spool_file.set_aside(path)
    _spool_file.ensure(path, make_folder=False)
    try:
        prepare(path, _SCHEMA)
    except DatabaseError as error:
        raise SpoolError(f"{path}: damaged ({reason}), kept as {aside}; a new one cannot be made: {error}") from error
    return Aside(aside, reason)


def _fault(path: str) -> Optional[str]:
    """What is wrong with the file; None when nothing is, and "" when it only lacks tables: a new one, or an earlier.

    Raises:
        SpoolError: it belongs to another program or a later version.
        DatabaseError: it cannot be read.
    """
    # There is a journal only where the file was being made, or put into WAL mode, when the process was killed. Until it
    # is taken back, which takes a writer, nothing can be read.
    connection = plain(path, read_only=not os.path.exists(path + "-journal"))
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        objects = _objects(connection)
    finally:
        connection.close()
    if not objects and not application:
        return ""
    if application != _APPLICATION:
        raise SpoolError(f"{path}: is the database of another program; choose another path")
    if version > FORMAT:
        raise SpoolError(f"{path}: was written by a later version of x402tools (format {version}); upgrade this one")
    expected = _expected(_TABLES)
    strange = sorted(f"{kind} {name!r}" for kind, name, _ in objects - expected)
    if strange:  # a trigger or a view of somebody's making would run with every statement of ours
        return f"holds what this version did not make: {', '.join(strange)[:200]}"
    if objects >= expected:
        return None
    is_earlier = version < FORMAT and objects >= _expected(_FIRST_TABLES)
    return "" if is_earlier else "tables are missing"


def recognise(path: str) -> Optional[str]:
    """What is wrong with the file, as `_fault` tells it, for somebody who only looks."""
    return _fault(path)


def _objects(connection: PlainConnection) -> Set[Tuple[str, str, str]]:
    rows = connection.execute(_OBJECTS).fetchall()
    return {(kind, _text(name), _text(sql)) for kind, name, sql in rows if not _is_statistics(kind, _text(name))}


def _is_statistics(kind: str, name: str) -> bool:
    """ANALYZE leaves such tables; nobody else can give a table a name like that."""
    return kind == "table" and name.startswith("sqlite_stat")


def _text(raw: Optional[bytes]) -> str:
    return (raw or b"").decode("utf-8", "backslashreplace")


def _expected(tables: Sequence[str]) -> Set[Tuple[str, str, str]]:
    connection = in_memory()
    try:
        connection.execute(META_TABLE)
        for statement in tables:
            connection.execute(statement)
        return _objects(connection)
    finally:
        connection.close()
