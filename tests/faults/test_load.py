"""L1 to L7 of the fault catalogue: more than fits, more than is delivered, and one POST that is never accepted.

L1 is tests/buffer/test_queue_full.py. The kills of L6 are those of tests/conservation, as many rounds as one asks for.
"""

from __future__ import annotations

import pathlib
import time
from typing import Iterator

import pytest

from tests.buffer.bench import MakeBench, benches
from tests.buffer.helpers import stored_posts
from tests.client.scripted_server import closed_port
from tests.faults.process_child import Child, check_conservation, deliver_rest, run
from tests.faults.reporting import MakeReporter
from x402tools.errors import APIConnectionError, APIError
from x402tools.testing import Emulator, Fault

HOUR = 3600.0
MEBIBYTE = 1024 * 1024

# What the programs below measure themselves with.
MEASURE = """
import pathlib
def resident():  # bytes
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def on_disk():
    folder = pathlib.Path(path).parent
    return sum(file.stat().st_size for file in folder.glob(pathlib.Path(path).name + "*"))
"""

needs_proc = pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="memory is read from /proc")


def full(value: object) -> object:
    """The catalogue's own size; the smaller one beside it runs everywhere."""
    return pytest.param(value, marks=[pytest.mark.full, pytest.mark.timeout(400)])


OUTAGE = (
    MEASURE
    + """
seconds, limit = float(sys.argv[4]), 4 * 1024 * 1024
passed = 10 * 1024 * 1024  # by so much: it is looked at ten times a second, see _spool.py
client = make(max_disk_bytes=limit, max_queue_size=1000, flush_interval=0.05, exit_timeout=0.3)
for _ in range(1000): client.record_usage(envelope, 1, {"noise": os.urandom(500).hex()})
before, most, disk, kept, end = resident(), 0, 0, 0, time.monotonic() + seconds
number, full = 0, False
while time.monotonic() < end or (not full and time.monotonic() < end + 12):  # a slow disk takes its time to fill
    number += 1
    kept += client.record_usage(envelope, 1, {"noise": os.urandom(500).hex()}).pending
    if number % 2000 == 0:
        most, disk = max(most, resident()), max(disk, on_disk())
        full = full or "max_disk_bytes" in str(client.buffer.stats().problem)
stats = client.buffer.stats()
moved = [stats.delivered, stats.pending, stats.dead, stats.dropped]
say(number > 2000, stats.recorded.events == number + 1000, stats.recorded.events == sum(one.events for one in moved))
say(number + 1000 - stats.dropped.events == kept + 1000, stats.delivered.events, stats.dead.events)
say((most - before) // 1024**2 < 50, stats.spool_bytes <= limit + passed, disk <= 2 * (limit + passed))
say(full, kept < number)
say(stats.problem)
client.close()
"""
)


@needs_proc
@pytest.mark.parametrize("seconds", [1.5, full(15)])
def test_L02_an_outage_at_full_speed(seconds: float, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """As many events as the machine can record while nobody listens: disk and memory stop at their limits, what no
    longer fits is counted, and the rest is there for the next start."""
    finished = run(OUTAGE, tmp_spool, f"http://127.0.0.1:{closed_port()}", emulator.create_envelope(), seconds)

    assert finished.lines[0] == "True True True", finished.lines
    assert finished.lines[1] == "True 0 0", finished.lines
    assert finished.lines[2] == "True True True", finished.lines
    assert finished.lines[3] == "True True", "it never came to the limit"
    assert finished.lines[4] != "None"
    assert finished.returncode == 0, finished.errors
    stored = stored_posts(tmp_spool)  # and all of that the next start would deliver
    assert stored
    assert len({post.key for post in stored}) == len(stored)


BACKLOG = """
client = make(deliver=False, on_queue_full="block")
for _ in range(int(sys.argv[4])): client.record_usage(envelope, 1)
client.close(20)
"""
OPEN = (
    MEASURE
    + """
before = resident()
began = time.monotonic()
client = make(exit_timeout=0)
opened = time.monotonic() - began
began = time.monotonic()
newest = client.record_usage(envelope, 1)
recorded = time.monotonic() - began
tick = threading.Event()
most = 0
while client.buffer.stats().delivered.events < 500:
    most = max(most, resident())
    tick.wait(0.05)
stats = client.buffer.stats()
say(opened < 1, recorded < 0.05, (most - before) // 1024**2 < 50)
say(stats.recorded.events == int(sys.argv[4]) + 1, stats.oldest_pending_age > 0)
client.close()
"""
)


@needs_proc
@pytest.mark.parametrize("count", [30_000, full(1_000_000)])
def test_L03_a_backlog_at_the_start(count: int, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """It is opened at once, is not read into memory, and recording goes on beside it."""
    envelope = emulator.create_envelope()
    assert run(BACKLOG, tmp_spool, emulator.base_url, envelope, count).returncode == 0

    finished = run(OPEN, tmp_spool, emulator.base_url, envelope, count)

    assert finished.lines == ["True True True", "True True"], finished.errors


def test_L04_a_service_slower_than_the_usage(reporter: MakeReporter) -> None:
    """So many at once, each as long as the service takes, and what waits shows its age."""
    with Emulator() as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(Fault.latency(0.1))
        reports = reporter(emulator, api_key=emulator.api_key, max_concurrency=8, flush_at=1, timeout=(5, 5, 20))
        before = time.monotonic()
        reports.record(80, envelope)
        ages = []
        while not reports.client.flush(0.2):
            stats = reports.stats()
            ages.append(stats.oldest_pending_age or 0.0)
            assert stats.in_flight <= 8
        took = time.monotonic() - before
        reports.client.close()

    assert 1.0 <= took < 8  # 80 POSTs, 8 at once, 0.1 s each; and what a busy machine adds
    assert max(ages) > 0.2


CROWD = """
client = make(flush_interval=0.05, max_queue_size=200_000)
gate, took = threading.Barrier(64), []
def work(times):
    gate.wait()
    mine, ids = [], []
    for _ in range(times):
        began = time.perf_counter()
        ids.append(client.record_usage(envelope, 1, {"a": 1}).id)
        mine.append(time.perf_counter() - began)
    took.extend(mine)
    kept.extend(ids)
kept = []
threads = [threading.Thread(target=work, args=(int(sys.argv[4]),)) for _ in range(64)]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads): client.flush(0.05)
took.sort()
say(len(set(kept)) == 64 * int(sys.argv[4]), took[int(len(took) * 0.99)] < 0.05)
stats = client.buffer.stats()
say(stats.recorded.events == len(kept), stats.dropped.events, stats.dead.events)
client.close(0.2)
"""


@pytest.mark.alone
@pytest.mark.parametrize("times", [20, full(1000)])
def test_L05_64_threads_while_it_flushes(times: int, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """Nothing is lost and nobody waits for long: 99 of 100 calls take less than 50 ms."""
    finished = run(CROWD, tmp_spool, emulator.base_url, emulator.create_envelope(), times)

    assert finished.lines == ["True True", "True 0 0"], finished.errors
    if times < 100:  # a minute of delivering otherwise
        deliver_rest(tmp_spool, emulator)
        check_conservation(emulator, set(), unsure=64 * times)
        assert emulator.ledger().events == 64 * times


SOAK = (
    MEASURE
    + """
client = make(flush_interval=0.05, max_queue_size=5000)
def sample():
    log = pathlib.Path(path + "-wal")
    return [resident(), len(os.listdir("/proc/self/fd")), threading.active_count(), log.stat().st_size]
def work(seconds):
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20): client.record_usage(envelope, 1, {"who": "somebody", "number": len(samples)})
        client.flush(0.02)
        samples.append(sample())
    return [max(column) for column in zip(*samples)]
seconds = float(sys.argv[4])
early = work(seconds)
late = work(2 * seconds)
client.flush(10)
stats = client.buffer.stats()
memory, handles, threads, log = (after - before for after, before in zip(late, early))
print(memory, handles, threads, log, stats, file=sys.stderr)
say(memory < 8 * 1024**2, handles <= 4, threads <= 2, late[3] < 16 * 1024**2)
say(stats.recorded.events == stats.delivered.events + stats.pending.events, stats.dead.events, stats.dropped.events)
"""
)


@needs_proc
@pytest.mark.parametrize("seconds", [0.7, full(5.0), pytest.param(1200.0, marks=[pytest.mark.proof])])
@pytest.mark.timeout(4000)
def test_L06_nothing_grows(seconds: float, tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """While a part of all POSTs fails: neither memory nor handles nor threads nor the log are more later than early."""
    emulator.set_faults(Fault.status(500, share=0.05, seed=1), Fault.reset_after_commit(share=0.05, seed=2))

    with Child(SOAK, tmp_spool, emulator.base_url, emulator.create_envelope(), seconds, patience=4 * seconds) as child:
        finished = child.finish()

    assert finished.lines == ["True True True True", "True 0 0"], finished.errors


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


@pytest.mark.parametrize("error", [APIError("broken", 500), APIConnectionError("reset")], ids=["500", "reset"])
@pytest.mark.parametrize("poisons", [1, 7])
@pytest.mark.parametrize("quiet", [1.0, 60.0, HOUR])
def test_L07_poison_in_a_quiet_time_delays_no_other(
    make_bench: MakeBench, error: Exception, poisons: int, quiet: float
) -> None:
    """However long nothing but the poison was tried, what comes next is delivered within a second of being stored."""
    bench = make_bench({f"rec-1-{at}": [error] for at in range(poisons)}, max_attempts=1000, flush_interval=0.1)
    bench.record(*[1] * poisons)
    bench.run_for(quiet)

    bench.record(2)
    recorded_at = bench.clock()
    bench.run_until(lambda: bench.deliver.taken == ["rec-2-0"])

    assert bench.clock() - recorded_at < 1


def test_L07_poison_that_closed_the_gate_does_not_keep_it_closed(make_bench: MakeBench) -> None:
    """Fifty at once look like an outage; the next good one is tried before any of them again, and opens the gate."""
    bench = make_bench({f"rec-1-{at}": [APIError("broken", 500)] for at in range(50)}, max_attempts=1000)
    bench.record(*[1] * 50)
    bench.run_for(HOUR)
    bench.record(2)
    recorded_at = bench.clock()

    bench.run_until(lambda: "rec-2-0" in bench.deliver.taken)

    assert bench.clock() - recorded_at <= 31  # the longest time that the gate stays closed, and a look at the store
    assert len(bench.deliver.keys()) < HOUR  # and until then the service was left alone
