"""Many processes and one spool: each records, one delivers, another takes over; and forks at any moment."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Dict, List

import pytest

from tests.buffer.helpers import PROGRAMS, URL, Program, stored_posts, wait_until
from tests.conftest import run_with_deadline
from x402tools._process import FileLock
from x402tools.testing import Emulator, Fault


def worker(path: pathlib.Path, emulator: Emulator, **options: object) -> Program:
    """A service of its own on the spool."""
    program = Program(PROGRAMS / "worker.py", path, emulator.base_url, emulator.api_key, json.dumps(options))
    assert program.answer() == "ready"
    return program


def test_one_of_two_processes_delivers_for_both(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Each may flush, and everything arrives once."""
    envelope = emulator.create_envelope()
    with worker(tmp_spool, emulator) as one, worker(tmp_spool, emulator) as two:
        keys = [key for each in (one, two) for key in each.ask(do="record", envelope=envelope, count=50)]

        flushed = [each.ask(do="flush", timeout=10) for each in (one, two)]
        delivering = [each.ask(do="stats")["delivering"] for each in (one, two)]

    assert flushed == [True, True]
    assert sorted(delivering) == [False, True]
    assert sorted(str(event.idempotency_key) for event in emulator.events()) == sorted(keys)
    assert emulator.ledger().repeats_dropped == 0


def test_another_takes_over_when_the_one_is_killed(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Within two seconds, under the same keys; nothing is lost and nothing is booked twice."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.hang(60.0, path="/usage"))
    with worker(tmp_spool, emulator, durability="commit") as one:
        keys = one.ask(do="record", envelope=envelope, count=30)
        with worker(tmp_spool, emulator, durability="commit") as two:
            keys += two.ask(do="record", envelope=envelope, count=30)
            one.ask(do="flush", timeout=0.3)
            before = [each.ask(do="stats")["delivering"] for each in (one, two)]

            emulator.clear_faults()
            one.kill()
            killed_at = time.monotonic()
            wait_until(lambda: two.ask(do="stats")["delivering"], "the other one delivers", seconds=2)
            took = time.monotonic() - killed_at
            flushed = two.ask(do="flush", timeout=15)

    print(f"taken over after {took:.2f} s")
    assert before == [True, False]
    assert flushed
    assert sorted(str(event.idempotency_key) for event in emulator.events()) == sorted(keys)


def test_a_process_that_ends_hands_over(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """The same after an orderly end."""
    envelope = emulator.create_envelope()
    with worker(tmp_spool, emulator) as one, worker(tmp_spool, emulator) as two:
        one.ask(do="record", envelope=envelope, count=5)
        assert one.ask(do="flush", timeout=10)

        assert one._process.stdin is not None
        one._process.stdin.close()
        one.ended()
        two.ask(do="record", envelope=envelope, count=5)
        flushed = two.ask(do="flush", timeout=5)

    assert flushed
    assert emulator.ledger().events == 10


def test_a_process_that_only_stores(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """`deliver=False`: another process delivers, whoever is first."""
    envelope = emulator.create_envelope()
    with worker(tmp_spool, emulator, deliver=False) as storing:
        storing.ask(do="record", envelope=envelope, count=5)
        alone = storing.ask(do="flush", timeout=0.3)
        with worker(tmp_spool, emulator) as delivering:
            together = storing.ask(do="flush", timeout=10)
            assert delivering.ask(do="stats")["delivered"] == 5

    assert (alone, together) == (False, True)
    assert emulator.ledger().events == 5


def test_many_processes_and_kills(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Four record all the time; two are killed in the middle of it; what was committed arrives once."""
    envelope = emulator.create_envelope()
    options = {"durability": "commit", "flush_interval": 0.1}
    programs = [worker(tmp_spool, emulator, **options) for _ in range(4)]
    of_the_killed: List[str] = []
    of_the_living: List[List[str]] = [[] for _ in programs]

    for turn in range(4):
        for program in programs:
            program.tell(json.dumps({"do": "record", "envelope": envelope, "count": 40}))
        for keys, program in zip(of_the_living, programs):
            keys += program.answer()
        if turn in (1, 2):
            programs.pop(0).kill()
            of_the_killed += of_the_living.pop(0)
    flushed = [program.ask(do="flush", timeout=20) for program in programs]  # each for itself
    arrived = {event.idempotency_key for event in emulator.events()}
    expected = [*of_the_killed, *(key for keys in of_the_living for key in keys)]
    # What a killed one has only in its journal is found within about a second, and nobody's flush waits for that.
    wait_until(lambda: len(emulator.events()) >= len(expected), "what the killed ones noted arrives", seconds=5)
    for program in programs:
        program.kill()

    assert all(flushed)
    assert [key for keys in of_the_living for key in keys if key not in arrived] == []
    assert sorted(str(event.idempotency_key) for event in emulator.events()) == sorted(expected)


# -- forks -------------------------------------------------------------------------------------------------------

FORK_ONCE = """
import os, sys
from x402tools import UsageBuffer, X402Client
path, base_url, envelope, before = sys.argv[1:]
buffer = UsageBuffer(path)
client = X402Client("sk_emulator", base_url, buffer=buffer)
keys = []
if before == "used":
    keys.append(client.record_usage(envelope, 1).id)
    assert client.flush(10)
read, write = os.pipe()
child = os.fork()
keys += [client.record_usage(envelope, 1).id for _ in range(20)]
flushed = bool(client.flush(10))
if child == 0:
    os.write(write, (" ".join(keys[-20:]) + f" {flushed}").encode())
    sys.exit(0)
_, status = os.waitpid(child, 0)
*theirs, their_flush = os.read(read, 65536).decode().split()
assert not set(theirs) & set(keys)
print(status, flushed, their_flush, len(keys + theirs), flush=True)
"""


@pytest.mark.parametrize("before", ["new", "used"])
def test_parent_and_child_both_record(emulator: Emulator, tmp_spool: pathlib.Path, before: str) -> None:
    """A buffer that was made before a fork works on both sides of it; nothing arrives twice."""
    envelope = emulator.create_envelope()
    with Program(FORK_ONCE, tmp_spool, emulator.base_url, envelope, before) as program:
        answer = program.line(40)
        status = program.ended()

    count = 41 if before == "used" else 40
    assert answer == f"0 True True {count}"
    assert status == 0
    assert emulator.ledger().events == count
    assert emulator.ledger().repeats_dropped == 0


FORK_UNDER_LOAD = """
import json, os, signal, sys, threading, time
from x402tools import UsageBuffer
path, durability = sys.argv[1:]
buffer = UsageBuffer(path, durability=durability)
stop, pause = threading.Event(), threading.Event()
counted = [0, 0, 0]

def record(place):
    while not stop.is_set():
        buffer.record("parent", 1, {"some": "metadata"})
        counted[place] += 1
        pause.wait(0.0005)

threads = [threading.Thread(target=record, args=(place,)) for place in range(3)]
for thread in threads:
    thread.start()
outcomes = []
for number in range(15):
    pause.wait(0.013)
    child = os.fork()
    if child == 0:
        status = 9
        try:
            signal.alarm(10)
            buffer.record("child", 1, idempotency_key=f"child-{number}")
            buffer.close()
            status = 0 if not buffer.stats().in_memory else 1
        finally:
            os._exit(status)
    outcomes.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
buffer.close()
print(json.dumps({"outcomes": outcomes, "parent": sum(counted)}), flush=True)
"""


@pytest.mark.parametrize("durability", ["interval", "commit", "fsync"])
def test_a_child_forked_in_the_middle_of_a_commit_can_store(tmp_spool: pathlib.Path, durability: str) -> None:
    """At whatever moment of the parent's work it is forked; and the parent loses nothing."""
    with Program(FORK_UNDER_LOAD, tmp_spool, durability) as program:
        answer = json.loads(program.line(90))

    stored = [post.envelope_id for post in stored_posts(tmp_spool)]
    assert answer["outcomes"] == [0] * 15
    assert stored.count("child") == 15
    assert stored.count("parent") == answer["parent"]


FORK_AND_LEAVE = """
import os, signal, sys
from x402tools import UsageBuffer
buffer = UsageBuffer(sys.argv[1], durability="fsync")
buffer.record("parent", 1)
from_child, to_parent = os.pipe()
from_parent, to_child = os.pipe()
child = os.fork()
if child == 0:
    buffer.record("child", 10)
    os.write(to_parent, b".")
    os.read(from_parent, 1)
    buffer.record("child", 100)
    os.write(to_parent, b".")
    signal.pause()
os.read(from_child, 1)
buffer.close()
if sys.argv[2] == "another":
    import subprocess
    code = "import sys; from x402tools import UsageBuffer as B; b = B(sys.argv[1]); b.record('another', 1); b.close()"
    subprocess.run([sys.executable, "-c", code, sys.argv[1]], check=True)
os.write(to_child, b".")
os.read(from_child, 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print("done", flush=True)
"""


@pytest.mark.parametrize("meanwhile", ["nobody", "another"])
def test_what_a_child_stored_after_its_parent_left_is_there(tmp_spool: pathlib.Path, meanwhile: str) -> None:
    """The parent closes its buffer, the child goes on and is killed: what it had synced is on disk."""
    with Program(FORK_AND_LEAVE, tmp_spool, meanwhile) as program:
        assert program.line() == "done"
        program.ended()

    amounts: Dict[str, int] = {}
    for post in stored_posts(tmp_spool):
        amounts[post.envelope_id] = amounts.get(post.envelope_id, 0) + post.amount
    assert amounts == {"parent": 1, "child": 110, **({"another": 1} if meanwhile == "another" else {})}


FORK_AND_DO_NOTHING = """
import os, sys
from x402tools import UsageBuffer, X402Client
path, base_url, envelope, ending = sys.argv[1:]
buffer = UsageBuffer(path)
client = X402Client("sk_emulator", base_url, buffer=buffer)
for number in range(10):
    child = os.fork()
    if child == 0:
        if ending == "exit":
            sys.exit(0)
        if ending == "close":
            buffer.close()
        os._exit(0)
    client.record_usage(envelope, 1)
    assert os.waitpid(child, 0)[1] == 0
print(bool(client.flush(10)), buffer.stats().delivering, flush=True)
"""


@pytest.mark.parametrize("ending", ["exit", "_exit", "close"])
def test_a_child_that_ends_does_not_disturb_its_parent(
    emulator: Emulator, tmp_spool: pathlib.Path, ending: str
) -> None:
    """Neither the parent's deliveries nor its claim; and the child sends nothing of the parent's."""
    envelope = emulator.create_envelope()

    with Program(FORK_AND_DO_NOTHING, tmp_spool, emulator.base_url, envelope, ending) as program:
        answer = program.line(40)

    assert answer == "True True"
    assert emulator.ledger().events == 10
    assert emulator.ledger().repeats_dropped == 0


def test_a_grandchild_does_not_keep_the_claim(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """The one that delivers is killed, while a child of it lives on: another takes over all the same."""
    code = (
        "import os, signal, sys, threading\n"
        "from x402tools import UsageBuffer, X402Client\n"
        "buffer = UsageBuffer(sys.argv[1])\n"
        "client = X402Client('sk_emulator', sys.argv[2], buffer=buffer)\n"
        "while not buffer.stats().delivering: threading.Event().wait(0.01)\n"
        "child = os.fork()\n"
        "if child == 0: signal.alarm(30); signal.pause()\n"
        "print(child, flush=True)\n"
        "signal.pause()\n"
    )
    with Program(code, tmp_spool, emulator.base_url) as holder:
        holder.line()
        with worker(tmp_spool, emulator) as other:
            before = other.ask(do="stats")["delivering"]

            holder.kill()
            wait_until(lambda: other.ask(do="stats")["delivering"], "the other one delivers", seconds=2)

    assert not before


def test_nothing_is_sent_to_nowhere(tmp_spool: pathlib.Path) -> None:
    """A fork of a buffer that has no client yet only stores."""
    code = (
        "import os, sys\n"
        "from x402tools import UsageBuffer\n"
        "buffer = UsageBuffer(sys.argv[1])\n"
        "child = os.fork()\n"
        "buffer.record('env', 1)\n"
        "if child: os.waitpid(child, 0)\n"
        "buffer.close()\n"
    )
    with Program(code, tmp_spool, URL) as program:
        status = program.ended(30)

    assert status == 0
    assert len(stored_posts(tmp_spool)) == 2


def test_a_lock_can_be_taken_while_another_is_being_taken(tmp_path: pathlib.Path) -> None:
    """By a `__del__` that comes in between, on the same thread."""
    lock, taken = FileLock(str(tmp_path / "lock")), []

    def take() -> None:
        with FileLock._registry_lock:
            taken.append(lock.acquire())
            lock.release()

    run_with_deadline(take, seconds=10)

    assert taken == [True]
