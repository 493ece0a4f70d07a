"""How long POSTs take, as the buffer counts it."""

from __future__ import annotations

import os
import pathlib
from typing import List

import pytest

from tests.buffer.helpers import wait_until
from tests.observability.helpers import metered
from x402tools._timings import BOUNDS, AttemptTimes, Stopwatch
from x402tools.testing import Emulator, Fault


def test_attempts_are_counted_by_their_length() -> None:
    """A length on a bound belongs to it, as Prometheus' `le` has it; one beyond all has a place of its own."""
    stopwatch = Stopwatch()

    for seconds in (0.001, BOUNDS[0], BOUNDS[0] * 1.01, 3600.0):
        stopwatch.add(seconds)

    times = stopwatch.times()
    assert (times.counts[0], times.counts[1], times.counts[-1]) == (2, 1, 1)
    assert times.attempts == 4
    assert 3600.0 < times.total < 3601.0


def test_every_attempt_of_a_buffer_is_timed(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Failed ones too; the sum is no shorter than what the service took, and watchers are told each."""
    envelope_id = emulator.create_envelope()
    emulator.set_faults(Fault.status(500, times=2), Fault.latency(0.1))
    told: List[float] = []
    with metered(emulator, tmp_spool) as (client, buffer):
        buffer.watch_attempts(told.append)

        for _ in range(3):
            client.record_usage(envelope_id, 1)
        assert client.flush(30)

        stats = buffer.stats()
    assert stats.attempts.attempts == 3 + stats.retries == len(told)
    assert stats.retries == 2
    assert stats.attempts.total == sum(told)
    assert stats.attempts.total >= 0.1 * 3


def test_a_watcher_that_raises(emulator: Emulator, tmp_spool: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once in the log and not called any more; what was delivered is noted all the same, and others told."""
    envelope_id = emulator.create_envelope()
    told: List[float] = []

    def fail(seconds: float) -> None:
        raise RuntimeError("a fault of the watcher")

    with metered(emulator, tmp_spool) as (client, buffer):
        buffer.watch_attempts(fail)
        buffer.watch_attempts(told.append)
        for _ in range(3):
            client.record_usage(envelope_id, 1)

        assert client.flush(20)

    assert len(told) == 3
    assert sum("not called any more" in record.message for record in caplog.records) == 1
    assert emulator.ledger().events == 3


def test_a_forked_child_begins_at_zero(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """What the parent has timed is the parent's: a child that exports metrics too would count it again."""
    envelope_id = emulator.create_envelope()
    with metered(emulator, tmp_spool) as (client, buffer):
        client.record_usage(envelope_id, 1)
        wait_until(lambda: buffer.stats().attempts.attempts == 1, "it is delivered")

        child = os.fork()
        if child == 0:
            os._exit(0 if buffer._stopwatch.times() == AttemptTimes() else 1)

        assert os.waitpid(child, 0)[1] == 0
        assert buffer.stats().attempts.attempts == 1
