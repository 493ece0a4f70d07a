"""F1 to F12 of the fault catalogue, but for the servers (`test_servers`): forks, and many processes on one spool."""

from __future__ import annotations

import os
import signal
from typing import Any, List, Set, Tuple

import pytest

from tests.faults.process_child import Child, booked, check_conservation, deliver_rest, ids, run, until
from x402tools import SpoolError, UsageBuffer, X402Client
from x402tools.testing import Emulator

FORK = """
def work(times):
    for _ in range(times): say("id", client.record_usage(envelope, 1).id)
client = make(durability=sys.argv[4], exit_timeout=5)
if sys.argv[5] == "after":
    work(50)
noise = [threading.Thread(target=work, args=(150,)) for _ in range(4)]
for t in noise: t.start()
children = []
for number in range(6):
    pid = os.fork()
    if pid == 0:
        work(30)
        number % 2 and say("flushed", bool(client.flush(8)))
        sys.exit(0)
    children.append(pid)
for pid in children: say("code", os.waitpid(pid, 0)[1])
for t in noise: t.join()
client.close(8)
"""


@pytest.mark.parametrize("use", ["before", "after"])
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_F01_forks_while_four_threads_record(
    durability: str, use: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """Six children, before and after first use: all record, flush and end; each record is sent by one process."""
    finished = run(FORK, *spool, durability, use)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if line.startswith("code")] == ["code 0"] * 6, finished.errors
    assert [line for line in finished.lines if line.startswith("flushed")] == ["flushed True"] * 3
    check_conservation(emulator, set(ids(finished.lines)))
    assert emulator.ledger().repeats_dropped == 0


FORK_IN_A_STORM = """
client = make(durability=sys.argv[4])
ids, refused = [], []
def again(*_):
    ids.append(client.record_usage(envelope, 1).id)
    len(ids) % 11 or client.flush(0.01)
    try:
        len(ids) % 7 or client.buffer.stats()
    except SpoolError:
        refused.append(1)  # in the middle of a fork
    signal.setitimer(signal.ITIMER_REAL, 0.001)
signal.signal(signal.SIGALRM, again)
signal.setitimer(signal.ITIMER_REAL, 0.001)
for number in range(30):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        number % 10 or say("id", client.record_usage(envelope, 1).id)
        number % 10 or client.close(5)
        os._exit(0)
    code = os.waitpid(pid, 0)[1]
    code == 0 or say("code", code)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
client.close(8)
for id in ids: say("id", id)
"""


@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_F01_forks_while_a_signal_handler_records(
    durability: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """Thirty forks, full of signals whose handler records, flushes and counts: none hangs, nothing is lost."""
    finished = run(FORK_IN_A_STORM, *spool, durability)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if line.startswith("code")] == []
    assert len(finished.lines) > 20
    check_conservation(emulator, set(ids(finished.lines)))


MULTIPROCESSING = """
import multiprocessing, pathlib
def work(path, base_url, envelope, times):
    global client
    if "client" not in globals():
        client = X402Client("sk_emulator", base_url, buffer=UsageBuffer(path, exit_timeout=8))
    for _ in range(times): say("id", client.record_usage(envelope, 1).id)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[4])
    if sys.argv[4] == "fork":
        client = make(exit_timeout=8)
        client.record_usage(envelope, 1)
    processes = [context.Process(target=work, args=(path, base_url, envelope, 40)) for _ in range(3)]
    for p in processes: p.start()
    for p in processes: p.join()
    say("codes", *[p.exitcode for p in processes])
    with context.Pool(2) as pool:
        pool.starmap(work, [(path, base_url, envelope, 10)] * 4)
        pool.close()
        pool.join()
    if sys.argv[4] != "fork": os._exit(0)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_F05_children_of_multiprocessing(
    method: str, tmp_path: Any, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """By every start method: they end in time and deliver first, by the finalizers where there is no atexit."""
    from tests.faults.process_child import PREAMBLE, ROOT

    program = tmp_path / "program.py"
    program.write_text(PREAMBLE % 20.0 + MULTIPROCESSING, encoding="utf-8")
    start = f"sys.argv[1:] = {[str(argument) for argument in [*spool, method]]!r}\n"
    start += f"import runpy; sys.path.insert(0, {str(tmp_path)!r}); os.environ['PYTHONPATH'] = {str(ROOT)!r}\n"
    start += f"os.execv(sys.executable, [sys.executable, {str(program)!r}, *sys.argv[1:]])"

    finished = run(start, *spool, method)

    assert finished.returncode == 0, finished.errors
    assert "codes 0 0 0" in finished.lines
    accepted = set(ids(finished.lines))
    assert len(accepted) == 160
    # Who finds another one delivering leaves its last events to it, and to the next start if that one has just ended.
    assert len(booked(emulator)) > 80
    deliver_rest(spool[0], emulator)
    check_conservation(emulator, accepted, unsure=1)


@pytest.mark.parametrize("what", ["client", "client.buffer"])
def test_F05_a_client_as_an_argument(what: str, spool: Tuple[str, str, str]) -> None:
    """Pickled for a spawned child it says what to do instead."""
    program = f"""
import multiprocessing
client = make()
try:
    multiprocessing.get_context("spawn").Process(target=print, args=({what},)).start()
except TypeError as error:
    say(error)
"""
    finished = run(program, *spool)

    assert "make one in each process" in finished.lines[0]


RECORD_AND_DELIVER = """
client = make(durability="commit", flush_interval=0.1)
while True:
    say("id", client.record_usage(envelope, 1).id, int(client.buffer.stats().delivering))
    time.sleep(0.02)
"""


def test_F06_the_deliverer_is_killed_again_and_again(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Eight writers on one spool: after each kill another delivers within two seconds, never two, nothing is lost."""
    children = [Child(RECORD_AND_DELIVER, *spool) for _ in range(8)]
    accepted: Set[str] = set()
    try:
        for _ in range(4):
            until(lambda: delivering(children), "one of them delivers")
            (owner,) = delivering(children)
            owner.send(signal.SIGKILL)
            accepted.update(ids(owner.finish().lines))
            children.remove(owner)
            owner.__exit__()
            before = len(booked(emulator))
            took = until(lambda before=before: len(booked(emulator)) > before + 8, "another delivers", 10)
            print(f"taken over after {took:.2f} s")
            assert took < 2
            check_that_one_delivers(emulator)
        for child in children:
            child.send(signal.SIGKILL)
            accepted.update(ids(child.finish().lines))
    finally:
        for child in children:
            child.__exit__()
    deliver_rest(spool[0], emulator)

    check_conservation(emulator, accepted, unsure=8)


def check_that_one_delivers(emulator: Emulator) -> None:
    """Two at once would send each other's events. What the last one had not settled when it was killed comes first."""
    first, second = len(booked(emulator)) + 30, len(booked(emulator)) + 90
    until(lambda: len(booked(emulator)) > first, "thirty more are delivered")
    repeats = emulator.ledger().repeats_dropped
    until(lambda: len(booked(emulator)) > second, "sixty more are delivered")
    assert emulator.ledger().repeats_dropped == repeats


def delivering(children: List[Child]) -> List[Child]:
    """Those whose last word was that they deliver."""
    return [child for child in children if child.lines and child.lines[-1].endswith(" 1")]


GRANDCHILD = """
client = make(durability="commit")
client.record_usage(envelope, 1)
client.flush(5)
if os.fork() == 0:
    if os.fork() == 0:
        say("pid", os.getpid())
        time.sleep(15)
    os._exit(0)
time.sleep(15)
"""


def test_F07_a_grandchild_does_not_keep_the_claim(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Its forebear is killed while it lives on: the next process delivers all the same."""
    with Child(GRANDCHILD, *spool) as child:
        grandchild = int(child.line().split()[1])
        child.process.kill()
        child.process.wait(10)

        try:
            took = run("client = make()\nclient.record_usage(envelope, 1)\nsay(bool(client.flush(8)))", *spool)
        finally:
            os.kill(grandchild, signal.SIGKILL)

    assert took.lines == ["True"]
    assert len(booked(emulator)) == 2


CHILD_FIRST = """
client = make(exit_timeout=5)
for _ in range(100): client.record_usage(envelope, 1)
pid = os.fork()
if pid == 0:
    end = sys.argv[4]
    if end == "close": client.close()
    if end == "del": del client; import gc; gc.collect()
    os._exit(0) if end == "os._exit" else sys.exit(0)
say("code", os.waitpid(pid, 0)[1])
for _ in range(100): client.record_usage(envelope, 1)
say(bool(client.flush(8)), client.buffer.health().ok)
"""


@pytest.mark.parametrize("end", ["sys.exit", "os._exit", "close", "del"])
def test_F08_the_child_ends_first(end: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Whatever it does with what it inherited: the parent goes on and nothing is sent twice."""
    finished = run(CHILD_FIRST, *spool, end)

    assert finished.lines == ["code 0", "True True"], finished.errors
    assert finished.errors == ""
    assert len(booked(emulator)) == 200
    assert emulator.ledger().repeats_dropped == 0


PARENT_FIRST = """
client = make(durability="commit")
client.record_usage(envelope, 1)
client.flush(5)
if os.fork():
    os._exit(0)
say("id", client.record_usage(envelope, 1).id)
say(bool(client.flush(8)), client.buffer.stats().delivering)
"""


def test_F08_the_parent_ends_first(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """The parent delivered; the child, which has a copy of its claim, takes it over for real and delivers."""
    finished = run(PARENT_FIRST, *spool)

    assert finished.lines[1:] == ["True True"], finished.errors
    assert len(booked(emulator)) == 2
    assert emulator.ledger().repeats_dropped == 0


NO_THREADS = """
client = make(durability=sys.argv[4]) if sys.argv[5] == "late" else None
buffer = UsageBuffer(path, durability=sys.argv[4]) if client is None else client.buffer
threading.stack_size(2**40)  # more than there is to have
try:
    threading.Thread(target=print).start()
    say("threads can be started after all")
except RuntimeError:
    pass
if client is None:
    client = X402Client("sk_emulator", base_url, buffer=buffer)
for _ in range(30): say("id", client.record_usage(envelope, 1).id)
say("flushed", bool(client.flush(8)), client.buffer.health().flusher.state)
threading.stack_size(0)
"""


@pytest.mark.parametrize("moment", ["early", "late"])
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_F10_no_thread_can_be_started(
    durability: str, moment: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """Not any more: a spool is opened with a thread of sqlitedict. Without flusher and senders `flush` delivers."""
    finished = run(NO_THREADS, *spool, durability, moment)

    assert finished.returncode == 0, finished.errors
    assert finished.lines[-1] == "flushed True " + ("no thread" if moment == "early" else "delivering")
    check_conservation(emulator, set(ids(finished.lines)))


def test_F10_frozen_between_calls(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Stopped after a call and continued for the next, as a function in a cloud is: flush delivers within the call."""
    program = """
client = make()
for line in sys.stdin:
    client.record_usage(envelope, 1)
    say(bool(client.flush(5)))
"""
    with Child(program, *spool) as child:
        for number in range(1, 4):
            child.send(signal.SIGCONT)
            child.tell("call")
            assert child.line() == "True"
            assert len(booked(emulator)) == number
            child.send(signal.SIGSTOP)
        child.send(signal.SIGCONT)


def test_F12_two_destinations_on_one_spool(spool: Tuple[str, str, str]) -> None:
    """Usage for one base URL is not delivered to another: the second client is refused."""
    run("client = make(deliver=False)\nclient.record_usage(envelope, 1)", *spool)
    with UsageBuffer(spool[0], deliver=False) as buffer, pytest.raises(SpoolError, match="another base_url"):
        X402Client("sk_emulator", "http://127.0.0.1:9", buffer=buffer)
