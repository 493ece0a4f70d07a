"""The storage part of the security checklist: who may read the spool, and what a file from somebody else may do."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import sqlite3
import stat
import tracemalloc

import pytest

from tests.faults.disk_tools import eventually, filled, spool
from x402tools import UsageBuffer, X402Client
from x402tools.errors import SpoolError

_SECRET = "sk_live_never_on_disk"


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _run(path: pathlib.Path, *statements: tuple[str, tuple[object, ...]] | str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))


def test_files_are_readable_by_their_owner_only(tmp_path: pathlib.Path) -> None:
    """The spool, its logs and its locks have mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with spool(tmp_path / "usage.db") as opened:
            opened.record(10)
            opened.settle()

            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)

    assert {"usage.db", "usage.db-wal", "usage.db-shm", "usage.db.lock"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_default_folder_is_closed_to_others(tmp_path: pathlib.Path) -> None:
    """Without a path the spool is in the user's state folder, in a folder of mode 0700."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path)
    try:
        with contextlib.closing(UsageBuffer()) as buffer:
            path = buffer.path
    finally:
        del os.environ["XDG_STATE_HOME"]
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before

    assert path == str(tmp_path / "x402tools" / "usage.db")
    assert stat.S_IMODE((tmp_path / "x402tools").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(mode: int, tmp_path: pathlib.Path) -> None:
    """Its content could be anybody's."""
    path = tmp_path / "usage.db"
    filled(path, 1)
    path.chmod(mode)

    with pytest.raises(SpoolError, match="chmod 600"):
        UsageBuffer(path)


@pytest.mark.parametrize("log", ["-wal", "-shm", "-journal"])
def test_a_planted_link_for_a_log_is_refused(log: str, tmp_path: pathlib.Path) -> None:
    """SQLite would write into the file it points to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    pathlib.Path(f"{tmp_path / 'usage.db'}{log}").symlink_to(victim)

    with pytest.raises(SpoolError, match=log):
        UsageBuffer(tmp_path / "usage.db")

    assert victim.read_bytes() == b"untouched"


def test_a_folder_that_anybody_may_write_is_refused(tmp_path: pathlib.Path) -> None:
    """Unless it is ours, whoever writes there could plant logs that SQLite takes for its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    tmp_path.chmod(0o777)
    os.chown(tmp_path, 65534, 65534)

    with pytest.raises(SpoolError, match="anybody may write"):
        UsageBuffer(tmp_path / "usage.db")


def test_the_api_key_is_never_written(tmp_path: pathlib.Path) -> None:
    """Neither into the spool nor into a name; the destination only as a hash."""
    buffer = UsageBuffer(tmp_path / "usage.db", exit_timeout=0.2)
    with X402Client(_SECRET, "https://billing.invalid", buffer=buffer) as client:
        client.record_usage("env_1", 1)
        eventually(lambda: buffer.stats().in_memory == 0, "stored")

        content = b"".join(file.read_bytes() for file in tmp_path.iterdir())

    assert _SECRET.encode() not in content
    assert b"billing.invalid" not in content


def test_delivered_metadata_does_not_linger(tmp_path: pathlib.Path) -> None:
    """After delivery the file no longer holds what it held."""
    path = tmp_path / "usage.db"
    with spool(path, deliver=False) as writer:
        writer.buffer.record("env_1", 1, {"who": "marker-of-a-person"})
        eventually(lambda: writer.stats().in_memory == 0, "stored")
    assert b"marker-of-a-person" in path.read_bytes()

    with spool(path) as opened:
        opened.settle()

    assert b"marker-of-a-person" not in path.read_bytes()


def test_delivered_batches_of_many_pages_do_not_linger(tmp_path: pathlib.Path) -> None:
    """Nor does what filled pages of its own, in the file or in its log."""
    path = tmp_path / "usage.db"
    with spool(path, deliver=False) as writer:
        writer.record(200, size=600)
        eventually(lambda: writer.stats().in_memory == 0, "stored")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            values = [row[0] for row in connection.execute("SELECT value FROM sealed")]
    pieces = [value[at : at + 48] for value in values for at in range(50, len(value) - 60, 512)]
    assert sum(piece in path.read_bytes() for piece in pieces) > 50

    with spool(path) as opened:
        opened.settle()

    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(piece in content for piece in pieces)


def test_D11_a_planted_pickle_runs_no_code(tmp_path: pathlib.Path) -> None:
    """In every table: nothing is ever unpickled, and what is ours is delivered."""
    path, trap = tmp_path / "usage.db", tmp_path / "trap"
    filled(path, 50)
    bomb = sqlite3.Binary(pickle.dumps(_Bomb(trap)))
    _run(
        path,
        ("INSERT INTO sealed (batch, sealed_at, events, units, value) VALUES ('x', 0, 1, 1, ?)", (bomb,)),
        ("INSERT INTO dead (place, key, events, units, readable, details, value) VALUES ('x', 'k', 1, 1, 1, ?, ?)",
         (bomb, bomb)),
        ("INSERT INTO meta VALUES ('bomb', ?)", (bomb,)),
        "UPDATE ledger SET events = events + 2, low = low + 2 WHERE name = 'recorded'",
    )  # fmt: skip

    with spool(path) as opened:
        opened.settle()
        letters = opened.buffer.dead_letters()

    assert opened.service.events == 50
    assert [letter.readable for letter in letters] == [False, False]
    assert not trap.exists()


@pytest.mark.parametrize("value", ["CAST(X'FFFE00' AS TEXT)", "'text'", "7"])
def test_D11_values_of_other_types(value: str, tmp_path: pathlib.Path) -> None:
    """Text that is no UTF-8 would kill sqlitedict's thread: the row is quarantined, and all others are delivered."""
    path = tmp_path / "usage.db"
    filled(path, 50)
    planted = f"INSERT INTO sealed (batch, sealed_at, events, units, value) VALUES ('x', 0, 1, 1, {value})"  # noqa: S608 - one of the three above
    _run(path, planted, "UPDATE ledger SET events = events + 1, low = low + 1 WHERE name = 'recorded'")

    with spool(path) as opened:
        stats = opened.settle()
        letters = opened.buffer.dead_letters()

    assert opened.service.events == 50
    assert [letter.readable for letter in letters] == [False]
    assert stats.set_aside == ()


@pytest.mark.parametrize("column", ["batch", "events", "units"])
def test_D11_text_that_is_no_utf8_elsewhere(column: str, tmp_path: pathlib.Path) -> None:
    """In a column that is read as it is: what cannot be trusted stays in the old file, the rest is delivered."""
    path = tmp_path / "usage.db"
    filled(path, 50)
    row = {"batch": "'x/1'", "sealed_at": "0", "events": "1", "units": "1", "value": "X'00'"}
    row[column] = "CAST(X'FFFE00' AS TEXT)"
    planted = f"INSERT INTO sealed ({', '.join(row)}) VALUES ({', '.join(row.values())})"  # noqa: S608 - see above
    _run(path, planted, "UPDATE ledger SET events = events + 1, low = low + 1 WHERE name = 'recorded'")

    with spool(path) as opened:
        opened.settle()

    assert opened.service.events == 50


def test_D11_a_huge_row_is_not_read_into_memory(tmp_path: pathlib.Path) -> None:
    """A row of 100 MB is left in the file that is set aside; the others are delivered."""
    path = tmp_path / "usage.db"
    filled(path, 50)
    _run(path, "INSERT INTO sealed (batch, sealed_at, events, units, value) VALUES ('x', 0, 1, 1, zeroblob(100000000))",
         "UPDATE ledger SET events = events + 1, low = low + 1 WHERE name = 'recorded'")  # fmt: skip
    tracemalloc.start()
    try:
        with spool(path) as opened:
            stats = opened.settle()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert opened.service.events == 50
    assert len(stats.set_aside) == 1
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE TRIGGER thief AFTER INSERT ON sealed BEGIN DELETE FROM sealed; END",
        "CREATE VIEW spy AS SELECT * FROM sealed",
        "CREATE TABLE stranger (x)",
        "DROP TABLE dead",
    ],
)
def test_D11_a_file_with_other_tables_is_set_aside(planted: str, tmp_path: pathlib.Path) -> None:
    """No trigger of somebody's making ever runs: the rows move to a file of our own making."""
    path = tmp_path / "usage.db"
    filled(path, 50)
    _run(path, planted)

    with spool(path) as opened:
        opened.record(10)
        stats = opened.settle()

    assert opened.service.events == 60
    assert len(stats.set_aside) == 1


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)"),
        ("PRAGMA application_id=77",),
        ("PRAGMA application_id=2016686130", "PRAGMA user_version=3"),  # ours, of a later format
    ],
)
def test_F11_another_program_s_or_a_later_file_is_left_untouched(
    statements: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    """Refused by name, and not one byte of it changes."""
    path = tmp_path / "usage.db"
    path.touch(mode=0o600)
    _run(path, *statements)
    before = path.read_bytes()

    with pytest.raises(SpoolError, match=str(path)):
        UsageBuffer(path)

    assert path.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "corrupt" in file.name]
