"""The ledger at any moment: recorded = delivered + pending + dead + dropped, while everything is going on."""

from __future__ import annotations

import pathlib
import random
import threading
from typing import List

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, assert_adds_up, held_spool, wait_until
from x402tools import UsageBuffer
from x402tools.buffer import BufferStats
from x402tools.errors import APIConnectionError, APIError, RateLimitError, SpoolError

ANSWERS = (
    [None] * 14
    + [APIError("down", 500), APIConnectionError("reset"), RateLimitError("slow", 429)]
    + [APIError("gone", 410), APIError("too large", 413)]
)


class Load:
    """Threads that record, and threads that look at the ledger and requeue; a context manager."""

    def __init__(self, buffer: UsageBuffer) -> None:
        self.seen: List[BufferStats] = []
        self.faults: List[BaseException] = []
        self.may_fail = threading.Event()  # from now on a requeue may find that somebody else holds the file
        self._buffer = buffer
        self._stop = threading.Event()
        work = (self._record, self._record, self._record, self._look, self._look)
        self._threads = [threading.Thread(target=one, daemon=True) for one in work]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever happened: left running they would load the machine during all the other tests."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def wait_until_seen(self, times: int) -> None:
        wait_until(lambda: len(self.seen) > times or self.faults, "the ledger was looked at", seconds=15)

    def wait_for_drops(self) -> None:
        wait_until(lambda: self.seen[-1].dropped.events > 0 or self.faults, "events are dropped")

    def _record(self) -> None:
        mine = random.Random()
        while not self._stop.is_set():
            for _ in range(mine.randrange(20)):
                self._buffer.record("env", mine.randrange(2**50), {"a": 1})
            self._stop.wait(0.005)

    def _look(self) -> None:
        mine = random.Random()
        try:
            while not self._stop.is_set():
                self.seen.append(self._buffer.stats())
                assert_adds_up(self.seen[-1])
                if mine.random() < 0.1:
                    self._requeue()
                self._stop.wait(mine.random() * 0.01)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.faults.append(error)

    def _requeue(self) -> None:
        try:
            self._buffer.requeue()
        except SpoolError:
            if not self.may_fail.is_set():
                raise


@pytest.mark.full
def test_the_ledger_adds_up_under_load(tmp_spool: pathlib.Path) -> None:
    """Seen at random moments from two threads, with deliveries, failures, dead letters, requeues and drops."""
    draw = random.Random(402)

    def answer() -> None:
        error = draw.choice(ANSWERS)
        if error is not None:
            raise error

    buffer = UsageBuffer(tmp_spool, max_queue_size=500, flush_interval=0.05, max_attempts=10**6, exit_timeout=10)
    buffer.attach(ScriptedDelivery(default=answer), URL)
    with buffer, Load(buffer) as load:
        load.wait_until_seen(100)
        load.may_fail.set()  # and stays so: a call that waits may fail just after the file is free again
        with held_spool(tmp_spool):
            load.wait_for_drops()
        load.wait_until_seen(200)
    last = buffer.stats()

    assert load.faults == []
    assert_adds_up(last)
    moments = [(one.recorded, one.dropped) for one in load.seen]
    assert last.recorded.events >= max(recorded.events for recorded, _ in moments)
    assert last.delivered.events > 0
    assert last.dropped.events > 0


def test_the_ledger_goes_on_after_a_restart(tmp_spool: pathlib.Path) -> None:
    """It is the spool's, not the process's."""
    for turn in range(1, 4):
        with UsageBuffer(tmp_spool) as buffer:
            buffer.attach(ScriptedDelivery({"bad": [APIError("gone", 410)]}), URL)
            buffer.record("env", 10)
            if turn == 2:
                buffer.record("env", 7, idempotency_key="bad")
            assert buffer.flush(10)
            stats = buffer.stats()

    assert stats.recorded == (4, 37)
    assert stats.delivered == (3, 30)
    assert stats.dead == (1, 7)


def test_the_oldest_pending_event_has_an_age(tmp_spool: pathlib.Path) -> None:
    """None when nothing waits."""
    with UsageBuffer(tmp_spool, exit_timeout=0.1) as buffer:
        before = buffer.stats().oldest_pending_age
        buffer.record("env", 1)
        wait_until(lambda: buffer.stats().in_memory == 0, "it is stored")
        wait_until(lambda: (buffer.stats().oldest_pending_age or 0) > 0.05, "it grows older")

    assert before is None
