"""Draining: what `flush` waits for, what `close` promises, and that neither ever waits longer than it was told."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import List

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, assert_adds_up, stored_posts, wait_until
from tests.conftest import run_with_deadline
from x402tools import BufferClosedError, UsageBuffer, X402Client
from x402tools.errors import APIConnectionError, AuthenticationError
from x402tools.testing import Emulator, Fault

LATE = 0.5  # seconds that anything may take longer than it was told


def buffer_for(path: pathlib.Path, deliver: ScriptedDelivery, **options: object) -> UsageBuffer:
    buffer = UsageBuffer(path, **options)  # type: ignore[arg-type]  # a test's own options
    buffer.attach(deliver, URL)
    return buffer


def test_flush_waits_until_all_is_delivered(tmp_spool: pathlib.Path) -> None:
    """It is true then, and the ledger says so."""
    deliver = ScriptedDelivery()
    with buffer_for(tmp_spool, deliver) as buffer:
        usages = [buffer.record("env", number) for number in range(1000)]

        result = buffer.flush(20)
        stats = buffer.stats()

    assert result
    assert (result.pending, result.problem) == (0, None)
    assert stats.delivered == (1000, sum(range(1000)))
    assert deliver.faults == []
    assert sorted(deliver.keys()) == sorted(usage.id for usage in usages)


def test_flush_does_not_wait_for_the_interval(tmp_spool: pathlib.Path) -> None:
    """It wakes who delivers, and is woken when that is done."""
    with buffer_for(tmp_spool, ScriptedDelivery(), flush_interval=60.0) as buffer:
        took = []

        for _ in range(10):
            buffer.record("env", 1)
            before = time.monotonic()
            assert buffer.flush(20)
            took.append(time.monotonic() - before)

    assert sorted(took)[5] < 0.09
    assert max(took) < 2


def test_flush_waits_only_for_what_was_before(tmp_spool: pathlib.Path) -> None:
    """Traffic that goes on during it does not make it endless."""
    first_may_go, second_may_go = threading.Event(), threading.Event()
    deliver = ScriptedDelivery(
        {"first": [lambda: first_may_go.wait(20) and None], "second": [lambda: second_may_go.wait(20) and None]}
    )
    results: List[object] = []
    with buffer_for(tmp_spool, deliver, durability="commit", flush_interval=60.0) as buffer:
        assert buffer._parts is not None
        flusher = buffer._parts.flusher
        wait_until(lambda: flusher and flusher._found_nothing, "it has looked, and waits for its interval")
        buffer.record("env", 1, idempotency_key="first")
        flushing = threading.Thread(target=lambda: results.append(buffer.flush(15)), daemon=True)
        flushing.start()  # only this has anything sent, once it knows what it waits for
        wait_until(lambda: deliver.keys() == ["first"], "the first is under way")
        buffer.record("env", 1, idempotency_key="second")
        threading.Thread(target=lambda: buffer.flush(15), daemon=True).start()
        wait_until(lambda: deliver.keys() == ["first", "second"], "the second is under way")

        first_may_go.set()
        flushing.join(10)
        second_was_waited_for = flushing.is_alive()
        second_may_go.set()

    assert not second_was_waited_for
    assert [bool(result) for result in results] == [True]


def test_flush_gives_up_in_time_and_says_why(tmp_spool: pathlib.Path) -> None:
    """False, with the number of events that wait and what holds them up."""
    deliver = ScriptedDelivery(default=AuthenticationError("the key was revoked", 401))
    with buffer_for(tmp_spool, deliver, exit_timeout=0.1) as buffer:
        for _ in range(3):
            buffer.record("env", 1)
        before = time.monotonic()

        result = buffer.flush(0.5)
        took = time.monotonic() - before

    assert not result
    assert result.pending == 3
    assert "revoked" in str(result.problem)
    assert took < 0.5 + LATE


def test_flush_of_nothing_is_at_once(tmp_spool: pathlib.Path) -> None:
    """Also with a timeout of zero."""
    with buffer_for(tmp_spool, ScriptedDelivery()) as buffer:
        assert buffer.flush(0)
        assert buffer.flush(None)


def test_flush_counts_a_dead_letter_as_done(tmp_spool: pathlib.Path, emulator: Emulator) -> None:
    """What the service refused does not hold it up."""
    buffer = UsageBuffer(tmp_spool)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        client.record_usage("nobody", 1)

        result = client.flush(10)
        letters = buffer.dead_letters()

    assert result
    assert [(letter.envelope_id, letter.status_code) for letter in letters] == [("nobody", 404)]


def test_two_threads_may_flush(tmp_spool: pathlib.Path) -> None:
    """Both return when all is delivered."""
    results: List[bool] = []
    with buffer_for(tmp_spool, ScriptedDelivery(), flush_interval=60.0) as buffer:
        for _ in range(500):
            buffer.record("env", 1)

        threads = [threading.Thread(target=lambda: results.append(bool(buffer.flush(15)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    assert results == [True] * 4


@pytest.mark.parametrize("count", [1, 500])
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_close_delivers_what_was_just_recorded(tmp_spool: pathlib.Path, count: int, pause: float) -> None:
    """Whether the buffer is a moment old or was idle for a while."""
    deliver = ScriptedDelivery()
    buffer = buffer_for(tmp_spool, deliver, flush_interval=60.0, exit_timeout=10.0)
    threading.Event().wait(pause)  # nothing to wait for: idleness is what the test is about
    usages = [buffer.record("env", 1) for _ in range(count)]

    result = buffer.close()

    assert result
    assert sorted(deliver.keys()) == sorted(usage.id for usage in usages)
    assert stored_posts(tmp_spool) == []


def test_close_does_not_wait_longer_than_it_has_to(tmp_spool: pathlib.Path) -> None:
    """When the last delivery is settled it returns, however much time is left."""
    took = []

    for attempt in range(5):
        buffer = buffer_for(tmp_spool.with_name(f"{attempt}.db"), ScriptedDelivery(), exit_timeout=3.0)
        for _ in range(20):
            buffer.record("env", 1)
        before = time.monotonic()
        assert buffer.close()
        took.append(time.monotonic() - before)

    assert max(took) < 1.0


@pytest.mark.parametrize("timeout", [0.0, 0.5])
def test_close_keeps_its_time_when_nobody_answers(tmp_spool: pathlib.Path, timeout: float) -> None:
    """What is left is on disk, counted, and delivered by the next start under the same keys."""
    release = threading.Event()
    silent = ScriptedDelivery(default=lambda: release.wait(30) and None)
    buffer = buffer_for(tmp_spool, silent)
    keys = [buffer.record("env", 1).id for _ in range(20)]
    before = time.monotonic()

    result = buffer.close(timeout)
    took = time.monotonic() - before
    left = [post.key for post in stored_posts(tmp_spool)]
    release.set()

    assert took < timeout + LATE
    assert not result
    assert result.pending == 20
    assert left == keys


@pytest.mark.parametrize("durability", ["interval", "commit", "fsync"])
def test_the_next_start_delivers_what_was_left(tmp_spool: pathlib.Path, durability: str) -> None:
    """The same keys and the same bytes, once each."""
    down = ScriptedDelivery(default=APIConnectionError("refused"))
    with buffer_for(tmp_spool, down, durability=durability, exit_timeout=0.3) as buffer:
        keys = [buffer.record("env", number, {"n": number}).id for number in range(50)]
    up = ScriptedDelivery()

    with buffer_for(tmp_spool, up) as again:
        result = again.flush(10)
        stats = again.stats()

    sent = dict(down.attempts)
    assert result
    assert sorted(up.keys()) == sorted(keys)
    assert all(body == sent.get(key, body) for key, body in up.attempts)
    assert (stats.recorded.events, stats.delivered.events) == (50, 50)


def test_close_twice_and_from_many_threads(tmp_spool: pathlib.Path) -> None:
    """Everybody gets the one result, and nobody waits longer than the first."""
    buffer = buffer_for(tmp_spool, ScriptedDelivery(default=APIConnectionError("refused")))
    buffer.record("env", 1)
    results: List[object] = []

    threads = [threading.Thread(target=lambda: results.append(buffer.close(0.5)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    results.append(run_with_deadline(buffer.close, seconds=2))

    assert len(results) == 5
    assert len(set(map(repr, results))) == 1


def test_close_ends_every_thread(tmp_spool: pathlib.Path) -> None:
    """None is left behind, whatever was going on: nothing to do, deliveries, a service that is down."""
    before = set(threading.enumerate())

    for default in (None, APIConnectionError("refused"), AuthenticationError("no", 401)):
        buffer = buffer_for(tmp_spool, ScriptedDelivery(default=default), exit_timeout=0.3, on_error=str)
        for _ in range(10):
            buffer.record("env", 1)
        buffer.flush(0.2)
        buffer.close()

    wait_until(lambda: set(threading.enumerate()) <= before, "all threads have ended", seconds=3)


def record_until_closed(buffer: UsageBuffer, accepted: List[str], strange: List[BaseException]) -> None:
    """Records as fast as it can until it is refused."""
    try:
        while True:
            usage = buffer.record("env", 1)
            if usage.pending:  # or else it was dropped, because memory was full
                accepted.append(usage.id)
    except BufferClosedError:
        pass
    except BaseException as error:  # noqa: BLE001 - any other is what the test looks for
        strange.append(error)


@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("durability", ["interval", "commit"])
def test_record_racing_close_is_kept_or_refused(tmp_spool: pathlib.Path, durability: str, attempt: int) -> None:
    """Eight threads record while the buffer is closed: every event that was accepted is in the spool, no other is."""
    buffer = UsageBuffer(tmp_spool, durability=durability, exit_timeout=1)
    accepted: List[List[str]] = [[] for _ in range(8)]
    strange: List[BaseException] = []

    threads = [
        threading.Thread(target=record_until_closed, args=(buffer, mine, strange), daemon=True) for mine in accepted
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(accepted), "all are at work")
    finally:
        buffer.close()  # or they would never end
    for thread in threads:
        thread.join(10)
    ledger = buffer.stats()

    stored = [post.key for post in stored_posts(tmp_spool)]
    assert strange == []
    assert sorted(stored) == sorted(key for mine in accepted for key in mine)
    assert ledger.recorded.events == len(stored) + ledger.dropped.events
    assert_adds_up(ledger)


def test_flush_record_and_close_at_the_same_time(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Nothing hangs, nothing is lost, and each error is the one that says that the buffer is closed."""
    envelope = emulator.create_envelope()
    emulator.set_faults(Fault.latency(0.005, path="/usage"))
    buffer = UsageBuffer(tmp_spool, exit_timeout=20)
    client = X402Client(emulator.api_key, emulator.base_url, buffer=buffer)
    accepted: List[List[str]] = [[] for _ in range(4)]
    strange: List[BaseException] = []

    def repeat(action: object) -> None:
        try:
            while True:
                action()  # type: ignore[operator]  # one of the functions below
        except BufferClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - any other is what the test looks for
            strange.append(error)

    pause = threading.Event()
    actions = [lambda: buffer.flush(0.05), lambda: buffer.flush(0.01)]
    actions += [
        lambda mine=mine: pause.wait(0.002) or mine.append(client.record_usage(envelope, 1).id) for mine in accepted
    ]
    threads = [threading.Thread(target=repeat, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(map(len, accepted)) > 200, "all are at work")
    run_with_deadline(buffer.close, seconds=25)
    for thread in threads:
        thread.join(10)

    booked = [event.idempotency_key for event in emulator.events()]
    left = [post.key for post in stored_posts(tmp_spool)]
    assert strange == []
    assert not any(thread.is_alive() for thread in threads)
    assert sorted([*booked, *left]) == sorted(key for mine in accepted for key in mine)
