"""Deliveries around the moment at which a period starts anew, and the time of recording on request."""

from __future__ import annotations

import math
import pathlib
import queue
import time
from datetime import datetime, timezone
from typing import Any, Dict

import pytest

from tests.buffer.helpers import make_event
from tests.emulator.wire import ask
from x402tools import UsageBuffer, ValidationError, X402Client
from x402tools._batch import Post, encode
from x402tools._parts import Parts
from x402tools._resets import INTERVAL_NEAR_RESET, LEAD, Resets
from x402tools._spool import Spool
from x402tools._store import Tally
from x402tools._timings import Stopwatch
from x402tools.models import Envelope, parse_time
from x402tools.testing import Emulator

MIDNIGHT = datetime(2024, 3, 1, tzinfo=timezone.utc).timestamp()
MADE = datetime(2024, 1, 1, tzinfo=timezone.utc)
MONTHLY = Envelope("env_1", "One", 100, "MONTHLY", "org", MADE, MADE, 1)
YEARLY = Envelope("env_2", "Two", 100, "YEARLY", "org", MADE, MADE, 1)
PATIENCE = 20.0


def post(envelope_id: str, recorded_at: float) -> Post:
    return Post("key", envelope_id, 5, None, recorded_at, 2)


def test_what_is_delivered_after_a_reset_is_late() -> None:
    """If it was recorded before it, and the envelope's period is known."""
    now = [MIDNIGHT - 10]
    resets = Resets(clock=lambda: now[0])
    resets.learn(MONTHLY)
    resets.learn(YEARLY)

    resets.delivered([post("env_1", MIDNIGHT - 20)])
    in_time = resets.late
    now[0] = MIDNIGHT + 1
    resets.delivered([post("env_1", MIDNIGHT - 20), post("env_1", MIDNIGHT), post("env_2", MIDNIGHT - 20)])
    resets.delivered([post("env_3", MIDNIGHT - 20)])

    assert in_time == Tally(0, 0)
    assert resets.late == Tally(2, 5)


def test_waiting_ends_before_the_next_reset() -> None:
    """Two seconds ahead of it, and near it hardly anything waits; without knowledge nothing is hurried."""
    now = [MIDNIGHT - 100]
    resets = Resets(clock=lambda: now[0])
    unknown = resets.seconds_to_flush()
    resets.learn(YEARLY)
    resets.learn(MONTHLY)

    far = resets.seconds_to_flush()
    now[0] = MIDNIGHT - LEAD / 2
    near = resets.seconds_to_flush()
    now[0] = MIDNIGHT
    after = resets.seconds_to_flush()

    assert unknown == math.inf
    assert far == 100 - LEAD
    assert near == INTERVAL_NEAR_RESET
    assert after > 30 * 86_400


def test_what_is_stored_is_delivered_ahead_of_a_reset(tmp_spool: pathlib.Path) -> None:
    """Although the buffer was told to wait for an hour."""
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    resets = Resets(clock=lambda: MIDNIGHT - 1)  # a second before a reset, for ever
    resets.learn(MONTHLY)
    settings = UsageBuffer(tmp_spool, flush_interval=3600, flush_at=10**9, deliver=False)
    settings.close()
    parts = Parts(settings._settings._replace(delivers=True), Stopwatch(), resets)
    parts.deliver_to(lambda body, _: sent.put(body))

    parts.intake.put(make_event())
    parts.intake.wake()

    assert b"env_1" in sent.get(timeout=PATIENCE)
    parts.close(time.monotonic() + PATIENCE)


def test_statistics_count_what_was_late(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Recorded yesterday, delivered today."""
    envelope_id = emulator.create_envelope(period="DAILY")
    with X402Client(emulator.api_key, emulator.base_url) as client:
        envelope = client.get_envelope(envelope_id)
    spool = Spool(str(tmp_spool), sync="FULL", max_bytes=2**30)
    yesterday = (1, envelope_id, 7, None, time.time() - 86_400)
    spool.append([encode("a-process-of-yesterday", 1, [yesterday])], Tally())
    spool.close()
    buffer = UsageBuffer(tmp_spool)
    buffer.watch(envelope)

    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        assert client.flush(PATIENCE)
        late = buffer.stats().late

    assert late == Tally(1, 7)
    assert emulator.ledger().units == 7


def metadata_of(emulator: Emulator) -> Dict[str, Any]:
    """The metadata of the only record."""
    (event,) = emulator.events()
    return event.metadata or {}


@pytest.mark.parametrize("metadata", [None, {"a": 1}, {"a": [1, {"ü": None}]}])
def test_the_time_of_recording_goes_into_the_metadata(
    emulator: Emulator, tmp_spool: pathlib.Path, metadata: Any
) -> None:
    """On request, and whatever else is in there."""
    envelope_id = emulator.create_envelope()
    with X402Client(
        emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool, event_time="metadata")
    ) as client:
        usage = client.record_usage(envelope_id, 1, metadata)
        assert client.flush(PATIENCE)

    booked = metadata_of(emulator)
    moment = parse_time(booked.pop("recorded_at"))
    assert abs((moment - usage.timestamp).total_seconds()) < 0.002
    assert booked == (metadata or {})


def test_a_time_of_the_callers_own_stays(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """A key of that name is theirs."""
    envelope_id = emulator.create_envelope()
    with X402Client(
        emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool, event_time="metadata")
    ) as client:
        client.record_usage(envelope_id, 1, {"recorded_at": "noon"})
        assert client.flush(PATIENCE)

    assert metadata_of(emulator) == {"recorded_at": "noon"}


def test_the_time_of_recording_goes_into_the_body() -> None:
    """As a field beside the others, the same for every attempt; by default there is none."""
    plain = Post("key", "env_1", 5, {"a": 1}, 1_700_000_000.25)

    assert plain.body() == b'{"envelopeId":"env_1","amount":5,"metadata":{"a":1}}'
    assert plain.body_with_time() == (
        b'{"envelopeId":"env_1","amount":5,"metadata":{"a":1},"timestamp":"2023-11-14T22:13:20.250Z"}'
    )


@pytest.mark.parametrize(("event_time", "has_time"), [("omit", False), ("body", True)])
def test_the_setting_reaches_the_wire(tmp_spool: pathlib.Path, event_time: str, has_time: bool) -> None:
    """What is handed to whoever sends it."""
    sent = []
    with UsageBuffer(tmp_spool, event_time=event_time) as buffer:
        buffer.attach(lambda body, _: sent.append(body), "http://127.0.0.1:1")
        buffer.record("env_1", 1)
        assert buffer.flush(PATIENCE)

    assert [b'"timestamp":"20' in body for body in sent] == [has_time]


def test_a_time_in_the_body_is_booked_by_the_emulator(emulator: Emulator) -> None:
    """It ignores the field, as it does every one that it does not know."""
    envelope_id = emulator.create_envelope()

    answer = ask(
        emulator, "POST", "/usage", {"envelopeId": envelope_id, "amount": 1, "timestamp": "2020-01-01T00:00:00.000Z"}
    )

    assert answer.status == 201
    assert parse_time(answer.json["timestamp"]).year > 2020


def test_event_time_is_one_of_three(tmp_spool: pathlib.Path) -> None:
    """The message names them."""
    with pytest.raises(ValidationError, match="omit, metadata, body"):
        UsageBuffer(tmp_spool, event_time="header")
