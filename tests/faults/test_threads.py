"""T1 to T6 of the fault catalogue: threads, callbacks and finalizers that come in between, with a process for each."""

from __future__ import annotations

import sys
from typing import Any, Tuple

import pytest

from tests.faults.process_child import ROOT, check_conservation, deliver_rest, ids, run, silent_server
from x402tools.testing import Emulator

DURABILITIES = ("interval", "commit", "fsync")


ALL_AT_ONCE = """
client = make(durability=sys.argv[4])
accepted, others = [], []
def work(call):
    try:
        while True: call()
    except BufferClosedError:
        pass
    except BaseException as error:
        others.append(error)
def record():
    accepted.append(client.record_usage(envelope, 1).id)
    time.sleep(0.0005)
def count():
    client.buffer.stats()  # may be called after close too, for ever
    client.flush(0)
calls = [record, record, record, lambda: client.flush(0.2), lambda: client.flush(0.2), count]
threads = [threading.Thread(target=work, args=(call,)) for call in calls]
for t in threads: t.start()
while len(accepted) < 300: time.sleep(0.001)
began = time.monotonic()
client.close(3)
say("closed in time", time.monotonic() - began < 3.5, others)
for t in threads: t.join()
for one in accepted: say('id', one)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_T01_record_flush_stats_and_close_at_once(
    durability: str, spool: Tuple[str, str, str], emulator: Emulator
) -> None:
    """Three threads record, two flush, one counts, the main one closes: each record is kept or refused."""
    finished = run(ALL_AT_ONCE, *spool, durability)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert finished.lines[0] == "closed in time True []"
    check_conservation(emulator, set(ids(finished.lines)))


CALLBACKS = {
    "raises": "raise RuntimeError('no')",
    "ends its thread": "sys.exit(1)",
    "blocks": "time.sleep(60)",
    "records": "say('id', client.record_usage(envelope, 1).id) if len(told) < 50 else None",
    "flushes": "client.flush(0.1)",
    "closes": "client.close(1)",
}


@pytest.mark.parametrize("callback", CALLBACKS)
def test_T02_a_callback_that_misbehaves(callback: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Whatever it does, the others are delivered and the process ends in time."""
    program = f"""
told = []
def on_delivery(usage):
    told.append(usage)
    {CALLBACKS[callback]}
client = make(durability="commit", on_delivery=on_delivery, exit_timeout=1.0)
try:
    for _ in range(60): say("id", client.record_usage(envelope, 1).id)
except BufferClosedError:
    pass
"""
    finished = run(program, *spool)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert finished.seconds < 2.5
    check_conservation(emulator, set(ids(finished.lines)), unsure=1)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_T02_on_error_that_misbehaves(callback: str, tmp_path: Any, emulator: Emulator) -> None:
    """While nothing answers: recording goes on, and the end is in time."""
    program = f"""
told = []
def on_error(line):
    told.append(line)
    {CALLBACKS[callback]}
client = make(durability="commit", on_error=on_error, exit_timeout=1.0, flush_interval=0.05)
try:
    for _ in range(60): say("id", client.record_usage(envelope, 1).id)
    client.flush(0.5)
except BufferClosedError:
    pass
"""
    path = tmp_path / "usage.db"
    with silent_server() as base_url:
        finished = run(program, path, base_url, "env")

    assert finished.returncode == 0, finished.errors
    assert finished.seconds < 3
    left = run("b = UsageBuffer(path, deliver=False)\nsay(len(b))", path, "", "")
    assert left.lines == [str(len(ids(finished.lines)))]


RECORD_IN_DEL = """
import gc
client = make(durability=sys.argv[4])
class Metered:
    def __init__(self): self.itself = self
    def __del__(self): kept.append(client.record_usage(envelope, 1).id)
kept = []
gc.set_threshold(20, 2, 2)  # in the middle of anything, on every thread
def work():
    for _ in range(60):
        [Metered() for _ in range(2)]
        kept.append(client.record_usage(envelope, 1, {"some": {"metadata": [1, 2]}}).id)
threads = [threading.Thread(target=work) for _ in range(3)]
for t in threads: t.start()
for _ in range(5):
    work()
    client.buffer.stats()
    client.flush(0.05)
for t in threads: t.join()
gc.collect()
client.close(8)
for id in kept: say("id", id)
os._exit(0)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_T04_a_finalizer_records(durability: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Whenever the collector runs, in the middle of commits and settlements too: no deadlock, nothing lost."""
    finished = run(RECORD_IN_DEL, *spool, durability)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert len(finished.lines) > 700
    check_conservation(emulator, set(ids(finished.lines)))


RECORD_IN_A_HANDLER = """
import logging
class Metering(logging.Handler):
    def emit(self, line):
        kept.append(client.record_usage(envelope, 1).id)
        client.buffer.health(); client.buffer.stats(); client.flush(0.01)
kept = []
log = logging.getLogger("x402tools")
log.setLevel(logging.DEBUG)
log.addHandler(Metering())
client = make(durability=sys.argv[4], on_delivery=lambda usage: 1 / 0, flush_interval=0.02, max_queue_size=50)
def work():
    for _ in range(12): log.warning("something")
threads = [threading.Thread(target=work) for _ in range(3)]
for t in threads: t.start()
work()
for t in threads: t.join()
log.handlers.clear()
client.close(8)
for id in kept: say("id", id)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_T04_a_log_handler_records(durability: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """One on our own logger, which we write to from every thread: no recursion without end, no deadlock."""
    finished = run(RECORD_IN_A_HANDLER, *spool, durability)
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert len(finished.lines) >= 48
    assert len(finished.lines) == len(set(finished.lines))


GREEN = """
import gevent
client = make()
late = []
def tick():
    while True:
        began = time.monotonic()
        gevent.sleep(0.005)
        late.append(time.monotonic() - began - 0.005)
ticker = gevent.spawn(tick)
def work():
    for _ in range(100):
        say("id", client.record_usage(envelope, 1).id)
        gevent.sleep(0.002)
gevent.joinall([gevent.spawn(work) for _ in range(5)])
say("flushed", bool(client.flush(10)))
ticker.kill()
late.sort()
say("late", late[len(late) * 95 // 100] < 0.05, len(late) > 20)
client.close(5)
"""


@pytest.mark.alone
@pytest.mark.parametrize("patched", ["before the import", "after the import"])
def test_T05_gevent(patched: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Patched before or after our import: everything is delivered, and the other greenlets go on meanwhile."""
    pytest.importorskip("gevent", reason="gevent has no release for this Python")
    from tests.faults.process_child import PREAMBLE

    patch = "from gevent import monkey; monkey.patch_all()\n"
    if patched == "after the import":
        finished = run(patch + GREEN, *spool)
    else:
        program = patch + PREAMBLE % 20.0 + GREEN
        finished = run(
            f"os.environ['PYTHONPATH'] = {str(ROOT)!r}\n"
            f"os.execv(sys.executable, [sys.executable, '-c', {program!r}, *sys.argv[1:]])",
            *spool,
        )
    deliver_rest(spool[0], emulator)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if not line.startswith("id")] == ["flushed True", "late True True"]
    check_conservation(emulator, set(ids(finished.lines)))


ASYNCIO = """
import asyncio
client = make()
late = []
async def tick():
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.005)
        late.append(time.monotonic() - began - 0.005)
async def work():
    for _ in range(300):
        say("id", client.record_usage(envelope, 1).id)
        await asyncio.sleep(0.001)
async def main():
    ticker = asyncio.ensure_future(tick())
    await asyncio.gather(*[work() for _ in range(5)])
    ticker.cancel()
asyncio.run(main())
late.sort()
say("late", late[len(late) * 95 // 100] < 0.05, len(late) > 20)
say("flushed", bool(client.flush(10)))
"""


def test_T05_asyncio(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Recording in a coroutine does not hold up its loop."""
    finished = run(ASYNCIO, *spool)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if not line.startswith("id")] == ["late True True", "flushed True"]
    check_conservation(emulator, set(ids(finished.lines)))


FIRST_USE_AT_THE_END = """
import atexit
def late():
    try:
        client = make(exit_timeout=1)
        say("id", client.record_usage(envelope, 1).id)
        client.close(1)
    except SpoolError as error:
        say("refused", error)
atexit.register(late)
"""


def test_T06_a_buffer_made_at_the_very_end(spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """In an exit handler: it works, or on 3.12 and later, where no thread can be started then, says so at once."""
    finished = run(FIRST_USE_AT_THE_END, *spool)
    if finished.lines and finished.lines[0].startswith("id"):
        deliver_rest(spool[0], emulator)
        check_conservation(emulator, set(ids(finished.lines)))

    assert finished.returncode == 0, finished.errors
    assert finished.seconds < 2
    assert sys.version_info >= (3, 12) or finished.lines[0].startswith("id")
    assert finished.lines[0].startswith(("id", "refused"))


NO_MORE_THREADS = """
client = make(durability=sys.argv[4], flush_interval=0.05)
client.record_usage(envelope, 1)
client.flush(5)
import logging
logging.basicConfig(level=logging.ERROR)
threading.stack_size(2**40)  # more than there is to have
buffer = client.buffer
pid = os.fork()  # closes the spool, which is opened with a new thread
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
for _ in range(20): say("id", client.record_usage(envelope, 1).id)
say("flushed", bool(client.flush(0.3)))
threading.stack_size(0)  # there is room again
flushed, late = bool(client.flush(8)), time.monotonic() + 3
while buffer.health().problems and time.monotonic() < late: time.sleep(0.01)  # the next look at the spool clears them
say("flushed", flushed, buffer.health().problems)
"""


@pytest.mark.parametrize("durability", DURABILITIES)
def test_T06_no_thread_for_a_while(durability: str, spool: Tuple[str, str, str], emulator: Emulator) -> None:
    """Even the spool cannot be opened then: events wait in memory, and everything goes on when there is room again."""
    finished = run(NO_MORE_THREADS, *spool, durability)

    assert finished.returncode == 0, finished.errors
    assert [line for line in finished.lines if not line.startswith("id")] == ["flushed False", "flushed True []"]
    check_conservation(emulator, set(ids(finished.lines)), unsure=1)
