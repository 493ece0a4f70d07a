"""Programs that are run, killed and forked for real, with a deadline for each, so that a hang is a named failure."""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

from x402tools import UsageBuffer
from x402tools.testing import Emulator

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 20.0

# What every program begins with. A program that hangs prints where each of its threads stands, and dies.
PREAMBLE = """
import atexit, faulthandler, os, signal, sys, threading, time
import functools
# No function of this module: what is registered for ever would keep its globals from being cleared at the end.
watch = functools.partial(faulthandler.dump_traceback_later, %r, exit=True)
watch()  # a fork copies the watchdog without its thread, and the child would wait for it at its end
os.register_at_fork(
    before=faulthandler.cancel_dump_traceback_later, after_in_parent=watch, after_in_child=watch)
from x402tools import *
from x402tools.errors import *
path, base_url, envelope = sys.argv[1:4]
def make(**options):
    return X402Client("sk_emulator", base_url, buffer=UsageBuffer(path, **options))
def say(*words):  # in one piece: a signal handler may say something too
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


class Finished(NamedTuple):
    """How a program ended."""

    returncode: int
    lines: List[str]
    errors: str
    seconds: float  # from its last word on stdout, or from the signal that was sent, to its end


class Child:
    """A running program; use it in a `with`, which kills it if it still runs. `patience`: more seconds than usual."""

    def __init__(
        self, program: str, *arguments: object, env: Optional[Dict[str, str]] = None, patience: float = 0.0
    ) -> None:
        self._seconds = SECONDS + patience
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", PREAMBLE % self._seconds + program]
            + [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self.lines: List[str] = []
        self._errors = b""
        self._last_word = time.monotonic()
        self._arrived: queue.Queue[str] = queue.Queue()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_lines, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._last_word = time.monotonic()
            self.lines.append(line.decode().rstrip("\n"))
            self._arrived.put(self.lines[-1])

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors = self.process.stderr.read()

    def line(self) -> str:
        """The next line it prints."""
        try:
            return self._arrived.get(timeout=SECONDS)
        except queue.Empty:
            raise AssertionError(f"no line in time; before: {self.lines[-5:]}") from None

    def tell(self, word: str) -> None:
        """A line for its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        """A signal."""
        self._last_word = time.monotonic()
        self.process.send_signal(number)

    def finish(self) -> Finished:
        """Waits for its end."""
        try:
            self.process.wait(self._seconds + 5)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs; it printed {self.lines[-5:]}") from None
        ended = time.monotonic()
        for reader in self._readers:
            reader.join(SECONDS)
        errors = self._errors.decode()
        assert "Timeout (" not in errors, f"it hung:\n{errors}"
        return Finished(self.process.returncode, self.lines, errors, ended - self._last_word)


def run(program: str, *arguments: object) -> Finished:
    """Runs a program to its end."""
    with Child(program, *arguments) as child:
        return child.finish()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The base URL of a service that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def deliver_rest(path: object, emulator: Emulator) -> None:
    """The next start: delivers what an earlier process left in the spool."""
    from x402tools import X402Client

    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(str(path))) as client:
        assert client.flush(SECONDS)
        stats = client.buffer.stats() if client.buffer is not None else None
    assert stats is not None
    assert stats.recorded.plus(_negative(stats.delivered)).plus(_negative(stats.dead)) == stats.dropped, stats


def _negative(tally: Any) -> Any:
    return type(tally)(-tally.events, -tally.units)


def booked(emulator: Emulator) -> List[str]:
    """The keys of everything the service has booked."""
    return [str(event.idempotency_key) for event in emulator.events()]


def check_conservation(emulator: Emulator, accepted: Set[str], *, unsure: int = 0) -> None:
    """Everything that `record_usage` accepted is booked, once, and nothing else but what nobody could be told of."""
    keys = booked(emulator)
    assert len(keys) == len(set(keys)), "booked twice"
    assert accepted <= set(keys), f"{len(accepted - set(keys))} of {len(accepted)} lost"
    assert len(keys) <= len(accepted) + unsure, f"{len(keys) - len(accepted)} more than accepted"


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def until(condition: Any, what: str, seconds: float = SECONDS) -> float:
    """Waits until the condition holds; how long that took."""
    began = time.monotonic()
    tick = threading.Event()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        tick.wait(0.02)
    return time.monotonic() - began


def ids(lines: List[str]) -> List[str]:
    """What a program said it had recorded."""
    return [line.split()[1] for line in lines if line.startswith("id ")]
