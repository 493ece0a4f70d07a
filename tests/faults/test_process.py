"""P1 to P15 of the fault catalogue, P2 apart (`test_kill_points`): how processes, threads and objects end, for real."""

from __future__ import annotations

import random
import signal
from typing import Any, List, Tuple

import pytest

from tests.faults.process_child import Child, booked, check_conservation, deliver_rest, ids, run, silent_server, until
from x402tools.testing import Emulator, Fault

DURABILITIES = ("interval", "commit", "fsync")


# fmt: off
RECORD_FOR_EVER = """
client = make(durability=sys.argv[4])
say("ready")
while True:
    say("id", client.record_usage(envelope, 1).id)
"""
# fmt: on


@pytest.mark.parametrize("durability", ["commit", "fsync"])
def test_P01_sigkill_at_random_times(durability: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Killed eight times while it records and delivers: every id it was given is booked once."""
    accepted: List[str] = []
    chance = random.Random(1)

    for _ in range(8):
        with Child(RECORD_FOR_EVER, *spool, durability) as child:
            for _ in range(chance.randrange(1, 60)):
                child.line()
            child.send(signal.SIGKILL)
            accepted += ids(child.finish().lines)
    deliver_rest(spool[0], emulator)

    check_conservation(emulator, set(accepted), unsure=8)


def test_P03_killed_between_the_booking_and_the_settlement(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """The service booked it, the answer never came: the next start sends it under the same key."""
    emulator.set_faults(Fault.drip(3.0, path="/usage"))
    with Child(
        'client = make(durability="fsync")\nsay(client.record_usage(envelope, 1).id)\ntime.sleep(60)', *spool
    ) as child:
        key = child.line()
        while booked(emulator) != [key]:
            assert child.process.poll() is None
        child.send(signal.SIGKILL)
        child.finish()
    emulator.clear_faults()

    deliver_rest(spool[0], emulator)

    assert booked(emulator) == [key]
    assert emulator.ledger().repeats_dropped == 1


def test_P04_sigterm_by_default(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Python ends at once, without exit handlers; what was stored is delivered by the next start."""
    with Child(RECORD_FOR_EVER, *spool, "commit") as child:
        for _ in range(20):
            child.line()
        child.send(signal.SIGTERM)
        finished = child.finish()
    deliver_rest(spool[0], emulator)

    assert finished.returncode == -signal.SIGTERM
    assert finished.seconds < 1
    check_conservation(emulator, set(ids(finished.lines)), unsure=1)


CLOSE_ON_SIGTERM = """
client = make(durability=sys.argv[4])
def stop(*_):
    client.close(2)
    say("closed")
    os._exit(7)
signal.signal(signal.SIGTERM, stop)
doing = sys.argv[5]
say("ready")
number = 0
while True:
    number += 1
    if doing == "record":
        say("id", client.record_usage(envelope, 1).id)
    else:
        if number < 50:
            say("id", client.record_usage(envelope, 1).id)
        client.flush(0.05)
"""


@pytest.mark.parametrize("doing", ["record", "flush"])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_P05_sigterm_with_a_handler_that_closes(
    durability: str, doing: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """In the middle of a record or a flush: no deadlock, everything stored, ended in time."""
    accepted: List[str] = []

    for lines in (2, 11, 30):
        with Child(CLOSE_ON_SIGTERM, *spool, durability, doing) as child:
            for _ in range(lines):
                child.line()
            child.send(signal.SIGTERM)
            finished = child.finish()
        accepted += ids(finished.lines)
        assert finished.returncode == 7, finished.errors
        assert finished.lines[-1] == "closed"
        assert finished.seconds < 2.5
    deliver_rest(spool[0], emulator)

    check_conservation(emulator, set(accepted), unsure=3)


INTERRUPTED = """
client = make(durability=sys.argv[4])
doing, number = sys.argv[5], 0
say("ready")
try:
    while True:
        number += 1
        kept = client.record_usage(envelope, 1)
        say("id", kept.id)
        if doing == "flush" and number % 5 == 0:
            client.flush(1)
        if doing == "close" and number % 40 == 0:
            client.close()
            client = make(durability=sys.argv[4])
except KeyboardInterrupt:
    say("interrupted")
"""


@pytest.mark.parametrize("doing", ["record", "flush", "close"])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_P06_sigint_reaches_the_user(
    durability: str, doing: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """KeyboardInterrupt in the middle of anything: it arrives, nothing hangs, nothing accepted is lost."""
    accepted: List[str] = []
    chance = random.Random(durability + doing)

    for _ in range(4):
        with Child(INTERRUPTED, *spool, durability, doing) as child:
            for _ in range(chance.randrange(5, 90)):
                child.line()
            child.send(signal.SIGINT)
            took = until(lambda child=child: child.lines[-1] == "interrupted", "the interrupt arrives")
            finished = child.finish()
        assert took < 1
        accepted += ids(finished.lines)
        assert finished.returncode == 0, finished.errors
        assert finished.lines[-1] == "interrupted"
    deliver_rest(spool[0], emulator)

    check_conservation(emulator, set(accepted), unsure=4)


STORM = """
client = make(durability=sys.argv[4], max_queue_size=50)
accepted = []
def again(*_):
    usage = client.record_usage(envelope, 1)
    if usage.pending:
        accepted.append(usage.id)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
signal.signal(signal.SIGALRM, again)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
until = time.monotonic() + 1.5
while time.monotonic() < until:
    usage = client.record_usage(envelope, 1)
    if usage.pending:
        accepted.append(usage.id)
    len(accepted) % 50 or client.flush(0.01)
    len(accepted) % 70 or client.buffer.stats()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
client.close(10)
for id in accepted:
    say("id", id)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_P06_a_signal_handler_that_records(durability: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Two thousand times a second, in the middle of records, flushes and stats, with a full queue: no deadlock."""
    finished = run(STORM, *spool, durability)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert len(finished.lines) > 50
    check_conservation(emulator, set(ids(finished.lines)))


ENDS = {
    "falls off the end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise RuntimeError('no')", 1),
    "an exception in a thread": ("t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()", 0),
}


@pytest.mark.alone  # 300 POSTs in the two seconds of exit_timeout, which a busy machine does not do
@pytest.mark.parametrize("end", ENDS)
def test_P07_ends_that_deliver(end: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """However the program ends by itself: what it recorded is delivered before it is gone."""
    program, code = ENDS[end]

    finished = run(
        f'client = make()\nfor _ in range(300): say("id", client.record_usage(envelope, 1).id)\n{program}', *spool
    )

    assert finished.returncode == code, finished.errors
    assert finished.seconds < 2.5
    check_conservation(emulator, set(ids(finished.lines)))


@pytest.mark.parametrize("end", ["os._exit(0)", "os.abort()", "os.execv('/bin/true', ['true'])"])
def test_P08_ends_without_a_word(end: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """No handler runs: what was committed stays."""
    program = 'client = make(durability="commit")\nfor _ in range(50): say("id", client.record_usage(envelope, 1).id)\n'

    finished = run(program + end, *spool)
    deliver_rest(spool[0], emulator)

    check_conservation(emulator, set(ids(finished.lines)))


@pytest.mark.alone
@pytest.mark.parametrize("durability", DURABILITIES)
def test_P09_exit_while_the_service_hangs(durability: str, tmp_path: Any, emulator: Emulator) -> None:
    """A service that never answers delays the end by exit_timeout and no more; everything is on disk."""
    path, envelope = tmp_path / "usage.db", emulator.create_envelope()
    with silent_server() as base_url:
        finished = run(
            'client = make(durability=sys.argv[4], exit_timeout=1.0)\n'
            'for _ in range(300): client.record_usage(envelope, 1)\n'
            'say("end")',
            path, base_url, envelope, durability,
        )  # fmt: skip

    assert finished.returncode == 0, finished.errors
    assert 0.9 < finished.seconds < 1.5
    spooled = run("b = UsageBuffer(path, deliver=False)\nsay(len(b))", path, "", "")
    assert spooled.lines == ["300"]


LATE = {
    "an exit handler before ours": "client = make()\natexit.register(record)",
    "an exit handler after ours": "atexit.register(record)\nclient = make()",
    "__del__ at the end": """
class Late:
    def __del__(self, record=record):
        record()
late = Late()
client = make()
""",
    "__del__ of a cycle": """
class Late:
    def __del__(self, record=record):
        record()
late = Late(); late.itself = late
client = make()
""",
}
RECORD_LATE = """
def record():
    try:
        say("id", client.record_usage(envelope, 1).id)
    except X402Error as error:
        say("refused", error)
"""


@pytest.mark.parametrize("when", LATE)
@pytest.mark.parametrize("durability", DURABILITIES)
def test_P11_recorded_at_the_very_end(
    durability: str, when: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """Stored, with no hang and no word on stderr; the next start delivers it."""
    program = LATE[when].replace("make()", "make(durability=sys.argv[4])")

    finished = run(RECORD_LATE + program + '\nsay("id", client.record_usage(envelope, 1).id)', *spool, durability)
    deliver_rest(spool[0], emulator)

    assert (finished.returncode, finished.errors) == (0, "")
    assert finished.seconds < 1
    assert len(ids(finished.lines)) == 2
    check_conservation(emulator, set(ids(finished.lines)))


def test_P11_a_daemon_thread_records_until_the_end(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """While the interpreter ends around it: what it said it had recorded is there; no hang, no traceback."""
    program = """
client = make(durability="commit")
def work():
    while True:
        try:
            id = client.record_usage(envelope, 1).id
        except BufferClosedError:
            return
        os.write(1, b"id %s\\n" % id.encode())
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    finished = run(program, *spool)
    deliver_rest(spool[0], emulator)

    assert (finished.returncode, finished.errors) == (0, "")
    check_conservation(emulator, set(ids(finished.lines)), unsure=1)


KILL_THREAD = """
import ctypes
client = make()
client.record_usage(envelope, 1)
client.flush(5)
def strike(name, error):
    thread = next((t for t in threading.enumerate() if t.name == name), None)
    if thread is None:
        return
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))
for error in (SystemExit, MemoryError, RuntimeError):
    strike(sys.argv[4], error)
    began = time.monotonic()
    for _ in range(20):
        say("id", client.record_usage(envelope, 1).id)
        time.sleep(0.01)
    result = client.flush(5)
    say("flushed", bool(result))
    while not client.buffer.health().ok: time.sleep(0.01)
    say("well", time.monotonic() - began < 5)
"""


@pytest.mark.parametrize("name", ["x402tools-writer", "x402tools-flusher"])
def test_P12_a_thread_dies(name: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """An exception out of nowhere, SystemExit included: the work goes on within five seconds, nothing is lost."""
    finished = run(KILL_THREAD, *spool, name)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if not line.startswith("id")] == ["flushed True", "well True"] * 3
    assert len(booked(emulator)) == 61


@pytest.mark.parametrize("error", ["SystemExit()", "MemoryError()", "KeyboardInterrupt()", "ValueError()"])
def test_P12_what_a_session_raises(error: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """An adapter of the user's own raises anything: the POST is sent again, and the sender lives."""
    program = f"""
import requests
class Bad(requests.adapters.HTTPAdapter):
    left = 3
    def send(self, *a, **k):
        Bad.left -= 1
        if Bad.left >= 0: raise {error}
        return super().send(*a, **k)
session = requests.Session()
session.mount("http://", Bad())
client = X402Client("sk_emulator", base_url, session=session, buffer=UsageBuffer(path, max_concurrency=1))
for _ in range(5): say("id", client.record_usage(envelope, 1).id)
say(bool(client.flush(10)))
"""
    finished = run(program, *spool)

    assert finished.lines[-1] == "True", finished.errors
    check_conservation(emulator, set(ids(finished.lines)))


FORGOTTEN = """
import gc, warnings
warnings.simplefilter("always")
def use():
    client = make()
    for _ in range(100): say("id", client.record_usage(envelope, 1).id)
use()
gc.collect()
"""


def test_P13_forgotten_without_close(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Collected while the program goes on: a ResourceWarning, its threads end, everything is delivered."""
    rest = """
until = time.monotonic() + 10
while any(t.name.startswith("x402tools") for t in threading.enumerate()) and time.monotonic() < until:
    time.sleep(0.01)
say("threads", [t.name for t in threading.enumerate() if t.name.startswith("x402tools")])
"""
    finished = run(FORGOTTEN + rest, *spool)

    assert finished.lines[-1] == "threads []", finished.lines[-1]
    assert finished.errors.count("was not closed") == 1
    check_conservation(emulator, set(ids(finished.lines)))


def test_P13_forgotten_at_the_last_moment(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Collected just before the end: the end waits for it as for any other."""
    finished = run(FORGOTTEN, *spool)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    check_conservation(emulator, set(ids(finished.lines)))


def test_P14_close_twice_and_late(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Again, from eight threads at once: the same result. Recording and flushing afterwards is refused."""
    program = """
client = make()
for _ in range(200): say("id", client.record_usage(envelope, 1).id)
results = []
threads = [threading.Thread(target=lambda: results.append(client.buffer.close(5))) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
say("same", set(map(bool, results)), len(set(results)), client.close())
for late in (lambda: client.record_usage(envelope, 1), lambda: client.flush(1)):
    try: late()
    except BufferClosedError as error: say("refused", error)
"""
    finished = run(program, *spool)

    assert finished.lines[200] == "same {True} 1 None"
    assert [line.split()[0] for line in finished.lines[201:]] == ["refused", "refused"]
    check_conservation(emulator, set(ids(finished.lines)))


def test_P15_out_of_memory(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """MemoryError reaches the caller; with memory again the buffer goes on, and what was accepted is delivered."""
    program = """
import resource
client = make(durability="commit")
client.record_usage(envelope, 1)
client.flush(5)
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 24 * 2**20, resource.RLIM_INFINITY))
hog, accepted, failed = [], 1, 0
for step in range(3000):
    try:
        hog.append(bytearray(64 * 1024))
    except MemoryError:
        pass
    if step % 10 == 0:
        try:
            client.record_usage(envelope, 1, {"text": "x" * 20000})
            accepted += 1
        except MemoryError:
            failed += 1
del hog
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
client.record_usage(envelope, 1)
accepted += 1
say(bool(client.flush(10)), client.buffer.stats().recorded.events >= accepted, accepted)
"""
    finished = run(program, *spool)

    assert finished.returncode == 0, finished.errors
    words = finished.lines[-1].split()
    assert words[:2] == ["True", "True"], finished.errors
    assert len(booked(emulator)) >= int(words[2])
