"""Coalescing, from record to the books of the emulator: fewer POSTs, and every unit on the bill once."""

from __future__ import annotations

import json
import pathlib
import threading
from typing import Any, Dict, List

import pytest

from tests.buffer.helpers import PROGRAMS, Program, assert_adds_up, change_file, wait_until
from x402tools import UsageBuffer, ValidationError, X402Client
from x402tools.testing import Emulator, Fault

# A window that no test waits for: what is sealed was hurried.
LONG = 3600.0


@pytest.fixture
def envelope(emulator: Emulator) -> str:
    return emulator.create_envelope()


def client(emulator: Emulator, path: pathlib.Path, **options: Any) -> X402Client:
    settings: Dict[str, Any] = {"coalesce": True, "coalesce_window": LONG, "exit_timeout": 10, **options}
    return X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(path, **settings))


def buffer_of(client: X402Client) -> UsageBuffer:
    assert client.buffer is not None
    return client.buffer


def test_a_flush_sends_one_post_for_each_group(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """A thousand events of ten groups: ten POSTs, with the exact sums, and the ledger in events and units."""
    with client(emulator, tmp_spool) as recording:
        for number in range(1000):
            recording.record_usage(envelope, number, {"endpoint": f"/{number % 10}", "ok": True})
        flushed = recording.flush(20)
        stats = buffer_of(recording).stats()

    booked = emulator.events()
    assert flushed
    assert sorted(event.amount for event in booked) == sorted(sum(range(rest, 1000, 10)) for rest in range(10))
    assert {event.metadata["endpoint"] for event in booked if event.metadata} == {f"/{rest}" for rest in range(10)}
    assert (stats.delivered.events, stats.delivered.units) == (1000, sum(range(1000)))
    assert_adds_up(stats)


def test_a_window_ends_by_itself(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """Nobody flushes: what was recorded is delivered soon after its window."""
    with client(emulator, tmp_spool, coalesce_window=0.2, flush_interval=0.05) as recording:
        for _ in range(100):
            recording.record_usage(envelope, 2, {"endpoint": "/"})
        wait_until(lambda: emulator.ledger().units == 200, "all is booked")

    assert emulator.ledger().events < 50


def test_before_its_window_ends_nothing_is_sent(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """It is pending and on disk, and its age is known; closing sends it."""
    with client(emulator, tmp_spool, flush_at=1, flush_interval=0.01) as recording:
        recording.record_usage(envelope, 7)
        wait_until(lambda: buffer_of(recording).stats().in_memory == 0, "it is stored")
        wait_until(lambda: buffer_of(recording).stats().delivering, "the flusher is at work")
        stats = buffer_of(recording).stats()
        assert emulator.ledger().requests == 1  # making the envelope

    assert (stats.pending.events, stats.pending.units) == (1, 7)
    assert stats.oldest_pending_age is not None
    assert emulator.ledger().units == 7


def test_the_next_start_folds_what_was_left(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """Of two processes that never delivered, into one POST."""
    for _ in range(2):
        with client(emulator, tmp_spool, deliver=False) as recording:
            for _ in range(50):
                recording.record_usage(envelope, 3, {"endpoint": "/"})

    with client(emulator, tmp_spool) as delivering:
        assert delivering.flush(20)

    assert [event.amount for event in emulator.events()] == [300]


@pytest.mark.parametrize("first", [True, False])
def test_it_may_be_switched_on_and_off(first: bool, emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """What one start recorded is delivered by the next, whatever that one was told."""
    with client(emulator, tmp_spool, deliver=False, coalesce=first) as recording:
        for number in range(20):
            recording.record_usage(envelope, 5, {"number": number % 2})

    with client(emulator, tmp_spool, coalesce=not first) as delivering:
        assert delivering.flush(20)
        stats = buffer_of(delivering).stats()

    assert emulator.ledger().units == 100
    assert len(emulator.events()) == 20  # sealed one by one: by the first, or by the second for it
    assert stats.delivered.events == 20


def test_own_keys_are_booked_under_themselves(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """Recorded twice under one key it is booked once; what has none is folded beside it."""
    with client(emulator, tmp_spool) as recording:
        for _ in range(2):
            recording.record_usage(envelope, 5, idempotency_key="order-1")
            recording.record_usage(envelope, 1)
        assert recording.flush(20)

    assert sorted((event.amount, event.idempotency_key == "order-1") for event in emulator.events()) == [
        (2, False),
        (5, True),
    ]


def test_only_the_keys_that_count_are_sent(emulator: Emulator, envelope: str, tmp_spool: pathlib.Path) -> None:
    """`coalesce_by` leaves the others out; `max_post_amount` makes several POSTs of one group."""
    options = {"coalesce_by": ["endpoint"], "max_post_amount": 10}
    with client(emulator, tmp_spool, **options) as recording:
        for number in range(6):
            recording.record_usage(envelope, 4, {"endpoint": "/a", "user": number})
        assert recording.flush(20)

    assert [(event.amount, event.metadata) for event in emulator.events()] == [(8, {"endpoint": "/a"})] * 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"coalesce": True, "coalesce_window": -1}, "coalesce_window"),
        ({"coalesce": True, "coalesce_by": "endpoint"}, "coalesce_by"),
        ({"coalesce": True, "coalesce_by": [""]}, "coalesce_by"),
        ({"coalesce": True, "coalesce_by": [1]}, "coalesce_by"),
        ({"coalesce": True, "max_post_amount": 0}, "max_post_amount"),
        ({"coalesce": True, "max_post_amount": 2**53}, "max_post_amount"),
        ({"coalesce_by": ["endpoint"]}, "coalesce_by"),
        ({"max_post_amount": 5}, "max_post_amount"),
    ],
)
def test_unusable_settings_are_named(options: Dict[str, Any], named: str, tmp_spool: pathlib.Path) -> None:
    """And no file is made."""
    with pytest.raises(ValidationError, match=named):
        UsageBuffer(tmp_spool, **options)

    assert not tmp_spool.exists()


def test_an_event_beyond_the_largest_post_is_refused(tmp_spool: pathlib.Path) -> None:
    """In the call, and nothing is stored."""
    with UsageBuffer(tmp_spool, coalesce=True, max_post_amount=10) as buffer:
        with pytest.raises(ValidationError, match="max_post_amount"):
            buffer.record("env_1", 11)
        recorded = buffer.stats().recorded.events

    assert recorded == 0


def test_a_service_that_is_away_makes_windows_longer(
    emulator: Emulator, envelope: str, tmp_spool: pathlib.Path
) -> None:
    """Not the queue: after an outage of many windows few POSTs are sent."""
    emulator.set_faults(Fault.status(503, method="POST", path="/usage"))
    with client(emulator, tmp_spool, coalesce_window=0.02, flush_interval=0.02, max_concurrency=1) as recording:
        pause, recorded = threading.Event(), 0
        while not buffer_of(recording).stats().problem:  # windows are sealed until the service is known to be away
            recording.record_usage(envelope, 1, {"endpoint": "/"})
            recorded += 1
            pause.wait(0.02)
        for _ in range(50):
            recording.record_usage(envelope, 1, {"endpoint": "/"})
            pause.wait(0.02)
        emulator.clear_faults()
        assert recording.flush(30)

    assert emulator.ledger().units == recorded + 50
    assert len(emulator.events()) < (recorded + 50) / 2


DAMAGES = {
    "value": "UPDATE recorded SET value = CAST(substr(value, 1, 20) || x'00' AS BLOB) WHERE sequence = 2",
    "counts": "UPDATE recorded SET events = 11 WHERE sequence = 2",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_batch_of_events_is_set_aside(
    damage: str, emulator: Emulator, envelope: str, tmp_spool: pathlib.Path
) -> None:
    """The others are folded and delivered; wrong counts are set right, and the ledger adds up."""
    for _ in range(3):
        with client(emulator, tmp_spool, deliver=False) as recording:
            for _ in range(10):
                recording.record_usage(envelope, 1)
    change_file(tmp_spool, DAMAGES[damage])

    with client(emulator, tmp_spool) as delivering:
        assert delivering.flush(20)
        stats = buffer_of(delivering).stats()
        letters = buffer_of(delivering).dead_letters()

    assert emulator.ledger().units == (20 if damage == "value" else 30)
    assert [letter.events for letter in letters] == ([10] if damage == "value" else [])
    assert stats.pending.events == 0


def test_a_file_that_was_deleted_loses_nothing_of_a_window(
    emulator: Emulator, envelope: str, tmp_spool: pathlib.Path
) -> None:
    """Its events were read already, and are read again from the file that takes its place: billed once."""
    with client(emulator, tmp_spool, flush_at=1, flush_interval=0.01) as recording:
        for _ in range(100):
            recording.record_usage(envelope, 1)
        wait_until(lambda: buffer_of(recording).stats().in_memory == 0, "all is stored")
        for name in tmp_spool.parent.iterdir():
            name.unlink()
        recording.record_usage(envelope, 1)
        assert recording.flush(20)
        stats = buffer_of(recording).stats()

    assert emulator.ledger().units == 101
    assert stats.delivered.events == 101
    assert_adds_up(stats)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.full), 2])
def test_kills_in_the_middle_cost_no_unit(processes: int, tmp_spool: pathlib.Path) -> None:
    """Killed again and again while it folds and sends, alone or one of two: the sum of what was recorded is booked.

    With `durability="commit"` all that `record_usage` returned for is stored. What each process had recorded it says
    before it is killed; at the most the event under way may be booked beyond that.
    """
    options = json.dumps({"coalesce": True, "coalesce_window": 0.05, "flush_interval": 0.02, "durability": "commit"})
    recorded, under_way = 0, 0
    with Emulator(process=True) as emulator:
        envelope = emulator.create_envelope()
        emulator.set_faults(Fault.reset_after_commit(share=0.2, method="POST", path="/usage"))
        for _ in range(4):
            programs = [
                Program(PROGRAMS / "counter.py", tmp_spool, emulator.base_url, envelope, options)
                for _ in range(processes)
            ]
            said = [[int(program.line()) for _ in range(3)][-1] for program in programs]
            for program in programs:
                program.kill()
            recorded += sum(
                max([last, *(int(line) for line in program.lines())]) for last, program in zip(said, programs)
            )
            under_way += processes
        with client(emulator, tmp_spool) as last:
            assert last.flush(60)
            stats = buffer_of(last).stats()
        ledger = emulator.ledger()

    assert ledger.units == stats.delivered.units
    assert recorded <= ledger.units <= recorded + 100 * under_way
    assert len(emulator_keys(ledger)) == 1
    assert_adds_up(stats)


def emulator_keys(ledger: Any) -> List[str]:
    return list(ledger.envelopes)
