"""POSTs of unknown outcome in the flusher's hands, turn by turn: noted before they are sent, resent or held after."""

from __future__ import annotations

import time
from typing import Iterator, List, Optional

import pytest

from tests.buffer.bench import Bench, MakeBench, benches
from tests.buffer.helpers import FakeStore, wait_until
from x402tools._flusher import Flusher
from x402tools._store import Tally
from x402tools.errors import APIConnectionError, APIError, APITimeoutError, SpoolError, X402Error

HOUR, DAY = 3600.0, 86400.0
HOLD = 0.0  # as hold_after: on_unknown="hold"


def reset() -> APIConnectionError:
    return APIConnectionError("reset after it was sent")


def refused() -> APIConnectionError:
    return APIConnectionError("connection refused", maybe_processed=False)


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


def started_anew(bench: Bench, hold_after: Optional[float]) -> FakeStore:
    """Another process takes the bench's shelf over, where the first one was killed with its answers unread."""
    senders = bench.flusher._senders
    wait_until(lambda: senders.inbox.qsize() >= senders.busy, "what is under way ends")
    bench.shelf.holder = None
    bench.store = FakeStore(bench.shelf)
    bench.flusher._senders.stop()
    bench.flusher = Flusher(
        bench.store,
        bench.deliver,
        bench.observer,
        concurrency=4,
        max_attempts=5,
        flush_at=100,
        flush_interval=1.0,
        hold_after=hold_after,
        clock=bench.clock,
    )
    return bench.store


@pytest.mark.parametrize(
    "error",
    [reset(), APITimeoutError("no answer in time"), APIError("bad gateway", 502), APIError("gateway time-out", 504)],
    ids=str,
)
def test_an_unknown_outcome_is_held_at_once(make_bench: MakeBench, error: X402Error) -> None:
    """Sent once, and never again; the others are delivered, and it is told why this one is not."""
    bench = make_bench({"rec-1-1": [error]}, hold_after=HOLD)
    bench.record(1, 2, 4)

    bench.run_until(bench.is_empty)

    assert sorted(bench.deliver.keys()) == ["rec-1-0", "rec-1-1", "rec-1-2"]
    (held,) = bench.observer.was_held
    assert (held.post.key, held.reason) == ("rec-1-1", str(error))
    counts = bench.writer.counts()
    assert (counts.delivered, counts.held, counts.pending) == (Tally(2, 5), Tally(1, 2), Tally(1, 2))
    assert (bench.flusher.retries, bench.flusher.unknown_resends) == (0, 0)


@pytest.mark.parametrize(
    "error", [refused(), APIError("slow down", 429), APIError("broken", 500), APIError("away", 503)], ids=str
)
def test_what_certainly_was_not_booked_is_sent_again(make_bench: MakeBench, error: X402Error) -> None:
    """Also where unknown outcomes are held; and a crash in between would not have it held either."""
    bench = make_bench(default=error, hold_after=HOLD)
    bench.record(1)
    bench.run_until(lambda: bench.flusher.retries >= 1)
    bench.run_until(lambda: not bench.shelf.sending)
    is_pending = not bench.is_empty()

    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert is_pending
    assert set(bench.deliver.keys()) == set(bench.deliver.taken) == {"rec-1-0"}
    assert len(bench.deliver.keys()) == bench.flusher.retries + 1
    assert bench.observer.was_held == []


def test_by_default_it_is_sent_again_and_counted(make_bench: MakeBench) -> None:
    """Each repetition of what may have been booked counts, that of a refused connection does not; nothing is noted."""
    bench = make_bench({"rec-1-0": [reset(), refused(), reset(), APIError("bad gateway", 502), None]})
    bench.record(1, 2)

    bench.run_until(bench.is_empty)

    assert (bench.flusher.retries, bench.flusher.unknown_resends) == (4, 3)
    assert "note_sending" not in bench.store.calls
    assert bench.writer.counts().delivered == Tally(2, 3)


def test_each_post_is_noted_before_it_is_sent(make_bench: MakeBench) -> None:
    """With a commit for a group of them rather than for each; in the end no note is left."""
    bench = make_bench(hold_after=HOLD, concurrency=4)
    unnoted: List[str] = []

    def look() -> None:
        keys = {post.key for place in list(bench.shelf.sending) for post in bench.shelf.sealed[place.sequence] if post}
        unnoted.extend(key for key in bench.deliver.keys()[-1:] if key not in keys)

    bench.deliver.default = look
    bench.record(*[1] * 100)

    bench.run_until(bench.is_empty)

    assert unnoted == []
    assert bench.store.calls.count("note_sending") == 25
    assert bench.shelf.sending == {}
    assert len(bench.deliver.keys()) == 100


def test_what_was_under_way_at_a_crash_is_held(make_bench: MakeBench) -> None:
    """And only that, and what was noted with it: the rest is delivered by the next process."""
    bench = make_bench(default=reset(), hold_after=HOLD, concurrency=2)
    bench.record(*[1] * 10)
    bench.flusher.step()
    under_way = set(bench.deliver.keys())

    store = started_anew(bench, HOLD)
    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    held = [one.post.key for one in store.held(0, 100)]
    assert held == ["rec-1-0", "rec-1-1"]
    assert under_way <= set(held)
    assert all("earlier process" in one.reason for one in bench.observer.was_held)
    assert sorted(bench.deliver.taken) == sorted(f"rec-1-{at}" for at in range(2, 10))


def test_a_process_that_resends_does_not_mind_the_notes(make_bench: MakeBench) -> None:
    """Set up anew with on_unknown="resend", it sends what an earlier one had noted, under the old key."""
    bench = make_bench(default=reset(), hold_after=HOLD, concurrency=2)
    bench.record(1, 2, 4)
    bench.flusher.step()

    store = started_anew(bench, None)
    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert store.held(0, 10) == []
    assert bench.writer.counts().delivered == Tally(3, 7)


def test_an_orderly_end_leaves_no_note_about_what_was_not_sent(make_bench: MakeBench) -> None:
    """What was noted with a group and not sent before the end is sent by the next process, and not held."""
    bench = make_bench(hold_after=HOLD, concurrency=4)
    bench.deliver.default = lambda: bench.flusher.stop(bench.clock())  # the end comes while the first is under way
    bench.flusher._pace.start_over(bench.clock())  # one at a time
    bench.record(1, 1, 1, 1, 1, 1)

    bench.run_until(lambda: bench.deliver.taken)
    bench.turn()

    assert bench.deliver.taken == ["rec-1-0"]
    assert bench.shelf.sending == {}


def test_a_post_that_cannot_be_noted_is_not_sent(make_bench: MakeBench) -> None:
    """It waits, and is sent when the store takes notes again."""
    bench = make_bench(hold_after=HOLD)
    bench.record(1, 2)
    note, failures = bench.store.note_sending, [SpoolError("full"), SpoolError("full")]

    def fail_first(*places: object) -> object:
        if failures:
            raise failures.pop()
        return note(*places)  # type: ignore[arg-type]  # handed on as it came

    bench.store.note_sending = fail_first  # type: ignore[method-assign]  # a seam of the fake
    bench.turn()
    sent_meanwhile = bench.deliver.keys()
    bench.run_until(bench.is_empty)

    assert sent_meanwhile == []
    assert sorted(bench.deliver.taken) == ["rec-1-0", "rec-1-1"]  # two senders: either may be the first to be answered


def test_within_the_window_it_is_sent_again_and_after_it_held(make_bench: MakeBench) -> None:
    """The window begins with the first attempt of unknown outcome, whatever comes after it."""
    bench = make_bench({"rec-1-0": [refused(), reset(), *([refused(), reset()] * 10_000)]}, hold_after=HOUR)
    bench.record(1, 2)
    bench.run_until(lambda: bench.flusher.retries >= 4)
    bench.run_for(HOUR - 100)
    before = len(bench.observer.was_held)

    bench.run_for(200)

    assert before == 0
    (held,) = bench.observer.was_held
    assert (held.post.key, bench.is_empty()) == ("rec-1-0", True)
    assert 10 < bench.flusher.unknown_resends < bench.flusher.retries


@pytest.mark.parametrize(("age", "is_held"), [(DAY - 1000, False), (DAY + 1000, True)])
def test_the_window_goes_on_after_a_restart(make_bench: MakeBench, age: float, is_held: bool) -> None:
    """The next process knows since when the outcome is unknown."""
    bench = make_bench(default=reset(), hold_after=DAY)
    bench.record(1)
    bench.run_until(lambda: bench.flusher.retries >= 1)
    (place,) = bench.shelf.sending

    store = started_anew(bench, DAY)
    bench.shelf.sending[place] = time.time() - age
    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert [one.post.key for one in store.held(0, 10)] == (["rec-1-0"] if is_held else [])
    assert bench.deliver.taken == ([] if is_held else ["rec-1-0"])


def test_without_a_crash_the_wall_clock_does_not_matter(make_bench: MakeBench) -> None:
    """The note may say what it will: the process that made the attempt goes by a clock that never jumps."""
    bench = make_bench({"rec-1-0": [reset(), None]}, hold_after=DAY)
    bench.record(1)
    bench.run_until(lambda: bench.flusher.retries >= 1)
    (place,) = bench.shelf.sending

    bench.shelf.sending[place] = 0.0
    bench.run_until(bench.is_empty)

    assert bench.deliver.taken == ["rec-1-0"]
