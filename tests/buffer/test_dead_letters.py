"""Dead letters: what the service refused for good is kept with the reason, and comes back when somebody asks."""

from __future__ import annotations

import pathlib
from typing import Tuple

import pytest

from tests.buffer.helpers import URL, ScriptedDelivery, assert_adds_up
from x402tools import UsageBuffer, X402Client
from x402tools.errors import APIError, EnvelopeNotFoundError, UsageLimitExceededError, ValidationError
from x402tools.testing import Emulator


@pytest.mark.parametrize(
    "error",
    [
        ValidationError("amount is odd", 400),
        UsageLimitExceededError("limit exceeded", 402),
        EnvelopeNotFoundError("no such envelope", 404),
        APIError("key used with another body", 409),
        APIError("too large", 413),
        ValidationError("unprocessable", 422),
    ],
)
def test_a_refusal_is_kept_with_its_reason(tmp_spool: pathlib.Path, error: APIError) -> None:
    """One attempt, one dead letter; the others are delivered, and the ledger adds up."""
    deliver = ScriptedDelivery({"bad": [error]})
    with UsageBuffer(tmp_spool) as buffer:
        buffer.attach(deliver, URL)
        usages = [buffer.record("env", 1), buffer.record("env", 2, {"a": 1}, idempotency_key="bad")]
        usages.append(buffer.record("env", 4))
        assert buffer.flush(10)
        (letter,) = buffer.dead_letters()
        stats = buffer.stats()

    assert (letter.key, letter.envelope_id, letter.amount, letter.metadata) == ("bad", "env", 2, {"a": 1})
    assert (letter.reason, letter.status_code, letter.attempts) == (str(error), error.status_code, 1)
    assert 0 <= letter.died_at - letter.recorded_at < 10
    assert (stats.delivered, stats.dead) == ((2, 5), (1, 2))
    assert_adds_up(stats)


@pytest.mark.parametrize("how", ["all", "letter", "id"])
def test_requeued_it_is_delivered_under_its_old_key(emulator: Emulator, tmp_spool: pathlib.Path, how: str) -> None:
    """The envelope that was forgotten is made, and what was refused for it is booked."""
    buffer = UsageBuffer(tmp_spool)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        envelope = emulator.create_envelope(limit=3)
        key = client.record_usage(envelope, 5, {"a": 1}).id
        assert client.flush(10)
        (letter,) = buffer.dead_letters()
        before = buffer.stats()

        client.update_envelope(envelope, limit=1000)
        count = {
            "all": lambda: buffer.requeue(),
            "letter": lambda: buffer.requeue([letter]),
            "id": lambda: buffer.requeue([letter.id]),
        }[how]()
        assert client.flush(10)
        after = buffer.stats()

    assert letter.status_code == 402
    assert count == 1
    assert [(event.idempotency_key, event.amount, event.metadata) for event in emulator.events()] == [
        (key, 5, {"a": 1})
    ]
    assert (before.dead, before.delivered) == ((1, 5), (0, 0))
    assert (after.dead, after.delivered) == ((0, 0), (1, 5))


def outcome(buffer: UsageBuffer) -> Tuple[int, int]:
    stats = buffer.stats()
    assert_adds_up(stats)
    return stats.pending.events, stats.dead.events


def test_requeue_of_nothing_is_nothing(tmp_spool: pathlib.Path) -> None:
    """None there, unknown ids, the same one twice."""
    deliver = ScriptedDelivery(default=APIError("gone", 410))
    with UsageBuffer(tmp_spool) as buffer:
        empty = buffer.requeue()
        buffer.attach(deliver, URL)
        buffer.record("env", 1)
        assert buffer.flush(10)
        (letter,) = buffer.dead_letters()

        unknown = buffer.requeue([letter.id + 1, -1])
        deliver.default = None
        twice = buffer.requeue([letter, letter.id])
        again = buffer.requeue([letter])
        assert buffer.flush(10)

        assert (empty, unknown, twice, again) == (0, 0, 1, 0)
        assert outcome(buffer) == (0, 0)


def test_dead_letters_survive_and_page(tmp_spool: pathlib.Path) -> None:
    """After a restart they are there, a page at a time, and can be requeued all at once."""
    with UsageBuffer(tmp_spool) as buffer:
        buffer.attach(ScriptedDelivery(default=APIError("gone", 410)), URL)
        keys = [buffer.record("env", 1).id for _ in range(250)]
        assert buffer.flush(20)
    deliver = ScriptedDelivery()

    with UsageBuffer(tmp_spool) as again:
        again.attach(deliver, URL)
        pages = [again.dead_letters()]
        while pages[-1]:
            pages.append(again.dead_letters(after=pages[-1][-1].id))
        count = again.requeue()
        assert again.flush(20)
        assert outcome(again) == (0, 0)

    assert [len(page) for page in pages] == [100, 100, 50, 0]
    assert sorted(letter.key for page in pages for letter in page) == sorted(keys)
    assert count == 250
    assert sorted(deliver.keys()) == sorted(keys)


def test_a_poisonous_post_dies_and_the_others_arrive(tmp_spool: pathlib.Path) -> None:
    """Through the public door: 500 for one, max_attempts of them, while the traffic goes on."""
    deliver = ScriptedDelivery({"poison": [APIError("cannot handle this one", 500)]})
    with UsageBuffer(tmp_spool, max_attempts=3, flush_interval=0.01) as buffer:
        buffer.attach(deliver, URL)
        buffer.record("env", 1, idempotency_key="poison")
        for _ in range(2000):
            if buffer.dead_letters():
                break
            buffer.record("env", 1)
            assert buffer.flush(0.05) or True
        (letter,) = buffer.dead_letters()
        assert buffer.flush(10)

    assert (letter.key, letter.status_code) == ("poison", 500)
    assert letter.attempts >= 3
    assert deliver.faults == []
