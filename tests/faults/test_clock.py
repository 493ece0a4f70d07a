"""C1 and C2 of the fault catalogue: a wall clock that jumps, and usage that is old when it arrives."""

from __future__ import annotations

import pathlib

from tests.client.conftest import Serve
from tests.faults.process_child import check_conservation, run
from tests.faults.reporting import Books, MakeReporter
from x402tools.testing import Emulator, Fault

JUMPS = """
import datetime
real = time.time
def jump(seconds):
    time.time = lambda: real() + seconds
day = 86400
jumps = {"back": -day, "on": day, "summer": 3600, "winter": -3600, "leap": -1, "1970": -real(), "2100": 75 * 365 * day}
client = make(flush_interval=0.1)
for name, seconds in jumps.items():
    client.record_usage(envelope, 1)  # is under way while the clock jumps
    jump(seconds)
    began = time.monotonic()
    usages = [client.record_usage(envelope, 1) for _ in range(20)]
    for usage in usages: say("id", usage.id)
    age = client.buffer.stats().oldest_pending_age
    done = client.flush(15)
    late = abs(usages[0].timestamp.timestamp() - time.time())
    in_time = time.monotonic() - began < 10
    say(name, bool(done), in_time, age is None or age >= 0, late < 15, usages[0].timestamp.tzname())
client.close()
say(client.buffer.stats().pending.events)
"""


def test_C01_the_wall_clock_jumps(tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """By hours, days and decades, both ways, while things fail: all is delivered in time, stamped in UTC as it is."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.status(500, share=0.2, seed=1), Fault.reset_after_commit(share=0.1, seed=2))

    finished = run(JUMPS, tmp_spool, emulator.base_url, envelope)

    told = [line for line in finished.lines if not line.startswith("id ")]
    names = ["back", "on", "summer", "winter", "leap", "1970", "2100"]
    assert told == [*(f"{name} True True True True UTC" for name in names), "0"], finished.errors
    ids = {line.split()[1] for line in finished.lines if line.startswith("id ")}
    check_conservation(emulator, ids, unsure=len(names))


LONG_AGO = """
real = time.time
time.time = lambda: real() - 35 * 86400
client = make(deliver=False)
for _ in range(5): say("id", client.record_usage(envelope, 1, {"who": "somebody"}).id)
client.close()
"""


def test_C02_usage_that_waited_for_35_days(
    serve: Serve, reporter: MakeReporter, books: Books, tmp_spool: pathlib.Path
) -> None:
    """Delivered under its old keys. The contract has no field for the time of an event: none is sent to be too old."""
    server = serve(always=books.behaviour())
    recorded = run(LONG_AGO, tmp_spool, server.url, "env_1")

    reports = reporter(server)
    reports.ids += [line.split()[1] for line in recorded.lines]
    age = reports.stats().oldest_pending_age
    reports.client.flush(20)

    assert sorted(books.booked) == sorted(reports.ids)
    assert age is None or age > 34 * 86400  # None: delivered before it was asked for
    assert {tuple(request.json) for request in server.requests} == {("envelopeId", "amount", "metadata")}
