"""The control surface, and the helper in x402tools.testing that speaks to it."""

from __future__ import annotations

import pathlib
import threading

import pytest

from tests.emulator.wire import ask, record
from x402tools.emulator import state
from x402tools.testing import BookedEvent, Emulator, EmulatorError, Fault, Ledger, Tally


def test_the_ledger_counts_what_was_booked_and_not_what_was_said(emulator: Emulator) -> None:
    """Refused records and requests that met a fault before booking are in `requests` only."""
    one, other = emulator.create_envelope(), emulator.create_envelope(limit=1)
    record(emulator, one, 5)
    record(emulator, one, 6, fault="html_ok")
    record(emulator, one, 7, fault="html")
    record(emulator, other, 2)
    record(emulator, "nowhere", 3)
    record(emulator, other, 1)

    ledger = emulator.ledger()

    assert ledger == Ledger(
        events=3,
        units=12,
        repeats_dropped=0,
        conflicts=0,
        requests=8,
        envelopes={one: Tally(2, 11), other: Tally(1, 1)},
    )


def test_events_tell_what_the_api_does_not(emulator: Emulator) -> None:
    """Each with its place in the order and its idempotency key."""
    envelope_id = emulator.create_envelope()
    ask(emulator, "POST", "/usage", {"envelopeId": envelope_id, "amount": 5, "metadata": {"a": 1}}, key="k")
    record(emulator, envelope_id, 6)

    events = emulator.events()

    assert [(e.sequence, e.amount, e.idempotency_key, e.metadata) for e in events] == [
        (1, 5, "k", {"a": 1}),
        (2, 6, None, None),
    ]
    assert isinstance(events[0], BookedEvent)
    assert emulator.events(after=1) == events[1:]
    assert [event["sequence"] for event in ask(emulator, "GET", "/__emulator__/events?limit=1").json] == [1]


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=1.5", "after=" + "9" * 30])
def test_a_question_for_events_that_is_none_is_400(emulator: Emulator, query: str) -> None:
    """The message names the parameter."""
    answer = ask(emulator, "GET", f"/__emulator__/events?{query}")

    assert answer.status == 400
    assert answer.json["error"].startswith(query.partition("=")[0])


def test_usage_is_listed_over_many_pages(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """More records than are read at a time come out once each, in order, from the API and from the ledger."""
    count = 2 * state.PAGE_ROWS + 1
    path = str(tmp_path / "books.db")
    books = state.Books(path)
    with books.transaction():
        one, other = books.add_envelope("n", count, "DAILY", None), books.add_envelope("n", count, "DAILY", None)
        for number in range(count):
            books.add_usage(other if number % 10 == 0 else one, 1, None, None)
    expected = [row.id for page in books.usage_pages() for row in page]
    books.close()

    with Emulator(db=path) as filled:
        listed = [usage["id"] for usage in ask(filled, "GET", "/usage").json]
        of_other = ask(filled, "GET", f"/usage?envelopeId={other.id}").json
        events = [event.id for event in filled.events()]

    assert len(expected) == count
    assert listed == expected == events
    assert [usage["id"] for usage in of_other] == expected[::10]


def test_reset_empties_the_books_and_leaves_the_faults(emulator: Emulator) -> None:
    """As at the start, but for the rules in force."""
    record(emulator, emulator.create_envelope(), key="k")
    key = ask(emulator, "POST", "/api-keys", {"name": "n"}).json["key"]
    emulator.set_faults(Fault.status(500, path="/usage/stats"))

    emulator.reset()

    assert emulator.ledger() == Ledger(0, 0, 0, 0, 0, {})
    assert ask(emulator, "GET", "/envelopes").json == []
    assert ask(emulator, "GET", "/envelopes", api_key=key).status == 401
    assert ask(emulator, "GET", "/usage/stats").status == 500
    assert record(emulator, emulator.create_envelope(), 2, key="k").status == 201


def test_health_is_open_to_all(emulator: Emulator) -> None:
    """It needs no key and tells the process."""
    assert ask(emulator, "GET", "/__emulator__/health", api_key="none").json == {"status": "ok", "pid": emulator.pid}


def test_emulators_do_not_know_each_other() -> None:
    """Two of them in one process have books and ports of their own."""
    with Emulator() as one, Emulator() as other:
        record(one, one.create_envelope())

        assert one.base_url != other.base_url
        assert (one.ledger().events, other.ledger().events) == (1, 0)


def test_it_ends_with_the_test_and_leaves_no_thread() -> None:
    """stop() may be called again, and what is asked afterwards is told that nothing runs."""
    emulator = Emulator().start()
    assert any(thread.name == "x402-emulator" for thread in threading.enumerate())

    emulator.stop()
    emulator.stop()

    assert not any(thread.name == "x402-emulator" for thread in threading.enumerate())
    with pytest.raises(EmulatorError, match="not running"):
        emulator.ledger()


@pytest.mark.parametrize("process", [False, True])
def test_it_says_why_it_does_not_start(process: bool, tmp_path: pathlib.Path) -> None:
    """A port that is taken, a file that is no database, a choice that is none."""
    (tmp_path / "notes.txt").write_text("no database, but long enough to be looked at as one" * 20, encoding="utf-8")
    with Emulator() as running:
        taken = int(running.base_url.rpartition(":")[2])

        with pytest.raises(EmulatorError, match="cannot listen"):
            Emulator(port=taken, process=process).start()
    with pytest.raises(EmulatorError, match="cannot open"):
        Emulator(db=tmp_path / "notes.txt", process=process).start()
    with pytest.raises(EmulatorError, match="no such choice"):
        Emulator(choices={"nothing": 1}, process=process).start()
    with pytest.raises(EmulatorError, match="share"):
        Emulator(faults=[Fault.status(500, share=5)], process=process).start()


def test_a_thread_cannot_be_killed(emulator: Emulator) -> None:
    """It says what to do instead, and runs on."""
    with pytest.raises(EmulatorError, match="process=True"):
        emulator.kill()

    assert emulator.ledger().events == 0
