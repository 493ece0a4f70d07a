"""The ledger at any moment: recorded = delivered + pending + dead + dropped, while everything is going on."""

from __future__ import annotations

import pathlib
import random
import threading
from typing import List

from tests.buffer.helpers import URL, ScriptedDelivery, assert_adds_up, held_spool, wait_until
from x402tools import UsageBuffer
from x402tools.buffer import BufferStats
from x402tools.errors import APIConnectionError, APIError, RateLimitError, SpoolError


def test_the_ledger_adds_up_under_load(tmp_spool: pathlib.Path) -> None:
    """Seen at random moments from two threads, with deliveries, failures, dead letters, requeues and drops."""
    draw = random.Random(402)

    def answer() -> None:
        error = draw.choice(
            [None] * 14
            + [APIError("down", 500), APIConnectionError("reset"), RateLimitError("slow", 429)]
            + [APIError("gone", 410), APIError("too large", 413)]
        )
        if error is not None:
            raise error

    seen: List[BufferStats] = []
    faults: List[BaseException] = []
    stop, held = threading.Event(), threading.Event()
    buffer = UsageBuffer(tmp_spool, max_queue_size=500, flush_interval=0.05, max_attempts=10**6, exit_timeout=10)
    buffer.attach(ScriptedDelivery(default=answer), URL)

    def record() -> None:
        mine = random.Random()
        while not stop.is_set():
            for _ in range(mine.randrange(20)):
                buffer.record("env", mine.randrange(2**50), {"a": 1})
            stop.wait(0.005)

    def look() -> None:
        mine = random.Random()
        try:
            while not stop.is_set():
                seen.append(buffer.stats())
                assert_adds_up(seen[-1])
                if mine.random() < 0.1:
                    try:
                        buffer.requeue()
                    except SpoolError:
                        if not held.is_set():
                            raise
                stop.wait(mine.random() * 0.01)
        except BaseException as error:  # noqa: BLE001 - the test looks at it below
            faults.append(error)

    threads = [threading.Thread(target=work, daemon=True) for work in (record, record, record, look, look)]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(seen) > 100 or faults, "the ledger was looked at", seconds=15)
        held.set()  # stays: a call that waits may fail just after the file is free again
        with held_spool(tmp_spool):
            wait_until(lambda: seen[-1].dropped.events > 0 or faults, "events are dropped")
        wait_until(lambda: len(seen) > 200 or faults, "the ledger was looked at again", seconds=15)
    finally:  # or they would load the machine while all the other tests run
        stop.set()
        for thread in threads:
            thread.join(20)
        last = buffer.stats()
        buffer.close()

    assert faults == []
    assert_adds_up(last)
    moments = [(one.recorded, one.dropped) for one in seen]
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
