"""The whole promise at full size: a hundred thousand events, a service that fails in every way, exactly once each."""

from __future__ import annotations

import json
import pathlib
import time
from collections import Counter
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

from tests.buffer.helpers import PROGRAMS, Program, stored_posts, wait_until
from x402tools.testing import Emulator, Fault

FULL, REDUCED = 100_000, 1_000

# Of all POSTs 20 % are answered 500 and 10 % 429, and 5 % are reset after they were booked. Each fault is drawn among
# the POSTs that did not meet the one before it.
FAULTS = (
    Fault.status(500, share=0.20, method="POST", path="/usage"),
    Fault.rate_limited(share=0.10 / 0.80, method="POST", path="/usage"),
    Fault.reset_after_commit(share=0.05 / 0.70, method="POST", path="/usage"),
)

# Nothing may be dropped and nothing lost by a kill, so that "exactly once each" can be asked for.
OPTIONS: Dict[str, Any] = {"on_queue_full": "block", "max_attempts": 1000, "exit_timeout": 1.0}

sizes = pytest.mark.parametrize(
    "count",
    [
        pytest.param(REDUCED, id="reduced", marks=pytest.mark.full),
        pytest.param(FULL, id="full", marks=[pytest.mark.proof, pytest.mark.timeout(900)]),
    ],
)


@pytest.fixture
def service() -> Iterator[Tuple[Emulator, str]]:
    """An emulator in a process of its own, and an envelope; the faults are in force."""
    with Emulator(process=True) as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(*FAULTS)
        yield emulator, envelope


def recorder(path: pathlib.Path, service: Tuple[Emulator, str], first: int, end: int, **options: Any) -> Program:
    emulator, envelope = service
    settings = json.dumps({**OPTIONS, **options})
    return Program(PROGRAMS / "recorder.py", path, emulator.base_url, envelope, first, end, settings)


def ledger_of(program: Program) -> Dict[str, Any]:
    program.tell("stats")
    found: Dict[str, Any] = program.answer()
    moved = [found[name] for name in ("delivered", "pending", "dead", "dropped")]
    assert found["recorded"] == [sum(column) for column in zip(*moved)], found
    return found


def wait_for_booked(emulator: Emulator, condition: Callable[[int], bool], what: str, seconds: float) -> None:
    """Looks at the emulator's books twice a second: they are long at the end."""
    last = [0.0, 0.0]

    def look() -> bool:
        if time.monotonic() - last[0] > 0.5:
            last[:] = [time.monotonic(), emulator.ledger().events]
        return condition(int(last[1]))

    wait_until(look, what, seconds)


def assert_booked_once(emulator: Emulator, envelope: str, count: int) -> None:
    """Every number is in the books exactly once, under its key, with its amount; no key came with another body."""
    ledger = emulator.ledger()
    events = emulator.events()
    times = Counter(event.metadata["number"] for event in events if event.metadata)
    missing = [number for number in range(count) if not times[number]]
    twice = [number for number, often in times.items() if often > 1]
    assert (missing[:10], twice[:10], len(times)) == ([], [], count)
    assert all(event.metadata and event.amount == event.metadata["number"] % 7 + 1 for event in events)
    assert all(event.metadata and event.idempotency_key == f"number-{event.metadata['number']}" for event in events)
    assert {event.envelope_id for event in events} == {envelope}
    assert (ledger.events, ledger.units) == (count, sum(number % 7 + 1 for number in range(count)))
    assert ledger.conflicts == 0
    print(f"{ledger.requests:,} requests, {ledger.repeats_dropped:,} repeats dropped by the service")


@sizes
def test_every_event_arrives_exactly_once(tmp_spool: pathlib.Path, service: Tuple[Emulator, str], count: int) -> None:
    """Eight threads record while a third of all POSTs fail: each event is booked once, and the ledger says so."""
    emulator, envelope = service
    started = time.monotonic()

    with recorder(tmp_spool, service, 0, count) as program:
        recorded = json.loads(program.line(300))
        wait_until(lambda: ledger_of(program)["delivered"][0] == count, "everything is delivered", 600)
        took = time.monotonic() - started
        ledger = ledger_of(program)
        program.tell("close")
        status = program.ended()

    print(f"{count:,} events: recorded at {recorded['recorded'] / recorded['seconds']:,.0f}/s,")
    print(f"delivered at {count / took:,.0f}/s, {ledger['retries']:,} attempts repeated")
    print("faults:", emulator.faults_fired())
    assert status == 0
    assert (ledger["pending"], ledger["dead"], ledger["dropped"]) == ([0, 0], [0, 0], [0, 0])
    assert_booked_once(emulator, envelope, count)
    assert stored_posts(tmp_spool) == []


@sizes
def test_stopped_and_started_every_event_arrives_exactly_once(
    tmp_spool: pathlib.Path, service: Tuple[Emulator, str], count: int
) -> None:
    """The same with the process killed while it records, killed while it delivers, closed, and started each time.

    After a kill the service records again whatever it was not told to be recorded: here everything from the start,
    under the same keys of its own, so that what was stored already is booked once all the same.
    """
    emulator, envelope = service
    started = time.monotonic()

    with recorder(tmp_spool, service, 0, count, durability="commit") as program:
        wait_for_booked(emulator, lambda booked: booked >= count // 100, "the first events are booked", 60)
        program.kill()
    at_first_kill = emulator.ledger().events
    stored_at_first_kill = len(stored_posts(tmp_spool))
    with recorder(tmp_spool, service, 0, count, durability="commit") as program:
        assert json.loads(program.line(300))["recorded"] == count
        wait_for_booked(emulator, lambda booked: booked >= count // 3, "a third is booked", 300)
        program.kill()
    at_second_kill = emulator.ledger().events
    with recorder(tmp_spool, service, 0, 0) as program:
        assert json.loads(program.line(60))["recorded"] == 0
        wait_for_booked(emulator, lambda booked: booked >= 2 * count // 3, "two thirds are booked", 300)
        program.tell("close")
        assert program.ended() == 0
    at_close = emulator.ledger().events
    with recorder(tmp_spool, service, 0, 0) as program:
        program.line(60)
        wait_until(lambda: ledger_of(program)["pending"][0] == 0, "everything is delivered", 600)
        ledger = ledger_of(program)
        program.tell("close")
        program.ended()
    took = time.monotonic() - started

    print(f"booked at the kills: {at_first_kill:,}, {at_second_kill:,}; at the close: {at_close:,}")
    print(f"stored at the first kill: {stored_at_first_kill:,}; {count / took:,.0f}/s in all")
    assert (ledger["dead"], ledger["dropped"]) == ([0, 0], [0, 0])
    assert ledger["delivered"] == ledger["recorded"]
    assert_booked_once(emulator, envelope, count)
    assert stored_posts(tmp_spool) == []
