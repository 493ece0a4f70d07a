"""What the disk tests share: a service in memory, a full disk, children under strace, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from x402tools import UsageBuffer
from x402tools.buffer import BufferStats

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 20.0  # that anything may take at the most before a test fails
EXIT_TIMEOUT = 1.0


class Service:
    """Takes POSTs as the service does: one booking for each key, and the same body every time."""

    def __init__(self) -> None:
        self.booked: Dict[str, int] = {}  # key to amount
        self.repeats = 0
        self.open = threading.Event()  # cleared: answers nothing but errors
        self.open.set()
        self._bodies: Dict[str, bytes] = {}
        self._lock = threading.Lock()  # guards everything above

    def deliver(self, body: bytes, key: str) -> None:
        if not self.open.is_set():
            raise OSError("the service is away")
        with self._lock:
            assert self._bodies.setdefault(key, body) == body, "one key, two bodies"
            self.repeats += key in self.booked
            self.booked[key] = json.loads(body)["amount"]

    @property
    def events(self) -> int:
        return len(self.booked)


class Spool:
    """A buffer on a path, with its service and what it reported."""

    def __init__(self, path: os.PathLike[str], service: Service, **options: Any) -> None:
        self.service = service
        self.path = str(path)
        self.errors: List[str] = []
        self.dropped: List[str] = []
        options = {"flush_interval": 0.05, "exit_timeout": EXIT_TIMEOUT, **options}
        self.buffer = UsageBuffer(
            path, on_error=self.errors.append, on_drop=lambda usage: self.dropped.append(usage.id), **options
        )
        self.buffer.attach(service.deliver, "https://service.test")

    def record(self, events: int, size: int = 10) -> None:
        for number in range(events):
            self.buffer.record("env_1", 1, {"n": number, "pad": os.urandom(size // 2).hex()})

    def stats(self) -> BufferStats:
        """The ledger, which must add up whenever it is looked at."""
        stats = self.buffer.stats()
        for unit in ("events", "units"):
            parts = [getattr(getattr(stats, part), unit) for part in ("delivered", "pending", "dead", "dropped")]
            assert getattr(stats.recorded, unit) == sum(parts), stats
        return stats

    def settle(self) -> BufferStats:
        """The ledger, once nothing is pending and the disk is well."""
        eventually(lambda: self.buffer.flush(1) and self.stats().problem is None, "everything delivered and stored")
        return self.stats()


@contextlib.contextmanager
def spool(path: os.PathLike[str], service: Optional[Service] = None, **options: Any) -> Iterator[Spool]:
    """A buffer that is closed at the end, within its time."""
    opened = Spool(path, service or Service(), **options)
    try:
        yield opened
    finally:
        started = time.monotonic()
        opened.buffer.close()
        assert time.monotonic() - started <= EXIT_TIMEOUT + 0.5


def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> float:
    """Waits until the condition holds; the seconds it took."""
    started, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() < started + seconds, f"not within {seconds} s: {what}"
        pause.wait(0.01)
    return time.monotonic() - started


def filled(path: os.PathLike[str], events: int, size: int = 10) -> int:
    """Makes a spool with so many pending events and closes it; the size of the file."""
    with spool(path, deliver=False) as writer:
        writer.record(events, size)
        eventually(lambda: writer.stats().in_memory == 0, "everything stored")
    return os.path.getsize(path)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kilobytes: int) -> Iterator[pathlib.Path]:
    """A file system of this size; needs root."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: pathlib.Path) -> Iterator[None]:
    """While the block runs, not a byte is left on the file system of this folder."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for piece in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * piece)
    try:
        yield
    finally:
        ballast.unlink()


def child(
    scenario: str, path: os.PathLike[str], *arguments: str, strace: Optional[List[str]] = None, **options: Any
) -> Dict[str, Any]:
    """Runs a scenario of `disk_child` in a process of its own; what it reports."""
    command = [sys.executable, "-m", "tests.faults.disk_child", scenario, str(path), *arguments]
    if strace is not None:
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed: system calls cannot be made to fail")
        command = ["strace", "-f", "-qq", "-o", os.devnull, *strace, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3 * SECONDS, **options
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))
