"""What `Idempotency-Key` does, and what happens where it is not honoured."""

from __future__ import annotations

import concurrent.futures

import pytest

from tests.emulator.wire import ask, record
from x402tools.testing import Emulator


def test_a_repeat_gets_the_first_answer_and_books_nothing(emulator: Emulator) -> None:
    """Same key, same body: the same bytes come back, and the ledger counts the repeat."""
    envelope_id = emulator.create_envelope()
    first = record(emulator, envelope_id, 5, key="k")

    second = record(emulator, envelope_id, 5, key="k")

    ledger = emulator.ledger()
    assert (second.status, second.body) == (first.status, first.body)
    assert (ledger.events, ledger.units, ledger.repeats_dropped, ledger.conflicts) == (1, 5, 1, 0)


def test_the_order_of_the_fields_does_not_make_another_body(emulator: Emulator) -> None:
    """A client that writes its JSON anew for a repeat is still repeating."""
    envelope_id = emulator.create_envelope()
    first = ask(emulator, "POST", "/usage", {"envelopeId": envelope_id, "amount": 5}, key="k")

    second = ask(emulator, "POST", "/usage", {"amount": 5, "envelopeId": envelope_id}, key="k")

    assert second.body == first.body


def test_the_same_key_with_another_body_is_409(emulator: Emulator) -> None:
    """It is refused and counted as a conflict; nothing more is booked."""
    envelope_id = emulator.create_envelope()
    record(emulator, envelope_id, 5, key="k")

    answer = record(emulator, envelope_id, 6, key="k")

    ledger = emulator.ledger()
    assert answer.status == 409
    assert (ledger.events, ledger.units, ledger.conflicts) == (1, 5, 1)


def test_only_what_was_booked_is_remembered(emulator: Emulator) -> None:
    """After an error the same key may be tried again, and then books."""
    envelope_id = emulator.create_envelope(limit=5)
    refused = record(emulator, envelope_id, 6, key="k")
    ask(emulator, "PUT", f"/envelopes/{envelope_id}", {"limit": 10})

    accepted = record(emulator, envelope_id, 6, key="k")

    assert (refused.status, accepted.status) == (402, 201)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/envelopes", {"name": "n", "limit": 1, "period": "DAILY"}), ("/api-keys", {"name": "n"})],
)
def test_it_holds_for_every_post(emulator: Emulator, path: str, body: object) -> None:
    """Envelopes and keys are made once, too."""
    first = ask(emulator, "POST", path, body, key="k")

    second = ask(emulator, "POST", path, body, key="k")

    assert second.body == first.body
    assert sum(item["id"] == first.json["id"] for item in ask(emulator, "GET", path).json) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\tinside", "ü"])
def test_a_key_that_is_none_is_400(emulator: Emulator, key: str) -> None:
    """1 to 255 printable characters of ASCII; the message names the header."""
    envelope_id = emulator.create_envelope()

    answer = record(emulator, envelope_id, key=key)

    assert answer.status == 400
    assert answer.json["error"].startswith("Idempotency-Key")


def test_a_key_of_255_characters_is_one(emulator: Emulator) -> None:
    """The longest key that is allowed."""
    assert record(emulator, emulator.create_envelope(), key="k" * 255).status == 201


def test_repeats_that_arrive_together_are_booked_once(emulator: Emulator) -> None:
    """Of many requests with one key at one time, one books and all get its answer."""
    envelope_id = emulator.create_envelope()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: record(emulator, envelope_id, 1, key="k").body, range(32)))

    assert len(set(answers)) == 1
    assert (emulator.ledger().events, emulator.ledger().repeats_dropped) == (1, 31)


def test_switched_off_every_repeat_is_booked() -> None:
    """A server that does nothing with the header books twice, whatever the header holds."""
    with Emulator(idempotency=False) as emulator:
        envelope_id = emulator.create_envelope()

        answers = [record(emulator, envelope_id, 5, key=key) for key in ("k", "k", "k" * 256)]

        assert [answer.status for answer in answers] == [201, 201, 201]
        assert (emulator.ledger().units, emulator.ledger().repeats_dropped) == (15, 0)
