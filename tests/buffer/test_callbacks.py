"""What the callbacks are told, and that none of them can disturb a request or a delivery."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, held_spool, wait_until
from tests.conftest import run_with_deadline
from x402tools import Usage, UsageBuffer
from x402tools.errors import APIConnectionError, AuthenticationError, EnvelopeNotFoundError


def test_what_the_callbacks_are_told(tmp_spool: pathlib.Path) -> None:
    """Each delivery and each dead letter once, as the usage that was recorded."""
    delivered: List[Usage] = []
    dead: List[Tuple[Usage, str]] = []
    deliver = ScriptedDelivery({"bad": [EnvelopeNotFoundError("no such envelope", 404)]})
    with UsageBuffer(
        tmp_spool, on_delivery=delivered.append, on_dead_letter=lambda usage, reason: dead.append((usage, reason))
    ) as buffer:
        buffer.attach(deliver, URL)
        good = buffer.record("env", 5, {"a": [1]})
        bad = buffer.record("env", 6, idempotency_key="bad")
        assert buffer.flush(10)

    assert [(usage.id, usage.amount, usage.metadata, usage.pending) for usage in delivered] == [
        (good.id, 5, {"a": [1]}, False)
    ]
    assert [(usage.id, usage.amount, reason) for usage, reason in dead] == [(bad.id, 6, "no such envelope")]
    assert abs((delivered[0].timestamp - good.timestamp).total_seconds()) < 0.002


@pytest.mark.parametrize(
    "error", [APIConnectionError("no whole answer (refused)"), AuthenticationError("the key was revoked", 401)]
)
def test_an_outage_is_told_once(tmp_spool: pathlib.Path, error: Exception) -> None:
    """One line for all the failures of one outage, naming the spool and the reason; none while it lasts."""
    problems: List[str] = []
    deliver = ScriptedDelivery(default=error)
    with UsageBuffer(tmp_spool, on_error=problems.append, flush_interval=0.05, exit_timeout=0.3) as buffer:
        buffer.attach(deliver, URL)
        for _ in range(30):
            buffer.record("env", 1)
        wait_until(lambda: problems and len(deliver.keys()) > 10, "the outage is noticed")
        problem = buffer.stats().problem

        deliver.default = None
        assert buffer.flush(20)
        after = buffer.stats().problem

    assert len(problems) == 1
    assert str(error) in problems[0]
    assert str(tmp_spool) in problems[0]
    assert str(error) in str(problem)
    assert after is None


def raise_an_error(*_: object) -> None:
    raise RuntimeError("of the service's own")


def leave(*_: object) -> None:
    raise SystemExit(3)


CALLBACKS: Dict[str, Callable[..., None]] = {"raises": raise_an_error, "leaves": leave}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_raises_disturbs_nobody(
    tmp_spool: pathlib.Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, everything is delivered, and the next call is made all the same."""
    calls: List[str] = []

    def note_and_raise(usage: Usage) -> None:
        calls.append(usage.id)
        CALLBACKS[name]()

    with UsageBuffer(tmp_spool, on_delivery=note_and_raise) as buffer:
        buffer.attach(ScriptedDelivery(), URL)
        ids = [buffer.record("env", 1).id for _ in range(5)]
        flushed = buffer.flush(10)

    assert flushed
    assert sorted(calls) == sorted(ids)
    assert "a callback of the usage buffer raised" in caplog.text


def test_a_callback_that_blocks_holds_up_nothing(tmp_spool: pathlib.Path) -> None:
    """Neither recording nor delivering nor the end, which waits no longer than it was told."""
    release = threading.Event()
    buffer = UsageBuffer(tmp_spool, on_delivery=lambda _: release.wait(30), exit_timeout=0.5)
    buffer.attach(ScriptedDelivery(), URL)
    for _ in range(20):
        buffer.record("env", 1)

    flushed = buffer.flush(10)
    before = time.monotonic()
    result = buffer.close()
    took = time.monotonic() - before
    release.set()

    assert flushed
    assert result
    assert took < 1.0


def actions(buffer: UsageBuffer) -> Dict[str, Callable[[], Any]]:
    return {
        "record": lambda: buffer.record("env", 1, idempotency_key="from the callback".replace(" ", "-")),
        "flush": lambda: buffer.flush(5),
        "stats": buffer.stats,
        "len": lambda: len(buffer),
        "dead_letters": buffer.dead_letters,
        "requeue": buffer.requeue,
        "close": buffer.close,
    }


@pytest.mark.parametrize("name", ["record", "flush", "stats", "len", "dead_letters", "requeue", "close"])
def test_a_callback_may_call_the_buffer(tmp_spool: pathlib.Path, name: str) -> None:
    """Whatever it calls, nothing waits for itself."""
    outcomes: List[str] = []

    def call_back(usage: Usage) -> None:
        if usage.id == "first":
            try:
                actions(buffer)[name]()
                outcomes.append("returned")
            except Exception as error:  # noqa: BLE001 - looked at below
                outcomes.append(repr(error))

    buffer = UsageBuffer(tmp_spool, on_delivery=call_back, durability="commit", flush_interval=0.05)
    buffer.attach(ScriptedDelivery(), URL)
    buffer.record("env", 1, idempotency_key="first")

    wait_until(lambda: outcomes, f"{name} comes back from within a callback")
    run_with_deadline(buffer.close, seconds=10)

    assert outcomes == ["returned"]


def test_a_drop_that_is_reported_may_record_again(tmp_spool: pathlib.Path) -> None:
    """`on_drop` that records the loss does so from its own thread and deadlocks nobody."""
    drops: List[str] = []

    def on_drop(usage: Usage) -> None:
        drops.append(usage.id)
        if len(drops) < 5:
            buffer.record("losses", 1)

    buffer = UsageBuffer(tmp_spool, max_queue_size=1, on_drop=on_drop, exit_timeout=1)
    with held_spool(tmp_spool):
        for _ in range(20):
            buffer.record("env", 1)
    # The fifth call comes after the four that record; once the buffer is closed, recording raises.
    wait_until(lambda: len(drops) >= 5, "the drops are reported")
    run_with_deadline(buffer.close, seconds=10)

    stats = buffer.stats()
    assert stats.dropped.events == len(drops)
    assert stats.recorded.events == 20 + 4


def test_a_callback_slower_than_its_events_costs_no_memory(tmp_spool: pathlib.Path) -> None:
    """Calls beyond ten thousand are left out, not queued; deliveries go on."""
    release = threading.Event()
    buffer = UsageBuffer(tmp_spool, on_delivery=lambda _: release.wait(30), exit_timeout=0.5)
    buffer.attach(ScriptedDelivery(), URL)
    for _ in range(11_000):
        buffer.record("env", 1)

    flushed = buffer.flush(30)
    assert buffer._parts is not None
    left_out = buffer._parts.reports.calls.left_out
    release.set()
    buffer.close()

    assert flushed
    assert left_out >= 900
