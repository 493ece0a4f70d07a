"""The end of a process: whatever ends it, what was recorded is delivered or on disk, and it ends in time."""

from __future__ import annotations

import pathlib
import signal
import threading
import time
from typing import List

import pytest

from tests.buffer.helpers import URL, Program, ScriptedDelivery, stored_posts
from x402tools import BufferClosedError, UsageBuffer
from x402tools.testing import Emulator, Fault

START = """
import os, signal, sys, threading, time
from x402tools import UsageBuffer, X402Client
path, base_url, envelope, options = sys.argv[1:]
buffer = UsageBuffer(path, **eval(options))
client = X402Client("sk_emulator", base_url, buffer=buffer)
for number in range(20):
    client.record_usage(envelope, 1)
print(time.monotonic(), flush=True)
"""

ENDINGS = {
    "falling off the end": "",
    "sys.exit": "sys.exit(0)",
    "sys.exit in a function": "(lambda: sys.exit(3))()",
    "an exception": "raise RuntimeError('of the service')",
    "an interrupt": "os.kill(os.getpid(), signal.SIGINT); threading.Event().wait(20)",
    "SIGTERM with a handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getpid(), signal.SIGTERM);"
        " threading.Event().wait(20)"
    ),
    "a thread of the service's own": "threading.Thread(target=lambda: client.record_usage(envelope, 1)).start()",
}


@pytest.fixture
def envelope(emulator: Emulator) -> str:
    return emulator.create_envelope()


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_an_ending_process_delivers(
    emulator: Emulator, envelope: str, tmp_spool: pathlib.Path, name: str, durability: str
) -> None:
    """Everything recorded is delivered, without a word from the service, and soon."""
    code = START + ENDINGS[name]
    with Program(code, tmp_spool, emulator.base_url, envelope, {"durability": durability}) as program:
        before = float(program.line())
        program.ended()
        took = time.monotonic() - before

    expected = 21 if name == "a thread of the service's own" else 20
    assert emulator.ledger().events == expected
    assert stored_posts(tmp_spool) == []
    assert took < 2.5
    assert "Exception ignored" not in program.errors()


@pytest.mark.alone  # within half a second more, which a busy machine does not keep to
def test_a_silent_service_does_not_hold_up_the_exit(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """It takes every request and answers none: the process ends within exit_timeout and half a second."""
    emulator.set_faults(Fault.hang(60.0, path="/usage"))

    with Program(START, tmp_spool, emulator.base_url, envelope, {"exit_timeout": 1.0}) as program:
        before = float(program.line())
        status = program.ended()
        took = time.monotonic() - before

    assert status == 0
    assert took < 1.5
    assert len(stored_posts(tmp_spool)) == 20
    assert program.errors() == ""


@pytest.mark.alone  # within half a second more, which a busy machine does not keep to
def test_a_service_that_is_down_does_not_hold_up_the_exit(tmp_spool: pathlib.Path) -> None:
    """Everything stays on disk, and the next start delivers it."""
    with Program(START, tmp_spool, URL, "env_1", {}) as program:
        before = float(program.line())
        status = program.ended()
        took = time.monotonic() - before
    left = [post.key for post in stored_posts(tmp_spool)]
    deliver = ScriptedDelivery()

    with UsageBuffer(tmp_spool) as again:
        again.attach(deliver, URL)
        flushed = again.flush(10)

    assert status == 0
    assert took < 2.5
    assert len(left) == 20
    assert flushed
    assert sorted(deliver.keys()) == sorted(left)


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_what_was_committed_survives_any_end(tmp_spool: pathlib.Path, ending: str) -> None:
    """Nothing runs at such an end; what `record` had committed is there."""
    with Program(START + ending, tmp_spool, URL, "env_1", {"durability": "commit"}) as program:
        program.ended()

    assert len(stored_posts(tmp_spool)) == 20


def test_sigterm_without_a_handler_loses_nothing_committed(tmp_spool: pathlib.Path) -> None:
    """Python ends at once then; the next start delivers."""
    code = START + "threading.Event().wait(20)"
    with Program(code, tmp_spool, URL, "env_1", {"durability": "commit"}) as program:
        program.line()
        program.signal(signal.SIGTERM)
        status = program.ended()

    assert status == -signal.SIGTERM
    assert len(stored_posts(tmp_spool)) == 20


def test_recording_during_the_exit_is_stored(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """From another atexit handler: before ours it is still delivered, after it stored for the next start."""
    code = (
        "import atexit\n"
        "def late():\n"
        "    try:\n"
        "        print('kept', client.record_usage(envelope, 1).pending, flush=True)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, flush=True)\n"
        "atexit.register(late)\n" + START + "atexit.register(late)\n"  # runs after ours, which is registered later
    )

    with Program(code, tmp_spool, emulator.base_url, envelope, {}) as program:
        program.line()
        status = program.ended()

    assert status == 0
    assert program.lines() == ["kept True", "kept True"]
    assert emulator.ledger().events == 21
    assert len(stored_posts(tmp_spool)) == 1


FORKING = (
    START
    + """
import multiprocessing

def work():
    client.record_usage(envelope, 1)

process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(20)
print("child", process.exitcode, flush=True)
"""
)


def test_a_multiprocessing_child_stores_what_it_recorded(
    emulator: Emulator, envelope: str, tmp_spool: pathlib.Path
) -> None:
    """Such a child runs no atexit handlers; what it recorded a moment before its end is not lost for that."""
    with Program(FORKING, tmp_spool, emulator.base_url, envelope, {}) as program:
        program.line()
        child = program.line()
        program.ended()

    assert child == "child 0"
    assert emulator.ledger().events + len(stored_posts(tmp_spool)) == 21


def test_what_many_threads_record_after_the_end_is_stored(tmp_spool: pathlib.Path) -> None:
    """Each stores its own, in whatever order they get there."""
    buffer = UsageBuffer(tmp_spool)
    assert buffer._parts is not None
    buffer._parts.close_at_exit()
    start = threading.Barrier(8, timeout=10)
    recorded: List[str] = []

    def record() -> None:
        start.wait()
        for _ in range(20):
            try:
                recorded.append(buffer.record("env_1", 1).id)
            except BufferClosedError:  # on a busy machine the others may keep it from the file for too long: it is told
                pass

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(post.key for post in stored_posts(tmp_spool)) == sorted(recorded)
    assert len(recorded) > 80
