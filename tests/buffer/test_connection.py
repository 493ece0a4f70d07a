"""The one connection of a process: every error reaches its cause, nothing hangs, and it comes back by itself."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import threading
from typing import Iterator, List

import pytest

from tests.buffer.helpers import Program, held_spool
from tests.conftest import run_with_deadline
from x402tools._connection import Connection, prepare
from x402tools.errors import SpoolError

SCHEMA = ["CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY NOT NULL)"]
ADD = "INSERT INTO things VALUES (?)"
ADD_ALONE = "WITH one AS (SELECT ?) INSERT INTO things SELECT * FROM one"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "things.db"
    file.touch(0o600)  # as the spool does, so that the mode does not depend on the umask
    prepare(str(file), SCHEMA)
    return file


@pytest.fixture
def connection(path: pathlib.Path) -> Iterator[Connection]:
    opened = Connection(str(path), "FULL")
    yield opened
    opened.close()


@pytest.fixture
def direct(path: pathlib.Path) -> Iterator[Connection]:
    """One whose small transactions happen in the calling thread."""
    opened = Connection(str(path), "NORMAL")
    yield opened
    opened.close()


def names(connection: Connection) -> List[str]:
    return [row[0] for row in connection.rows("SELECT name FROM things ORDER BY name LIMIT 10000")]


def test_an_error_reaches_the_thread_that_caused_it(connection: Connection) -> None:
    """Of two threads, one failing 150 times and one succeeding 150 times, each hears exactly its own answers."""
    failed, succeeded = [], []
    start = threading.Barrier(2, timeout=10)

    def run(names_to_add: List[object], errors: List[SpoolError]) -> None:
        start.wait()
        for name in names_to_add:
            try:
                with connection.transaction() as transaction:
                    transaction.run(ADD, (name,))
            except SpoolError as error:
                errors.append(error)

    threads = [
        threading.Thread(target=run, args=([None] * 150, failed), daemon=True),
        threading.Thread(target=run, args=([f"good {number:03d}" for number in range(150)], succeeded), daemon=True),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (len(failed), len(succeeded)) == (150, 0)
    assert len(names(connection)) == 150


def test_a_transaction_happens_as_a_whole_or_not_at_all(connection: Connection) -> None:
    """A statement that fails in the middle, or an exception of the caller's own, leaves nothing behind."""
    with pytest.raises(SpoolError), connection.transaction() as transaction:
        transaction.run(ADD, ("before",))
        transaction.run(ADD, (None,))
        transaction.run(ADD, ("after",))
    after_an_error = names(connection)

    with pytest.raises(LookupError), connection.transaction() as transaction:
        transaction.run(ADD, ("before",))
        assert transaction.rows("SELECT count(*) FROM things") == [(1,)]
        raise LookupError
    after_an_exception = names(connection)

    with connection.transaction() as transaction:
        transaction.run(ADD, ("good",))
    assert (after_an_error, after_an_exception, names(connection)) == ([], [], ["good"])


def test_another_program_s_lock_is_waited_for(path: pathlib.Path, connection: Connection) -> None:
    """A quarter of a second of it is waited out, and the transaction happens."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.25, other.execute, ("ROLLBACK",))
        release.start()

        with connection.transaction() as transaction:
            transaction.run(ADD, ("late",))
        release.join(10)

    assert names(connection) == ["late"]


def test_a_failing_commit_is_reported(path: pathlib.Path, connection: Connection) -> None:
    """Where sqlitedict's own commit hangs for ever, this raises within the busy limit and works afterwards."""

    def add(name: str) -> None:
        with connection.transaction() as transaction:
            transaction.run(ADD, (name,))

    with held_spool(path), pytest.raises(SpoolError, match="locked"):
        run_with_deadline(add, "late", seconds=6)
    add("again")

    assert names(connection) == ["again"]


def test_a_dead_connection_thread_is_replaced(connection: Connection) -> None:
    """Whatever killed it: one clear error at the most, then everything works again."""
    assert names(connection) == []
    thread = connection._dict.conn
    thread.close(force=True)
    thread.join(10)

    with pytest.raises(SpoolError, match="died or got stuck"):
        run_with_deadline(connection.rows, "SELECT 1", seconds=5)
    with connection.transaction() as transaction:
        transaction.run(ADD, ("again",))

    assert not thread.is_alive()
    assert names(connection) == ["again"]


def test_a_closed_connection_opens_again(connection: Connection) -> None:
    """Closing gives the thread and the file back; nothing that was committed is lost."""
    with connection.transaction() as transaction:
        transaction.run(ADD, ("kept",))
    before = threading.active_count()

    connection.close()
    connection.close()

    assert threading.active_count() < before
    assert names(connection) == ["kept"]


FORKING = """
import os, sys
from x402tools._connection import Connection

def add(name):
    with connection.transaction() as transaction:
        transaction.run("INSERT INTO things VALUES (?)", (name,))
    return len(connection.rows("SELECT name FROM things"))

connection = Connection(sys.argv[1], "FULL")
add("before")
child = os.fork()
if child == 0:
    print(add("child"), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(status, add("parent"), flush=True)
"""


def test_a_forked_child_makes_its_own(path: pathlib.Path) -> None:
    """The copy of the parent's thread does not exist there; the child must neither hang on it nor harm the parent."""
    with Program(FORKING, path) as program:
        answers = program.line(), program.line()

    assert answers == ("2", "0 3")
