"""T1 to T6 of the fault catalogue: threads, greenlets, event loops, and code that runs where nobody expects it."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from tests.buffer.helpers import Program
from tests.faults.process_child import check_conservation, run, silent_server
from x402tools.testing import Emulator

# Rows that are tested elsewhere.
ELSEWHERE = {
    "T1": "tests/buffer/test_flush_and_close.py: record, flush and close at the same time",
    "T2": "tests/buffer/test_callbacks.py: callbacks that raise, block, and call the buffer",
    "T4": "tests/buffer/test_queue_full.py: a handler of our own logger that records; __del__ is below",
    "T5": "tests/faults/test_servers.py: gunicorn's gevent workers; gevent alone and asyncio are below",
}
NOT_TESTED = {
    "T5": "eventlet: no longer maintained, and it does not run on the newest Pythons",
}


def test_the_rows_that_are_tested_elsewhere_are_named() -> None:
    """The file that each names is there."""
    root = pathlib.Path(__file__).parents[2]

    assert all((root / where.split(":")[0]).exists() for where in ELSEWHERE.values())


DEL = """
import gc
class Metered:
    def __init__(self): self.itself = self
    def __del__(self):
        where.append(threading.current_thread().name)
        client.record_usage(envelope, 1)
where = []
client = make(durability=sys.argv[4], flush_interval=0.05)
gc.set_threshold(20)  # so that collections fall into the middle of everything
def work():
    for _ in range(100):
        Metered()
        client.record_usage(envelope, 1, {"a": [1]})
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
tick = threading.Event()
while len(where) < 400: tick.wait(0.05) or gc.collect()  # one in another thread may be under way, and this one nothing
while client.buffer.stats().recorded.events < 800: tick.wait(0.05)
say(bool(client.flush(15)), client.buffer.stats().delivered.events, client.buffer.stats().problem)
client.close()
"""


@pytest.mark.parametrize("durability", ["interval", "commit", "fsync"])
def test_T04_recorded_by_the_garbage_collector(durability: str, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """`__del__` records in whatever thread and at whatever moment a collection happens: no deadlock, nothing lost."""
    finished = run(DEL, tmp_spool, emulator.base_url, emulator.create_envelope(), durability)

    assert finished.lines == ["True 800 None"], finished.errors[-2000:]
    assert finished.errors == ""
    assert emulator.ledger().events == 800


# What a garbage collection may run in the middle of anything, on the thread that runs the SQL and inside a transaction.
INSIDE = """
client = make(durability=sys.argv[4], on_queue_full="block", flush_interval=60)
connection = client.buffer._parts.store._connection
def record(): return client.record_usage(envelope, 1).id
class OnItsThread:
    def __conform__(self, protocol):  # SQLite asks a parameter it does not know for one that it does
        done.append(record())
        return 1
done = []
began = time.monotonic()
with connection.transaction() as transaction:
    transaction.rows("SELECT ?", (OnItsThread(),))
    done.append(record())
    transaction.run("REPLACE INTO meta VALUES ('test', 'kept')")
say(len(done), time.monotonic() - began < 3)
say(connection.rows("SELECT value FROM meta WHERE key = 'test'"))
client.record_usage(envelope, 1)
say(client.buffer.stats().recorded.events, client.buffer.stats().problem)
client.close()
"""


@pytest.mark.parametrize("durability", ["commit", "fsync"])
def test_T04_recorded_in_the_middle_of_a_transaction(
    durability: str, tmp_spool: pathlib.Path, emulator: Emulator
) -> None:
    """Neither waits for itself nor breaks the transaction; the next commit takes the event along."""
    finished = run(INSIDE, tmp_spool, emulator.base_url, emulator.create_envelope(), durability)

    assert finished.lines == ["2 True", "[('kept',)]", "3 None"], finished.errors[-2000:]
    assert emulator.ledger().events == 3


ASYNCIO = """
import asyncio
client = make(flush_interval=0.05, exit_timeout=0.2)
async def main():
    took = []
    for _ in range(2000):
        began = time.perf_counter()
        client.record_usage(envelope, 1, {"path": "/"})
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0)
    return sorted(took)
took = asyncio.run(main())
say(took[1000] < 0.001, took[1980] < 0.05)
client.close()
say(client.buffer.stats().pending.events)
"""


@pytest.mark.alone
def test_T05_recorded_on_an_event_loop(tmp_spool: pathlib.Path) -> None:
    """The loop is not held up, although the service answers nobody."""
    with silent_server() as url:
        finished = run(ASYNCIO, tmp_spool, url, "env_1")

    assert finished.lines == ["True True", "2000"], finished.errors


GEVENT = """
import sys
if sys.argv[4] == "before":
    from gevent import monkey
    monkey.patch_all()
from x402tools import UsageBuffer, X402Client
if sys.argv[4] == "after":
    from gevent import monkey
    monkey.patch_all()
import gevent, time
path, url, envelope = sys.argv[1:4]
client = X402Client("sk_emulator", url, buffer=UsageBuffer(path, flush_interval=0.05))
turns, took = [], []
def tick():
    while True:
        turns.append(time.monotonic())
        gevent.sleep(0.005)
def work():
    for _ in range(50):
        began = time.perf_counter()
        print("id", client.record_usage(envelope, 1).id)
        took.append(time.perf_counter() - began)
        gevent.sleep(0)
ticker = gevent.spawn(tick)
gevent.joinall([gevent.spawn(work) for _ in range(10)], raise_error=True)
flushed = bool(client.flush(15))
began = time.monotonic()
client.close()
print(flushed, len(turns) > 3, sorted(took)[490] < 0.05, time.monotonic() - began < 3, flush=True)
"""


@pytest.mark.alone
@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
@pytest.mark.parametrize("patched", ["before", "after"])
def test_T05_gevent(patched: str, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """Patched before or after our import: greenlets record and flush, others go on, all is booked once."""
    with Program(GEVENT, tmp_spool, emulator.base_url, emulator.create_envelope(), patched) as program:
        assert program.ended(30) == 0, program.errors()
        lines = program.lines()

    assert lines[-1] == "True True True True", program.errors()
    check_conservation(emulator, {line.split()[1] for line in lines[:-1]})


# A stack that no machine has room for: from here on every new thread fails to start, as at a limit of threads.
NO_THREADS = """
client = make(flush_interval=0.05)
threading.Event().wait(0.3)  # its own threads run by now
threading.stack_size(2**46)
try:
    threading.Thread(target=print).start()
    say("a thread could be started")
except RuntimeError:
    say("no thread")
for _ in range(20): say("id", client.record_usage(envelope, 1).id)
say(bool(client.flush(15)))
say(client.buffer.stats().delivered.events)
try:
    UsageBuffer(path + "2", exit_timeout=0)
    say("opened")
except Exception as error:
    say(type(error).__name__)
client.close()
"""


def test_T06_no_thread_can_be_started(tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """What runs goes on delivering, without senders; a new buffer is refused with an error of ours."""
    finished = run(NO_THREADS, tmp_spool, emulator.base_url, emulator.create_envelope())

    ids = [line.split()[1] for line in finished.lines if line.startswith("id ")]
    assert [line for line in finished.lines if not line.startswith("id ")] == ["no thread", "True", "20", "SpoolError"]
    check_conservation(emulator, set(ids))
    assert finished.seconds < 3
