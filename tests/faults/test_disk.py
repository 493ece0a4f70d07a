"""Disk faults D1 to D7 and D14 to D18 of the catalogue, in its order; the ids are in the names of the tests.

D8 to D13 are in `test_disk_damage`, D11 is in `test_storage_security`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from typing import Callable, Dict, Iterator

import pytest

from tests.buffer.helpers import stored_posts
from tests.faults.disk_powercut import cuts, recorded
from tests.faults.disk_tools import Service, child, eventually, filled, full, small_disk, spool
from x402tools import UsageBuffer
from x402tools.errors import SpoolError

pytestmark = pytest.mark.alone  # within a second and the like, which a busy machine does not keep to

# -- D1 to D4: writing fails -------------------------------------------------------------------------------------------


def test_D01_full_disk_delivers_from_memory_and_heals(tmp_path: pathlib.Path) -> None:
    """A full disk: events are delivered from memory, stats() says why, and after it the ledger is exact."""
    # Twice what the events and the log of their settlement take: with all of it taken by itself it could not heal.
    with small_disk(tmp_path / "disk", 1000) as disk, spool(disk / "usage.db") as opened:
        opened.record(200)
        opened.settle()

        with full(disk):
            opened.record(2000, size=300)
            eventually(lambda: opened.stats().delivered.events == 2200, "delivered while the disk is full")
            meanwhile = opened.stats()
        healed = eventually(lambda: opened.stats().problem is None, "healed")

        assert meanwhile.problem is not None
        assert opened.service.events == 2200
        assert healed <= 5
        stats = opened.settle()
        assert (stats.recorded.events, stats.delivered.events) == (2200, 2200)
        assert opened.service.repeats == 0
        assert any("full" in line for line in opened.errors)


def test_D01_full_disk_keeps_what_was_stored_and_what_waits(tmp_path: pathlib.Path) -> None:
    """A full disk while the service is away: nothing is lost, and the next process delivers what this one stored."""
    service = Service()
    with small_disk(tmp_path / "disk", 1000) as disk:
        service.open.clear()
        with spool(disk / "usage.db", service) as opened:
            opened.record(500, size=300)
            eventually(lambda: opened.stats().in_memory == 0, "stored")
            with full(disk):
                opened.record(500, size=300)
                eventually(lambda: opened.stats().problem, "noticed")
                assert opened.stats().pending.events == 1000
            eventually(lambda: opened.stats().in_memory == 0, "stored once there is room")

        service.open.set()
        with spool(disk / "usage.db", service) as opened:
            stats = opened.settle()

    assert service.events == 1000
    assert stats.delivered.events == 1000


def test_D01_full_disk_until_the_end_loses_nothing_silently(tmp_path: pathlib.Path) -> None:
    """Closed while the disk is full and the service away: in time, and each lost event is counted and reported."""
    service = Service()
    with small_disk(tmp_path / "disk", 400) as disk:
        with spool(disk / "usage.db", service) as opened:
            opened.record(100)
            opened.settle()
            service.open.clear()
            with full(disk):
                opened.record(5000, size=300)
                eventually(lambda: "full" in str(opened.stats().problem), "noticed")
                opened.buffer.close()

        stats = opened.stats()
        assert stats.dropped.events + stats.pending.events == 5000
        assert len(opened.dropped) == stats.dropped.events > 0


def test_D01_file_size_limit(tmp_path: pathlib.Path) -> None:
    """RLIMIT_FSIZE, an error in the middle of COMMIT: delivered from memory, healed, exact."""
    report = child("limited_file_size", tmp_path / "usage.db", "500")

    assert report["problem"]
    assert report["delivered"] == report["booked"] == 510


# The first forty writes and the first three syncs make the file.
FAULTS = {
    "D02-enospc-in-insert-and-commit": ["pwrite64:error=ENOSPC:when=50..100"],
    "D02-enospc-now-and-then": ["pwrite64:error=ENOSPC:when=50+7"],
    "D03-eio-on-write-once": ["pwrite64:error=EIO:when=60"],
    "D03-eio-on-write-burst": ["pwrite64:error=EIO:when=60..90"],
    "D03-eio-on-fsync-once": ["fdatasync:error=EIO:when=5"],
    "D03-eio-on-fsync-now-and-then": ["fdatasync:error=EIO:when=4+3"],
    "D03-eio-on-fsync-for-ever": ["fdatasync:error=EIO:when=4+1"],
    "D03-eio-on-write-for-ever": ["pwrite64:error=EIO:when=50+1"],
}


@pytest.mark.parametrize("durability", ["interval", "commit"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) for name in sorted(FAULTS)])
def test_D02_D03_failing_system_calls(name: str, durability: str, tmp_path: pathlib.Path) -> None:
    """Whatever call fails, every event is booked once, in time, and the ledger says so."""
    strace = ["-P", str(tmp_path / "usage.db"), "-P", str(tmp_path / "usage.db-wal")]
    strace += [part for fault in FAULTS[name] for part in ("-e", f"inject={fault}")]

    report = child("deliver_all", tmp_path / "usage.db", "300", durability, strace=strace)

    passing = name.endswith("once")  # may be over before anybody is told
    assert report["errors"] or passing, "the fault did not happen"
    assert report["booked"] == 300
    assert report["delivered"] + report["pending"] == report["recorded"] == 300
    assert report["flushed"]
    assert report["slowest"] < 1
    assert report["closing"] <= 1.5


def test_D02_checkpoint_and_delete_fail_on_a_full_disk(tmp_path: pathlib.Path) -> None:
    """Stored events are delivered although deleting them fails; killed before it heals, the same keys come again."""
    service = Service()
    with small_disk(tmp_path / "disk", 1500) as disk:
        filled(disk / "usage.db", 2000, size=300)
        with spool(disk / "usage.db", service) as opened, full(disk):
            eventually(lambda: service.events == 2000, "delivered")
            assert opened.stats().delivered.events == 2000
            copy = shutil.copytree(disk, tmp_path / "as the kill left it")

        with spool(copy / "usage.db", service) as opened:
            opened.settle()

    assert service.events == 2000


@pytest.mark.full
@pytest.mark.parametrize("seconds", [0.7, 5.0])
def test_D04_slow_fsync(seconds: float, tmp_path: pathlib.Path) -> None:
    """A sync that takes its time keeps nobody waiting who records, and not the end of the process."""
    delay = f"inject=fdatasync:delay_enter={int(seconds * 1e6)}:when=6"
    strace = ["-P", str(tmp_path / "usage.db-wal"), "-e", delay]

    report = child("deliver_all", tmp_path / "usage.db", "100", strace=strace)

    assert report["slowest"] < 0.3
    assert report["flushed"]
    assert report["booked"] == report["delivered"] == 100
    assert report["closing"] <= 1.5


@pytest.mark.full
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_D04_fsync_hangs_at_the_end(durability: str, tmp_path: pathlib.Path) -> None:
    """A disk that does not answer any more does not keep the process from ending."""
    strace = ["-P", str(tmp_path / "usage.db-wal"), "-e", "inject=fdatasync:delay_enter=4000000:when=8+1"]

    report = child("deliver_all", tmp_path / "usage.db", "40", durability, strace=strace)

    assert report["closing"] <= 1.5
    assert report["slowest"] < 0.3


def test_D04_write_hangs_in_a_caller(tmp_path: pathlib.Path) -> None:
    """Neither the end of the process nor another caller waits for the one whose write into the journal does not return:
    they go on without the journal, and lose nothing."""
    path = tmp_path / "usage.db"
    strace = ["-e", "inject=pwrite64:delay_enter=8000000:when=400+1"]

    report = child("write_hangs_in_a_caller", path, strace=strace)

    assert report["is_still_hanging"]
    assert report["closing"] <= 1.5
    assert not report["is_beside_waiting"]
    assert any("does not answer" in line for line in report["errors"])
    assert report["dropped"] == 0
    stored = {post.key for post in stored_posts(path)}
    assert stored >= {"beside", "main", *(f"key-{number}" for number in range(report["stored"]))}
    assert report["stored"] > 300


# -- D5 to D7: a power cut, rights, and what is at the path ------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("half_kept", [False, True], ids=["unsynced-lost", "unsynced-half-kept"])
def test_D05_power_cut(half_kept: bool, tmp_path: pathlib.Path) -> None:
    """With durability="fsync" nothing that was recorded is lost at any of 250 moments, and every file is readable."""
    steps = recorded(tmp_path / "recorded", "fsync", 150)

    seen, most = 0, 0
    for cut in cuts(steps, 250, half_kept, tmp_path / "cut"):
        connection = sqlite3.connect(cut.folder / "usage.db")
        with contextlib.closing(connection):
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            stored = connection.execute("SELECT total(events) FROM sealed").fetchone()[0]
        assert stored >= cut.returned
        seen, most = seen + 1, max(most, cut.returned)

    assert seen == 250
    assert most > 100


@pytest.mark.full
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_D05_power_cut_without_a_sync_for_each(durability: str, tmp_path: pathlib.Path) -> None:
    """What was not synced is lost, the last first and without a hole; the file is readable and nothing is torn."""
    steps = recorded(tmp_path / "recorded", durability, 400)

    most = 0
    for cut in cuts(steps, 20, False, tmp_path / "cut"):
        with spool(cut.folder / "usage.db") as opened:
            assert opened.settle().set_aside == ()
        kept = sorted(int(key.rpartition("-")[2]) for key in opened.service.booked)
        assert kept == list(range(len(kept)))
        most = max(most, cut.returned - len(kept))

    print(f"{durability}: at most the last {most} of 400 lost")
    assert most > 0  # or it promises too little


def test_D05_power_cut_and_the_next_start(tmp_path: pathlib.Path) -> None:
    """After a cut the next process opens the file without setting it aside, and delivers what was recorded."""
    steps = recorded(tmp_path / "recorded", "fsync", 60)

    for cut in cuts(steps, 10, True, tmp_path / "cut"):
        with spool(cut.folder / "usage.db") as opened:
            stats = opened.settle()
        assert opened.service.events >= cut.returned
        assert stats.set_aside == ()


Prepare = Callable[[pathlib.Path], pathlib.Path]


def _a_missing_folder(folder: pathlib.Path) -> pathlib.Path:
    return folder / "missing" / "usage.db"


def _a_folder(folder: pathlib.Path) -> pathlib.Path:
    (folder / "usage.db").mkdir()
    return folder / "usage.db"


def _a_link(folder: pathlib.Path) -> pathlib.Path:
    (folder / "victim").write_bytes(b"untouched")
    (folder / "usage.db").symlink_to(folder / "victim")
    return folder / "usage.db"


def _a_pipe(folder: pathlib.Path) -> pathlib.Path:
    os.mkfifo(folder / "usage.db")
    return folder / "usage.db"


def _a_device(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path("/dev/full")


WRONG_PATHS: Dict[str, Prepare] = {
    "missing-folder": _a_missing_folder,
    "folder": _a_folder,
    "symbolic-link": _a_link,
    "pipe": _a_pipe,
    "device": _a_device,
}


@pytest.mark.parametrize("rights", ["file-of-another", "folder-of-another", "read-only-file"])
def test_D06_no_rights(rights: str, tmp_path: pathlib.Path) -> None:
    """A user without rights gets a refusal at once that names the path; no memory stands in silently."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="x402tools-rights-"))  # tmp_path is closed to other users
    try:
        path = folder / "usage.db"
        filled(path, 10)
        folder.chmod(0o755)
        if rights == "read-only-file":
            os.chown(folder, 65534, 65534)
            os.chown(path, 65534, 65534)
            path.chmod(0o400)
        if rights == "folder-of-another":
            path.unlink()

        report = child("open_as", path, "65534")
    finally:
        shutil.rmtree(folder)

    assert str(folder) in report["refusal"]
    assert report["seconds"] <= 1


def test_D06_read_only_file_system_at_the_start(tmp_path: pathlib.Path) -> None:
    """Refused by name, and usable as soon as it is writable."""
    with small_disk(tmp_path / "disk", 1000) as disk:
        _remount(disk, "ro")
        with pytest.raises(SpoolError, match=r"usage\.db"):
            UsageBuffer(disk / "usage.db")
        _remount(disk, "rw")

        with spool(disk / "usage.db") as opened:
            opened.record(100)
            assert opened.settle().delivered.events == 100


def test_D06_read_only_file_system_while_running(tmp_path: pathlib.Path) -> None:
    """A file system that is made read-only and writable again is outlived."""
    with small_disk(tmp_path / "disk", 1000) as disk, spool(disk / "usage.db") as opened:
        opened.record(100)
        opened.settle()

        _remount(disk, "ro")
        opened.record(100)
        eventually(lambda: opened.service.events == 200, "delivered from memory")
        _remount(disk, "rw")

        assert opened.settle().delivered.events == 200


def _remount(disk: pathlib.Path, how: str) -> None:
    # The open log has a writer, so only a forced remount works, and only where the kernel lets root do it.
    done = subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot be remounted: {done.stderr.decode().strip()}")


@pytest.mark.parametrize("name", sorted(WRONG_PATHS))
def test_D07_wrong_path(name: str, tmp_path: pathlib.Path) -> None:
    """Whatever stands at the path that is not a spool is refused at once, by name, and left as it is."""
    path = WRONG_PATHS[name](tmp_path)
    started = time.monotonic()

    with pytest.raises(SpoolError, match=str(path)):
        UsageBuffer(path)

    assert time.monotonic() - started <= 1
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_bytes() == b"untouched"


# -- D14 to D18 --------------------------------------------------------------------------------------------------------


def test_D14_restored_from_a_backup(tmp_path: pathlib.Path) -> None:
    """Delivered events that come back with an old copy are sent under the same keys: the service drops them."""
    service, path = Service(), tmp_path / "usage.db"
    filled(path, 500)
    shutil.copy(path, tmp_path / "backup")
    with spool(path, service) as opened:
        opened.settle()

    shutil.copy(tmp_path / "backup", path)
    with spool(path, service) as opened:
        opened.settle()

    assert service.events == 500
    assert service.repeats == 500


@pytest.mark.parametrize("seconds", [3.0, pytest.param(12.0, marks=pytest.mark.full)])
def test_D15_locked_by_another_program(seconds: float, tmp_path: pathlib.Path) -> None:
    """While another program holds the lock recording does not wait, events pass through memory, then all is stored."""
    path = tmp_path / "usage.db"
    with spool(path) as opened:
        opened.record(100)
        opened.settle()
        with _locked(path):
            started = time.monotonic()
            opened.record(1000)
            recording = time.monotonic() - started
            eventually(lambda: opened.service.events == 1100, "delivered from memory")
            eventually(lambda: opened.stats().problem, "said")
            threading.Event().wait(max(started + seconds - time.monotonic(), 0))
        healed = eventually(lambda: opened.stats().problem is None, "healed")

        assert recording < 1
        assert healed <= 3
        assert opened.settle().delivered.events == 1100
        assert opened.service.repeats == 0


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_D16_no_file_handles_left(tmp_path: pathlib.Path) -> None:
    """Without a free handle the open spool goes on, a new one is refused by name, and later both work."""
    report = child("limited_handles", tmp_path / "usage.db")

    assert report["delivered_meanwhile"]
    assert str(tmp_path / "usage.db2") in report["refusal"]
    assert report["delivered"] == 200


@pytest.mark.parametrize("events", [10_000, pytest.param(40_000, marks=pytest.mark.proof)])
def test_D17_drained_file_shrinks(events: int, tmp_path: pathlib.Path) -> None:
    """A backlog of 17 or 70 MB: when it is delivered the file is small again, and the log was never large."""
    path = tmp_path / "usage.db"
    size = filled(path, events, size=3000)
    most = 0

    with spool(path, max_concurrency=4) as opened:

        def is_done() -> bool:
            nonlocal most
            most = max(most, os.path.getsize(f"{path}-wal"))
            return opened.service.events == events

        eventually(is_done, "delivered", seconds=60)
        eventually(lambda: os.path.getsize(path) < 200_000, "shrunk", seconds=10)

    assert size > 8_000_000
    assert most < 16_000_000


@pytest.mark.full
def test_D17_disk_limit_is_honoured(tmp_path: pathlib.Path) -> None:
    """Beyond max_disk_bytes events pass through memory, and it says so."""
    service, path = Service(), tmp_path / "usage.db"
    service.open.clear()
    with spool(path, service, max_disk_bytes=1024**2, max_queue_size=20_000) as opened:
        opened.record(20_000, size=400)
        eventually(lambda: "max_disk_bytes" in str(opened.stats().problem), "said")
        stored = os.path.getsize(path)
        service.open.set()
        stats = opened.settle()

    assert stored < 3 * 1024**2
    assert stats.delivered.events + stats.dropped.events == 20_000


def test_D18_memory_file_system(tmp_path: pathlib.Path) -> None:
    """A spool on tmpfs works like any other; what was lost with the machine is another matter."""
    with small_disk(tmp_path / "disk", 4000) as disk, spool(disk / "usage.db", durability="fsync") as opened:
        opened.record(20)

        assert opened.settle().delivered.events == 20
