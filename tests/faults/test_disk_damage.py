"""Disk faults D8 to D12 of the catalogue: files that are damaged, closed or open; and files that are gone.

D11, rows that somebody planted, is in `test_storage_security`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sqlite3
import time
from typing import Callable

import pytest

from tests.faults.disk_tools import Service, child, eventually, filled, spool

pytestmark = pytest.mark.alone  # within a second and the like, which a busy machine does not keep to

# -- D8 to D12: damaged files ------------------------------------------------------------------------------------------


def _garbage(path: pathlib.Path) -> None:
    path.write_bytes(os.urandom(20_000))


def _emptied(path: pathlib.Path) -> None:
    os.truncate(path, 0)


def _cut_to_half(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_to_a_bit(path: pathlib.Path) -> None:
    os.truncate(path, 5000)


def _holes(path: pathlib.Path) -> None:
    """Noise over twenty pages from the middle on."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(20 * 4096))


@pytest.mark.parametrize("damage", [_garbage, _cut_to_half, _cut_to_a_bit], ids=lambda damage: damage.__name__)
def test_D08_damaged_file_at_the_start(damage: Callable[[pathlib.Path], None], tmp_path: pathlib.Path) -> None:
    """A file that is no spool any more is kept under a name that says so, said, and replaced within a second."""
    path = tmp_path / "usage.db"
    filled(path, 2000, size=300)
    damage(path)
    content = path.read_bytes()

    started = time.monotonic()
    with spool(path) as opened:
        took = time.monotonic() - started
        opened.record(10)
        stats = opened.settle()
        eventually(lambda: opened.errors, "said")

    assert took <= 1
    assert opened.service.events >= 10
    assert len(stats.set_aside) == 1
    assert damage is not _garbage or pathlib.Path(stats.set_aside[0]).read_bytes() == content
    assert any(stats.set_aside[0] in line for line in opened.errors)


def test_D08_emptied_file(tmp_path: pathlib.Path) -> None:
    """An empty file is a new spool."""
    path = tmp_path / "usage.db"
    filled(path, 100)
    _emptied(path)

    with spool(path) as opened:
        opened.record(10)

        assert opened.settle().delivered.events == 10


def test_D09_damaged_pages(tmp_path: pathlib.Path) -> None:
    """Noise over twenty pages in the middle: what lies before and behind is delivered, the file is kept."""
    path = tmp_path / "usage.db"
    filled(path, 20_000, size=300)
    _holes(path)

    with spool(path) as opened:
        stats = opened.settle()

    assert 10_000 <= opened.service.events < 20_000
    assert opened.service.repeats == 0
    assert stats.dead.events or stats.set_aside


def test_D09_damaged_while_open(tmp_path: pathlib.Path) -> None:
    """Noise written into a file that is open: the service goes on without a restart."""
    path, service = tmp_path / "usage.db", Service()
    filled(path, 20_000, size=300)
    service.open.clear()
    with spool(path, service) as opened:
        _holes(path)
        service.open.set()
        opened.record(100)
        stats = opened.settle()

    assert service.events >= 10_000
    assert stats.dead.events or stats.set_aside


FLIPS = {
    "value": "UPDATE sealed SET value = CAST(substr(value, 1, 200) || X'00' || substr(value, 202) AS BLOB)",
    "checksum": "UPDATE sealed SET value = CAST(substr(value, 1, 2) || X'01020304' || substr(value, 7) AS BLOB)",
    "format": "UPDATE sealed SET value = CAST(X'09' || substr(value, 2) AS BLOB)",
    "counts": "UPDATE sealed SET events = 7, units = 9",
    "settled": "INSERT INTO settled SELECT sequence, 1, 1, X'0F' FROM sealed",
}


@pytest.mark.parametrize("flipped", sorted(FLIPS))
def test_D10_flipped_digit(flipped: str, tmp_path: pathlib.Path) -> None:
    """A value that changed on the disk is set aside as a dead letter, or set right where that is possible."""
    path = tmp_path / "usage.db"
    filled(path, 100)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        last = connection.execute("SELECT max(sequence) FROM sealed").fetchone()[0]
    filled(path, 50)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"{FLIPS[flipped]} WHERE sequence <= ?", (last,))

    with spool(path) as opened:
        stats = opened.settle()
        letters = opened.buffer.dead_letters()

    repairable = flipped in ("counts", "settled")
    assert opened.service.events == (150 if repairable else 50)
    assert stats.dead.events == (0 if repairable else 100)
    assert all(not letter.readable and "damaged" in letter.reason for letter in letters)


@pytest.mark.parametrize("damage", ["cut", "noise", "deleted"])
def test_D12_log_damaged_while_closed(damage: str, tmp_path: pathlib.Path) -> None:
    """What SQLite recovers of a damaged log is delivered, and everything recorded after it."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with spool(tmp_path / "usage.db", deliver=False) as writer:
        for number in range(20):
            writer.record(50)
            eventually(lambda: writer.stats().in_memory == 0, f"part {number} stored")
        for part in ("usage.db", "usage.db-wal"):
            shutil.copy(tmp_path / part, copy / part)
    log = copy / "usage.db-wal"
    if damage == "cut":
        os.truncate(log, log.stat().st_size * 6 // 10)
    elif damage == "noise":
        log.write_bytes(os.urandom(log.stat().st_size))
    else:
        log.unlink()

    with spool(copy / "usage.db") as opened:
        opened.record(10)
        opened.settle()

    assert 10 <= opened.service.events < 1010
    assert damage != "cut" or opened.service.events > 100


# -- deleted or replaced under us --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "all-files", "folder-renamed-back"])
def test_D13_deleted_while_open(how: str, tmp_path: pathlib.Path) -> None:
    """Deleted under a live process: noticed within a second, said, and what was pending is carried over."""
    service, folder = Service(), tmp_path / "spool"
    folder.mkdir()
    path = folder / "usage.db"
    service.open.clear()
    with spool(path, service) as opened:
        opened.record(1000)
        eventually(lambda: opened.stats().in_memory == 0, "stored")
        if how == "file":
            path.unlink()
        elif how == "all-files":
            for file in folder.iterdir():
                file.unlink()
        else:
            folder.rename(tmp_path / "away")
            folder.mkdir()

        noticed = eventually(path.exists, "a new file")
        opened.record(1000)
        service.open.set()
        stats = opened.settle()

        assert noticed <= 1.5
        assert (stats.recorded.events, stats.delivered.events) == (2000, 2000)
        assert service.events == 2000
        assert any("deleted or replaced" in line for line in opened.errors)


def test_D13_deleted_right_before_a_fork(tmp_path: pathlib.Path) -> None:
    """The connection that alone still reaches the events is not closed around the fork: they are carried over."""
    report = child("fork_beside_a_deleted_file", tmp_path / "usage.db")

    assert report["booked"] == report["recorded"] == 300
    assert any("deleted or replaced" in line for line in report["errors"])


def test_D13_replaced_while_open(tmp_path: pathlib.Path) -> None:
    """Another spool takes the place of the open one: the events of both are delivered, once."""
    service, path = Service(), tmp_path / "usage.db"
    filled(tmp_path / "other.db", 700)
    service.open.clear()
    with spool(path, service) as opened:
        opened.record(1000)
        eventually(lambda: opened.stats().in_memory == 0, "stored")
        os.rename(tmp_path / "other.db", path)
        eventually(lambda: opened.errors, "noticed", seconds=1.5)
        service.open.set()
        opened.settle()

    assert service.events == 1700


def test_D13_two_processes_carry_over_once(tmp_path: pathlib.Path) -> None:
    """Two buffers on one file that is deleted: what was pending is in the new one once, and what both recorded."""
    service, path = Service(), tmp_path / "usage.db"
    service.open.clear()
    with spool(path, service) as first, spool(path, service) as second:
        for opened in (first, second):
            opened.record(500)
            eventually(lambda: first.stats().in_memory == second.stats().in_memory == 0, "stored")
        path.unlink()
        for opened in (first, second):
            opened.record(500)
        eventually(lambda: first.errors and second.errors, "both noticed")
        eventually(lambda: first.stats().pending.events == 2000, "carried over once")
        service.open.set()
        stats = first.settle()

    assert service.events == 2000
    assert stats.recorded.events == 2000
