"""When memory is full, exactly what was chosen happens; and no loss is silent.

Another connection holds the file, so that nothing can be stored for as long as a test wants.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import threading
import time
from typing import List

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, assert_adds_up, held_spool, make_event, stored_posts, wait_until
from tests.conftest import run_with_deadline
from x402tools import BufferClosedError, QueueFullError, Usage, UsageBuffer
from x402tools._intake import Intake

LIMIT = 10


def test_reject_drops_the_new_event_and_says_so(tmp_spool: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest are kept; each drop is counted and reported, and all of them make one log line."""
    dropped: List[Usage] = []
    caplog.set_level(logging.INFO, "x402tools")
    buffer = UsageBuffer(tmp_spool, max_queue_size=LIMIT, on_drop=dropped.append, exit_timeout=1)

    with held_spool(tmp_spool):
        usages = [buffer.record("env", 1) for _ in range(100)]
        kept = [usage for usage in usages if usage.pending]
        lost = [usage for usage in usages if not usage.pending]
        stats = buffer.stats()
    wait_until(lambda: buffer.stats().in_memory == 0, "everything is stored")
    after = buffer.stats()
    buffer.close()

    assert lost
    assert usages[: len(kept)] == kept
    assert [usage.id for usage in dropped] == [usage.id for usage in lost]
    for one in (stats, after):
        assert (one.recorded, one.dropped) == ((100, 100), (len(lost), len(lost)))
        assert_adds_up(one)
    assert [post.key for post in stored_posts(tmp_spool)] == [usage.id for usage in kept]
    lines = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert len(lines) == 1
    assert "max_queue_size" in lines[0].getMessage()


def test_drops_stay_in_the_ledger(tmp_spool: pathlib.Path) -> None:
    """After a restart too."""
    with UsageBuffer(tmp_spool, max_queue_size=1, exit_timeout=1) as buffer:
        with held_spool(tmp_spool):
            usages = [buffer.record("env", 7) for _ in range(50)]
        lost = sum(not usage.pending for usage in usages)

    with UsageBuffer(tmp_spool, exit_timeout=1) as again:
        stats = again.stats()

    assert lost
    assert stats.dropped == (lost, 7 * lost)
    assert stats.recorded == (50, 350)
    assert_adds_up(stats)


def test_the_limit_of_memory_is_kept_however_long_the_disk_is_away(tmp_spool: pathlib.Path) -> None:
    """Attempts to store that fail make no room: what they took still waits in memory."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=LIMIT, exit_timeout=1)
    kept: List[Usage] = []

    with held_spool(tmp_spool):
        for _ in range(3):
            kept.extend(usage for usage in (buffer.record("env", 1) for _ in range(3 * LIMIT)) if usage.pending)
            wait_until(lambda: buffer.stats().problem is not None, "the writer has tried")
        waiting = buffer.stats().in_memory
    buffer.close()

    assert len(stored_posts(tmp_spool)) == len(kept)
    assert waiting == len(kept)
    assert waiting <= LIMIT


def test_raise_tells_the_caller(tmp_spool: pathlib.Path) -> None:
    """An event that was refused with an error is not recorded, and so it is not lost either."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=LIMIT, on_queue_full="raise", exit_timeout=1)
    accepted: List[Usage] = []

    with held_spool(tmp_spool), pytest.raises(QueueFullError, match=str(LIMIT)):
        for _ in range(100):
            accepted.append(buffer.record("env", 1))
    wait_until(lambda: buffer.stats().in_memory == 0, "everything is stored")
    stats = buffer.stats()
    buffer.record("env", 1)
    buffer.close()

    assert stats.recorded == (len(accepted), len(accepted))
    assert stats.dropped == (0, 0)


def test_block_waits_for_room(tmp_spool: pathlib.Path) -> None:
    """Callers wait while the disk is away and go on when it is back; nothing is lost."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=LIMIT, on_queue_full="block", exit_timeout=1)
    done: List[Usage] = []

    def record_many() -> None:
        for _ in range(300):
            done.append(buffer.record("env", 1))

    threads = [threading.Thread(target=record_many, daemon=True) for _ in range(4)]
    with held_spool(tmp_spool):
        for thread in threads:
            thread.start()
        wait_until(lambda: buffer.stats().problem is not None, "the writer has tried")
        blocked = sum(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(20)
    buffer.close()

    assert blocked == 4
    assert len(done) == 4 * 300
    assert all(usage.pending for usage in done)
    assert {post.key for post in stored_posts(tmp_spool)} == {usage.id for usage in done}


def test_close_frees_those_who_wait_for_room(tmp_spool: pathlib.Path) -> None:
    """Each of them is either stored or refused; none waits for ever."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=1, on_queue_full="block", exit_timeout=0.2)
    accepted: List[str] = []
    refused: List[BaseException] = []

    def record_many() -> None:
        try:
            while True:
                accepted.append(buffer.record("env", 1).id)
        except Exception as error:  # noqa: BLE001 - looked at below
            refused.append(error)

    threads = [threading.Thread(target=record_many, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(accepted) > 20, "all are at work")
    result = buffer.close()
    for thread in threads:
        thread.join(10)

    assert [type(error).__name__ for error in refused] == ["BufferClosedError"] * 8
    assert {post.key for post in stored_posts(tmp_spool)} == set(accepted)
    assert result.pending <= len(accepted)


def test_a_full_disk_keeps_events_in_memory_until_there_is_room(tmp_spool: pathlib.Path) -> None:
    """Beyond max_disk_bytes events stay in memory; everything is delivered all the same, and the trouble ends."""
    deliver = ScriptedDelivery()
    problems: List[str] = []
    buffer = UsageBuffer(tmp_spool, max_disk_bytes=1024**2, on_error=problems.append, flush_interval=0.1)
    usages: List[Usage] = []

    def is_full() -> bool:
        usages.append(buffer.record("env", 1, {"noise": os.urandom(20_000).hex()}))
        return bool(problems)

    wait_until(is_full, "the limit is reached")
    stats = buffer.stats()
    buffer.attach(deliver, URL)
    flushed = buffer.flush(30)
    wait_until(lambda: buffer.stats().problem is None, "it is all right again", seconds=3)
    after = buffer.stats()
    buffer.close()

    assert "max_disk_bytes" in problems[0]
    assert stats.spool_bytes < 12 * 1024**2
    assert stats.in_memory > 0
    assert_adds_up(stats)
    assert flushed
    assert sorted(deliver.taken) == sorted(usage.id for usage in usages)
    assert_adds_up(after)


def test_a_disk_that_comes_back_takes_everything(tmp_spool: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when the spool begins to fail, one when it works again, and not one event less."""
    caplog.set_level(logging.INFO, "x402tools")
    problems: List[str] = []
    buffer = UsageBuffer(tmp_spool, on_error=problems.append, exit_timeout=1)

    with held_spool(tmp_spool):
        usages = [buffer.record("env", 1) for _ in range(2000)]
        wait_until(lambda: problems, "the failure is reported")
    wait_until(lambda: buffer.stats().in_memory == 0, "everything is stored")
    buffer.close()

    assert len(stored_posts(tmp_spool)) == len(usages) == 2000
    assert len(problems) == 1
    assert str(tmp_spool) in problems[0]
    lines = [record.levelno for record in caplog.records if record.name == "x402tools"]
    assert lines == [logging.ERROR, logging.INFO]


def test_a_log_handler_that_records_does_not_drown(tmp_spool: pathlib.Path) -> None:
    """A service that meters its own log lines: a drop makes a line, the line a record, and there it ends."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=1, exit_timeout=1)
    lines: List[str] = []

    class Metering(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            buffer.record("env", 1)

    handler = Metering()
    logger = logging.getLogger("x402tools")
    logger.addHandler(handler)
    try:
        with held_spool(tmp_spool):
            for _ in range(50):
                buffer.record("env", 1)
    finally:
        logger.removeHandler(handler)
    buffer.close()

    assert 1 <= len(lines) <= 5


def test_callers_that_drop_faster_than_drops_are_counted_hold_nobody_up() -> None:
    """The count ends although another event is dropped for each that it counts; that one is left to the next time."""
    intake = Intake(LIMIT, attention=False)

    class Units(int):
        """An amount of which another one is dropped while it is added up."""

        def __radd__(self, other: int) -> int:
            intake.drop(make_event(1, Units(1)))
            return other + int(self)

    for _ in range(3):
        intake.drop(make_event(1, Units(1)))

    first = run_with_deadline(intake.take_dropped)
    second = run_with_deadline(intake.take_dropped)

    assert first == second == (3, 3)


def test_counting_drops_takes_no_longer_than_dropping() -> None:
    """Or else, beside threads that do nothing but drop, each count is longer than the one before it, and the writer,
    which counts, stores nothing any more."""
    intake, event = Intake(limit=1, attention=False), make_event()
    ratios = []

    for _ in range(3):
        began = time.thread_time()
        for _ in range(100_000):
            intake.drop(event)
        dropped = time.thread_time()
        assert intake.take_dropped() == (100_000, 100_000)
        ratios.append((time.thread_time() - dropped) / (dropped - began))

    # A record that is dropped takes ten times as long as this bare drop, and eight threads have the interpreter eight
    # times as long as the one that counts.
    assert min(ratios) < 1


@pytest.mark.parametrize("policy", ["reject", "raise", "block"])
def test_a_closed_buffer_says_that_it_is_closed_also_when_it_is_full(tmp_spool: pathlib.Path, policy: str) -> None:
    """Who goes on recording is told, and does not drop for ever what nobody counts any more."""
    buffer = UsageBuffer(tmp_spool, max_queue_size=LIMIT, on_queue_full=policy, exit_timeout=0.1)

    with held_spool(tmp_spool):
        with contextlib.suppress(QueueFullError):
            for _ in range(LIMIT):
                buffer.record("env", 1)
        buffer.close()

        for _ in range(3):
            with pytest.raises(BufferClosedError):
                buffer.record("env", 1)
