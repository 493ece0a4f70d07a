"""The flusher, turn by turn: a fake store, a scripted service, and a clock that goes on only when nothing happens.

The tests that need the thread itself, for stopping and for standing by, are at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Iterator, List

import pytest

from tests.buffer.bench import Bench, MakeBench, benches
from tests.buffer.helpers import make_batch, wait_until
from tests.conftest import run_with_deadline
from x402tools._store import Tally
from x402tools.errors import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    EnvelopeNotFoundError,
    RateLimitError,
    SpoolError,
)

HOUR = 3600.0


def server_error() -> APIError:
    return APIError("the service is down", 500)


def please_wait(seconds: float) -> RateLimitError:
    return RateLimitError("slow down", 429, retry_after=seconds)


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


def test_posts_are_sent_in_the_order_in_which_they_were_stored(make_bench: MakeBench) -> None:
    """One at a time, each once, each with the body that was stored."""
    bench = make_bench(concurrency=1)
    bench.record(1, 2, 3)
    bench.record(4)
    bench.record(5, 6)

    bench.run_until(bench.is_empty)

    assert [body["amount"] for body in bench.deliver.bodies()] == [1, 2, 3, 4, 5, 6]
    assert bench.deliver.keys() == ["rec-1-0", "rec-1-1", "rec-1-2", "rec-2-0", "rec-3-0", "rec-3-1"]
    assert bench.writer.counts().delivered == Tally(6, 21)
    assert sorted(post.key for post in bench.observer.delivered) == sorted(bench.deliver.keys())


def test_so_many_at_once_and_no_more(make_bench: MakeBench) -> None:
    """Concurrency is used in full and never passed."""
    meeting = threading.Barrier(3, timeout=10)
    bench = make_bench(default=lambda: meeting.wait() and None, concurrency=3)
    bench.record(*[1] * 30)

    bench.run_until(bench.is_empty)

    assert bench.deliver.most_at_once == 3
    assert len(bench.deliver.keys()) == 30


def test_more_than_is_read_ahead_is_delivered_all_the_same(make_bench: MakeBench) -> None:
    """Thousands of POSTs, in batches of every size, each once."""
    bench = make_bench(concurrency=8)
    for size in (500, 1, 499, 2, 37, 500, 500, 500, 461):
        bench.record(*[1] * size)

    bench.run_until(bench.is_empty)

    assert len(bench.deliver.keys()) == len(set(bench.deliver.keys())) == 3000


def test_a_failure_is_tried_again_after_a_growing_pause(make_bench: MakeBench) -> None:
    """The same bytes under the same key; the n-th pause is at most a tenth of a second times 2**(n - 1)."""
    moments: List[float] = []
    bench = make_bench()

    def fail() -> None:
        moments.append(bench.clock())
        if len(moments) < 7:
            raise APIConnectionError("reset")

    bench.deliver.default = fail
    bench.record(5)

    bench.run_until(bench.is_empty)

    pauses = [later - earlier for earlier, later in zip(moments, moments[1:])]
    assert len(moments) == 7
    assert all(0.01 <= pause <= 0.1 * 2**at + 0.05 for at, pause in enumerate(pauses)), pauses
    assert bench.flusher.retries == 6
    assert len({body for _, body in bench.deliver.attempts}) == 1


def test_a_poisonous_post_is_set_aside_and_holds_nobody_up(make_bench: MakeBench) -> None:
    """One that gets 500 while others pass becomes a dead letter after max_attempts; each other is sent once."""
    bench = make_bench({"rec-1-0": [server_error()]}, max_attempts=5, concurrency=2)
    bench.turn_takes = 0.01
    bench.record(1, 2)

    def go_on() -> bool:
        if bench.is_empty() or [*bench.shelf.sealed] == [1]:
            bench.record(2, 2)  # the traffic goes on
        return bool(bench.shelf.dead)

    bench.run_until(go_on)
    bench.run_until(bench.is_empty)

    (burial,) = bench.store.buried
    assert (burial.post.key, burial.status_code, burial.reason) == ("rec-1-0", 500, "the service is down")
    assert 5 <= burial.attempts <= 20
    assert bench.deliver.keys().count("rec-1-0") == burial.attempts
    sent = bench.deliver.keys()
    others = [key for key in sent if key != "rec-1-0"]
    assert len(others) == len(set(others))
    assert bench.clock() - 1000 < 60


def test_the_others_are_delivered_before_a_poisonous_one_dies(make_bench: MakeBench) -> None:
    """What stands behind it does not wait for its attempts."""
    bench = make_bench({"rec-1-0": [server_error()]}, concurrency=1, max_attempts=1000)
    bench.record(*[1] * 50)

    bench.run_until(lambda: len(bench.deliver.taken) == 49)

    assert bench.clock() - 1000 < 0.5


def test_several_poisonous_posts_do_not_stop_the_others(make_bench: MakeBench) -> None:
    """As many as may be under way at once, at the head of the queue."""
    poison = {f"rec-1-{at}": [server_error()] for at in range(4)}
    bench = make_bench(poison, concurrency=4, max_attempts=3)
    bench.turn_takes = 0.01
    bench.record(*[1] * 8)

    def go_on() -> bool:
        bench.record(1)
        return len(bench.shelf.dead) == 4

    bench.run_until(go_on, turns=2000)
    bench.run_until(bench.is_empty)

    assert {burial.post.key for burial in bench.store.buried} == set(poison)


@pytest.mark.parametrize("count", [1, 40])
def test_an_outage_kills_nothing_however_long(make_bench: MakeBench, count: int) -> None:
    """Half a day of 500 for everybody: every POST is kept, and delivered soon after the service is back."""
    bench = make_bench(default=server_error(), max_attempts=2)
    bench.record(*[1] * count)

    bench.run_for(12 * HOUR)
    attempts = len(bench.deliver.keys())
    bench.deliver.default = None
    back = bench.clock()
    bench.run_until(bench.is_empty)

    assert bench.shelf.dead == {}
    assert bench.clock() - back < 120
    assert attempts < 8_000
    assert bench.observer.gate[-1] is None


def test_an_outage_is_one_change_of_state(make_bench: MakeBench) -> None:
    """However many POSTs fail, those who watch hear of it once, and once of its end."""
    bench = make_bench(default=APIConnectionError("refused"))
    bench.record(*[1] * 100)
    bench.run_for(HOUR)

    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert bench.observer.gate == ["refused", None]


def test_retry_after_closes_the_gate_for_all(make_bench: MakeBench) -> None:
    """One 429 with Retry-After: nobody is sent until that time has passed."""
    moments: List[float] = []
    bench = make_bench(concurrency=1)

    def answer() -> None:
        moments.append(bench.clock())
        if len(moments) == 1:
            raise please_wait(7)

    bench.deliver.default = answer
    bench.record(*[1] * 10)

    bench.run_until(bench.is_empty)

    assert len(moments) == 11
    assert moments[1] - moments[0] >= 7
    assert moments[-1] - moments[0] < 9


def test_a_late_success_does_not_open_what_retry_after_closed(make_bench: MakeBench) -> None:
    """A POST that was under way when the service asked for a pause may be taken; the pause holds all the same."""
    moments: List[float] = []
    refused = threading.Event()
    bench = make_bench(concurrency=2)

    def refuse() -> None:
        refused.set()
        raise please_wait(7)

    def take_late() -> None:
        assert refused.wait(10)
        wait_until(lambda: bench.flusher.gate_reason is not None, "the gate is closed")

    bench.deliver.script = {"rec-1-0": [refuse, None], "rec-1-1": [take_late]}
    bench.deliver.default = lambda: moments.append(bench.clock())
    bench.record(*[1] * 6)
    start = bench.clock()

    bench.run_until(bench.is_empty)

    assert len(moments) == 4
    assert min(moments) - start >= 7


def test_a_refused_key_keeps_everything_and_resumes(make_bench: MakeBench) -> None:
    """401 for half a day: nothing is lost, hardly anything is sent; with a good key all of it goes."""
    bench = make_bench(default=AuthenticationError("the key is revoked", 401), max_attempts=1)
    bench.record(*[1] * 50)

    bench.run_for(12 * HOUR)
    attempts = len(bench.deliver.keys())
    bench.deliver.default = None
    back = bench.clock()
    bench.run_until(bench.is_empty)

    assert attempts < 8_000
    assert bench.shelf.dead == {}
    assert bench.clock() - back < 120
    assert bench.observer.gate == ["the key is revoked", None]


def test_a_refusal_sets_aside_that_post_alone(make_bench: MakeBench) -> None:
    """404 for an unknown envelope: a dead letter at once, with the reason; its neighbours are delivered."""
    bench = make_bench({"rec-1-1": [EnvelopeNotFoundError("no such envelope", 404)]})
    bench.record(1, 2, 4)

    bench.run_until(bench.is_empty)

    (burial,) = bench.store.buried
    assert (burial.post.key, burial.reason, burial.status_code, burial.attempts) == (
        "rec-1-1",
        "no such envelope",
        404,
        1,
    )
    assert bench.observer.buried == [burial]
    assert bench.writer.counts().delivered == Tally(2, 5)


@pytest.mark.parametrize("error", [RuntimeError("a broken session"), ValueError(), OSError(5, "x"), RecursionError()])
def test_whatever_a_session_raises_the_post_is_kept(make_bench: MakeBench, error: Exception) -> None:
    """An exception nobody foresaw is a failure like another."""
    bench = make_bench({"rec-1-0": [error, error, None]})
    bench.record(1, 2)

    bench.run_until(bench.is_empty)

    assert bench.deliver.keys().count("rec-1-0") == 3
    assert bench.shelf.dead == {}


def test_settlements_are_grouped(make_bench: MakeBench) -> None:
    """Not a commit for each POST: a thousand deliveries cost a few dozen, and none is left unsettled."""
    bench = make_bench(concurrency=8)
    bench.record(*[1] * 500)
    bench.record(*[1] * 500)

    bench.run_until(bench.is_empty)

    assert sum(acknowledged for acknowledged, _ in bench.store.settlements) == 1000
    assert len(bench.store.settlements) < 250
    assert (0, 0) not in bench.store.settlements


def test_what_is_delivered_is_settled_soon(make_bench: MakeBench) -> None:
    """Also while another POST of the same batch is under way for ever: a crash then repeats little."""
    release = threading.Event()
    bench = make_bench({"rec-1-0": [lambda: release.wait(30) and None]}, concurrency=2)
    bench.record(1, 2)
    bench.turn()
    wait_until(lambda: bench.deliver.taken == ["rec-1-1"], "the second one is delivered")
    bench.flusher._safe_step()

    bench.clock.advance(0.05)
    bench.flusher._safe_step()
    settled = bench.writer.counts().delivered
    release.set()
    bench.run_until(bench.is_empty)

    assert settled == Tally(1, 2)


@pytest.mark.parametrize(
    ("events", "hurried", "least", "most"),
    [(1, False, 1.0, 10.0), (4, False, 1.0, 10.0), (5, False, 0.0, 0.1), (1, True, 0.0, 0.1)],
)
def test_when_a_delivery_starts(make_bench: MakeBench, events: int, hurried: bool, least: float, most: float) -> None:
    """Within flush_interval; at once for flush_at events, and for anything in a hurry."""
    moments: List[float] = []
    bench = make_bench(default=lambda: moments.append(bench.clock()), flush_interval=10.0, flush_at=5)
    bench.flusher._safe_step()

    bench.record(*[1] * events)
    stored_at = bench.clock()
    bench.flusher.stored(events)
    if hurried:
        bench.flusher.hurry()
    bench.flusher._senders.wait(0)
    bench.clock.advance(0 if events == 5 or hurried else 2)
    bench.run_until(bench.is_empty)

    assert len(moments) == events
    assert all(least <= moment - stored_at <= most for moment in moments)


def test_without_the_claim_nothing_is_read_or_sent(make_bench: MakeBench) -> None:
    """It asks about twice a second whether it is its turn, and when it is, everything goes."""
    bench = make_bench()
    bench.record(1, 2)
    bench.store.claimable = False

    bench.run_for(10)
    asked, sent, standing_by = bench.store.calls.count("claim"), bench.deliver.keys(), bench.flusher.delivering
    read = bench.store.calls.count("oldest_sealed")
    bench.store.claimable = True
    bench.run_until(bench.is_empty)

    assert (sent, read, standing_by) == ([], 0, False)
    assert 10 <= asked <= 40
    assert bench.flusher.delivering
    assert len(bench.deliver.keys()) == 2


def test_a_store_that_fails_costs_nothing(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    """Delivered POSTs wait for their settlement, are not sent again, and those who watch hear of it twice."""
    bench = make_bench()
    bench.record(1, 2, 3)
    bench.run_until(lambda: bench.flusher.in_flight)
    bench.store.failing = SpoolError("disk I/O error")

    bench.run_for(60)
    pending = bench.writer.counts().pending
    bench.store.failing = None
    bench.run_until(bench.is_empty)
    bench.turn()

    assert pending == Tally(3, 6)
    assert sorted(bench.deliver.keys()) == ["rec-1-0", "rec-1-1", "rec-1-2"]
    assert [error and str(error) for error in bench.observer.store] == ["disk I/O error", None]
    assert caplog.records == []


def test_a_fault_of_its_own_does_not_end_it(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    """An exception nobody foresaw is logged and the work goes on."""
    bench = make_bench()
    bench.record(1)
    bench.store.failing = MemoryError()  # type: ignore[assignment]  # not an error of the store

    bench.turn()
    bench.store.failing = None
    bench.run_until(bench.is_empty)

    lines = [record.levelno for record in caplog.records if record.name == "x402tools"]
    assert lines == [logging.ERROR]
    assert "tries again" in caplog.text


def test_a_backlog_is_not_held_in_memory(make_bench: MakeBench) -> None:
    """During an outage the flusher stops reading when it holds enough."""
    bench = make_bench(default=APIConnectionError("refused"))
    for _ in range(90):
        bench.record(*[1] * 500)

    bench.run_for(24 * HOUR)

    held = len(bench.flusher._ready) + len(bench.flusher._waiting)
    assert held <= 30_000
    bench.deliver.default = None
    bench.flusher._senders.stop()


def test_it_tidies_when_all_is_delivered(make_bench: MakeBench) -> None:
    """Once after each busy time; the fake refuses it while something is pending."""
    bench = make_bench()
    bench.record(1, 2)
    bench.run_until(bench.is_empty)
    bench.run_for(60)

    tidied = bench.store.calls.count("tidy")
    bench.record(3)
    bench.run_until(bench.is_empty)
    bench.run_for(60)

    assert (tidied, bench.store.calls.count("tidy")) == (1, 2)


# -- the thread --------------------------------------------------------------------------------------------------


def started(bench: Bench) -> Bench:
    bench.flusher.start()
    wait_until(lambda: bench.flusher.delivering, "the flusher has the claim")
    return bench


def test_stop_delivers_what_is_stored(make_bench: MakeBench) -> None:
    """Everything stored before `stop` is delivered when the time allows, also what came a moment ago."""
    bench = started(make_bench(clock=time.monotonic, flush_interval=60.0))
    bench.record(1, 2, 3)

    ended = run_with_deadline(bench.flusher.stop, time.monotonic() + 5, seconds=10)

    assert ended
    assert bench.writer.counts().delivered == Tally(3, 6)
    assert bench.shelf.holder is None


def test_stop_right_after_start_delivers_too(make_bench: MakeBench) -> None:
    """A short program: made, recorded, ended, before the thread has had its first turn."""
    for _ in range(20):
        bench = make_bench(clock=time.monotonic)
        bench.record(1)

        bench.flusher.start()
        ended = run_with_deadline(bench.flusher.stop, time.monotonic() + 5, seconds=10)

        assert ended
        assert bench.writer.counts().delivered == Tally(1, 1)


def test_stop_with_nothing_to_do_is_quick(make_bench: MakeBench) -> None:
    """It does not wait for its deadline, and may be called again."""
    bench = started(make_bench(clock=time.monotonic))
    before = time.monotonic()

    ended = bench.flusher.stop(before + 10), bench.flusher.stop(before + 10)

    assert ended == (True, True)
    assert time.monotonic() - before < 2


def test_stop_keeps_its_deadline(make_bench: MakeBench) -> None:
    """A service that never answers is left at the deadline; what it answers later is still settled."""
    release = threading.Event()
    bench = started(make_bench(default=lambda: release.wait(30) and None, clock=time.monotonic))
    bench.record(*[1] * 10)
    bench.flusher.hurry()
    wait_until(lambda: len(bench.deliver.keys()) == 4, "four are under way")
    before = time.monotonic()

    ended = bench.flusher.stop(before + 0.3)
    took = time.monotonic() - before
    release.set()
    wait_until(lambda: bench.store.closed, "the thread has given the store back")

    assert not ended
    assert 0.2 < took < 0.8
    assert len(bench.deliver.keys()) == 4
    assert bench.writer.counts().delivered == Tally(4, 4)
    assert bench.writer.counts().pending == Tally(6, 6)


def test_what_was_answered_by_the_deadline_of_stop_is_settled(make_bench: MakeBench) -> None:
    """Beside a POST that is never answered: the others are not sent again by the next process."""
    release, answer = threading.Event(), threading.Event()
    script = {"rec-1-0": [lambda: release.wait(30) and None], "rec-1-1": [lambda: answer.wait(30) and None]}

    def slow_clock() -> float:
        return time.monotonic() / 50  # so that what is not hurried takes two seconds to be settled

    bench = started(make_bench(script, clock=slow_clock))
    bench.record(1, 2)
    bench.flusher.hurry()
    wait_until(lambda: len(bench.deliver.keys()) == 2, "both are under way")
    answer.set()
    wait_until(lambda: bench.flusher.in_flight == 1, "one is answered")

    bench.flusher.stop(slow_clock())

    assert bench.writer.counts().delivered == Tally(1, 2)
    release.set()


def test_stop_does_not_wait_for_a_pause(make_bench: MakeBench) -> None:
    """When the service asked for five minutes, a second is enough to end."""
    bench = started(make_bench(default=please_wait(300), clock=time.monotonic))
    bench.record(1)
    bench.flusher.hurry()
    wait_until(lambda: bench.flusher.gate_reason, "the gate is closed")
    before = time.monotonic()

    run_with_deadline(bench.flusher.stop, before + 0.3, seconds=5)
    took = time.monotonic() - before

    assert took < 1
    wait_until(lambda: bench.shelf.holder is None, "the claim is given back", seconds=1)
    assert bench.writer.counts().pending == Tally(1, 1)


def test_stop_without_a_start(make_bench: MakeBench) -> None:
    """It has nothing to end."""
    assert make_bench(clock=time.monotonic).flusher.stop(time.monotonic() + 1)


def test_standing_by_ends_at_once(make_bench: MakeBench) -> None:
    """A process that never had the claim does not wait for the one that has it."""
    bench = make_bench(clock=time.monotonic)
    bench.store.claimable = False
    bench.record(1)
    bench.flusher.start()
    wait_until(lambda: "claim" in bench.store.calls, "the thread has asked")
    before = time.monotonic()

    ended = bench.flusher.stop(before + 10)

    assert ended
    assert time.monotonic() - before < 1
    assert bench.deliver.keys() == []


def test_what_is_sealed_is_synced_before_it_is_sent(make_bench: MakeBench) -> None:
    """A power cut that undid the sealing would have the events billed under another key again."""
    bench = make_bench()
    bench.writer.append([make_batch(1, [1, 2])._replace(is_sealed=False)], Tally())

    bench.run_until(lambda: bench.writer.counts().delivered == Tally(2, 3))

    calls = [call for call in bench.store.calls if call in ("seal", "sync", "oldest_sealed", "settle")]
    at = calls.index("seal")
    assert calls[at : at + 2] == ["seal", "sync"]
    assert "oldest_sealed" in calls[at + 2 :]
    assert calls.index("settle") > at


def test_what_could_not_be_synced_is_not_sent(make_bench: MakeBench) -> None:
    """It is sealed once more, which changes nothing, until it is safe."""
    bench = make_bench()
    bench.store.failing_sync = SpoolError("no sync")
    bench.writer.append([make_batch(1, [1, 2])._replace(is_sealed=False)], Tally())
    for _ in range(5):
        bench.turn()
    sent_before = bench.deliver.keys()

    bench.store.failing_sync = None
    bench.run_until(lambda: bench.writer.counts().delivered == Tally(2, 3))

    assert sent_before == []
    assert len(bench.deliver.keys()) == 2
