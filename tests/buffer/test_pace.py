"""How many may be under way: as a table, in traffic with services that are made up, and before a real one."""

from __future__ import annotations

import pathlib
import random
import threading
from typing import Iterable, Iterator, List, Tuple, Union

import pytest

from tests.buffer.bench import MakeBench, benches
from tests.buffer.helpers import wait_until
from tests.buffer.traffic import Client, Service, Traffic, between, per_slice
from tests.client import documents
from tests.client.scripted_server import Exchange, ScriptedServer, refuses, says
from tests.faults.reporting import Books, Reporter
from x402tools._pace import Pace
from x402tools.errors import APIConnectionError, APIError, RateLimitError


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


Step = Union[float, str]  # an answer after so many seconds; refused; over


def after(most: int, steps: Iterable[Tuple[int, Step]]) -> Pace:
    """A pace to which each of these things happened so many times, one after the other."""
    pace, now = Pace(most, lambda: 0.5), 0.0
    for times, step in steps:
        for _ in range(times):
            now += 1.0
            if step == "refused":
                pace.refused(now, now)
            elif step == "over":
                pace.start_over(now)
            else:
                assert isinstance(step, float)
                pace.answered(now, now, step)
    return pace


@pytest.mark.parametrize(
    ("most", "steps", "limit"),
    [
        # the start, and what never changes it
        (8, [], 8),
        (3, [], 3),
        (64, [], 8),
        (8, [(1000, 0.05)], 8),
        (1, [(100, 0.05), (3, "refused"), (1, "over")], 1),
        # up to the mark one more with each answer, once it is known how fast the service is
        (64, [(9, 0.05)], 8),
        (64, [(20, 0.05)], 19),
        (64, [(100, 0.05)], 64),
        # refused: a little less, and far less when what is left is refused too; never nothing
        (64, [(100, 0.05), (1, "refused")], 57),
        (64, [(100, 0.05), (2, "refused")], 40),
        (64, [(100, 0.05), (100, "refused")], 1),
        # back slowly at first
        (64, [(100, 0.05), (2, "refused"), (300, 0.05)], 41),
        (64, [(100, 0.05), (2, "refused"), (900, 0.05)], 46),
        (64, [(100, 0.05), (2, "refused"), (5000, 0.05)], 64),
        # after an outage one, soon half of what it was, and all of it in the end
        (8, [(100, 0.05), (1, "over")], 1),
        (8, [(100, 0.05), (1, "over"), (2, 0.05)], 3),
        (8, [(100, 0.05), (1, "over"), (4, 0.05)], 4),
        (8, [(100, 0.05), (1, "over"), (200, 0.05)], 8),
        # slow: only by far, only when most are, and by half at the most
        (8, [(100, 0.05), (100, 0.19)], 8),
        (8, [(100, 0.05), *[(1, 9.0), (2, 0.05)] * 50], 8),
        (8, [(100, 0.05), (10, 0.3)], 6),
        (8, [(100, 0.05), (10, 60.0)], 4),
        (8, [(100, 0.05), (30, 60.0)], 1),
        (8, [(100, 0.05), (30, 60.0), (300, 0.05)], 8),
        # what is slow with one under way is not slow because of many
        (8, [(100, 0.05), (40, 60.0), (300, 60.0)], 8),
    ],
)
def test_the_limit(most: int, steps: Iterable[Tuple[int, Step]], limit: int) -> None:
    """What the limit is after so many answers and refusals, without chance."""
    assert after(most, steps).limit == limit


def test_what_was_sent_before_a_fall_says_nothing() -> None:
    """Of fifty that were refused at once all but the first were on their way already: one fall, not fifty."""
    pace = after(64, [(100, 0.05)])

    for _ in range(50):
        pace.refused(200.0, 199.0)
    pace.answered(201.0, 199.0, 0.05)

    assert pace.limit == 57


def test_refused_one_at_a_time() -> None:
    """Only then is one too much, and only when nothing passes in between."""
    pace = after(8, [(20, 0.05)])

    said = [pace.refused(now, now) for now in (100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 106.0, 107.0)]
    pace.answered(108.0, 108.0, 0.05)
    after_an_answer = pace.refused(109.0, 109.0)

    assert said == [False] * 7 + [True]
    assert not after_an_answer


@pytest.mark.parametrize("most", [8, 64])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_service_that_is_fast_gets_all_there_is(most: int, seed: int) -> None:
    """At a constant 50 ms: 95 % of what so many can do, within a second of the start, and nothing less later."""
    chance = random.Random(seed)
    traffic = Traffic(Service(chance, latency=0.05), [Client(most, chance)])

    traffic.run_until(10.0)

    possible = most / (0.05 + traffic.service.way / 2)
    assert all(count >= 0.95 * possible for count in per_slice(traffic.booked, 1.0, 10.0, 1.0))
    assert traffic.clients[0].pace.limit == most


@pytest.mark.parametrize("workers", [4, 16, 40])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_service_that_refuses_what_is_too_much(workers: int, seed: int) -> None:
    """Within 10 % of its capacity after two seconds, and it has to refuse few for that."""
    chance = random.Random(seed)
    traffic = Traffic(Service(chance, latency=0.05, workers=workers), [Client(64, chance)])

    traffic.run_until(22.0)

    booked, refused = between(traffic.booked, 2.0, 22.0), between(traffic.refused, 2.0, 22.0)
    assert booked / 20 >= 0.9 * traffic.service.capacity * 0.95  # of which the way of the answers takes five
    assert refused < 0.05 * booked


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_service_that_gets_slow(seed: int) -> None:
    """It loses most of its workers: fewer are under way, so that none waits for long, and all that are left work."""
    chance = random.Random(seed)
    service = Service(chance, latency=0.1, workers=64, queue=10_000)
    traffic = Traffic(service, [Client(64, chance)])
    traffic.run_until(10.0)
    before = traffic.clients[0].pace.limit

    service.lose_workers(60)
    traffic.run_until(40.0)

    assert before == 64
    assert traffic.clients[0].pace.limit <= 16
    assert between(traffic.booked, 20.0, 40.0) / 20 >= 0.9 * service.capacity


@pytest.mark.parametrize("seconds", [5, 300])
@pytest.mark.parametrize("queue", [0, 10_000])
def test_many_come_back_after_an_outage(seconds: int, queue: int) -> None:
    """Fifty clients of a service that can take a quarter of what they may send: they ask it seldom while it is away,
    not many more come than it can take when it is back, and it works in full again soon."""
    chance = random.Random(seconds + queue)
    service = Service(chance, latency=0.05, workers=100, queue=queue)
    traffic = Traffic(service, [Client(8, chance) for _ in range(50)])
    traffic.run_until(5.0)
    service.is_away = True
    traffic.run_until(5.0 + seconds)

    service.is_away, back = False, 5.0 + seconds
    traffic.run_until(back + 40.0)

    assert traffic.sent.count(0.0) == 400  # what a herd is
    assert between(traffic.sent, back - 2.5, back) < 100
    assert max(per_slice(traffic.sent, back, back + 40.0, 0.05)) < 150
    assert between(traffic.booked, back + 35.0, back + 40.0) / 5 >= 0.9 * service.capacity


# -- the flusher and its pace ------------------------------------------------------------------------------------


def test_after_an_outage_one_at_a_time_at_first(make_bench: MakeBench) -> None:
    """The one that finds the service there again is followed by few."""
    bench = make_bench(default=APIConnectionError("refused"), concurrency=8)
    bench.record(*[1] * 200)
    bench.run_until(lambda: bench.flusher.gate_reason and not bench.flusher.in_flight)
    under_way: List[int] = []
    bench.deliver.default = lambda: under_way.append(bench.flusher.in_flight)

    bench.run_until(bench.is_empty)

    assert under_way[0] == 1
    assert max(under_way[:3]) <= 4
    assert bench.flusher._pace.limit == 8


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_poisonous_post_does_not_slow_the_others(make_bench: MakeBench, status: int) -> None:
    """Whatever one POST gets again and again: it may be its own fault, and counts as too many once at the most."""
    bench = make_bench({"rec-1-0": [APIError("no", status)]}, concurrency=8, max_attempts=1000)
    bench.turn_takes = 0.01
    limits: List[int] = []

    def go_on() -> bool:
        bench.record(1)
        limits.append(bench.flusher._pace.limit)
        return bench.deliver.keys().count("rec-1-0") >= 10

    bench.record(1)
    bench.run_until(go_on)
    bench.deliver.script.clear()
    bench.run_until(bench.is_empty)

    assert min(limits) >= (5 if status == 503 else 8)


def test_what_is_too_much_one_at_a_time_waits(make_bench: MakeBench) -> None:
    """A service that refuses everything for load is left alone, with growing pauses and a reason."""
    bench = make_bench(default=RateLimitError("slow down", 429), concurrency=8)
    bench.record(*[1] * 100)

    bench.run_for(600.0)
    sent, reason = len(bench.deliver.keys()), bench.flusher.gate_reason
    bench.deliver.default = None
    bench.run_until(bench.is_empty)

    assert reason == "slow down"
    assert sent < 150
    assert bench.shelf.dead == {}


def test_a_real_service_with_room_for_four(tmp_spool: pathlib.Path) -> None:
    """Thirty-two may be under way, and four are taken: few are refused, all are booked once, and `stats` tells."""
    books, lock, under_way, refused, limits = Books(), threading.Lock(), [0], [0], []
    book = books.behaviour(says(documents.usage(), 201))

    def behave(exchange: Exchange) -> bool:
        with lock:
            is_too_much = under_way[0] >= 4
            refused[0] += is_too_much
            under_way[0] += not is_too_much
        if is_too_much:
            return refuses(429, "too many")(exchange)
        exchange.released.wait(0.02)  # what the work takes
        with lock:
            under_way[0] -= 1
        return book(exchange)

    with ScriptedServer(always=behave) as server, Reporter(server.url, tmp_spool, max_concurrency=32) as reports:
        reports.record(300)
        wait_until(lambda: limits.append(reports.stats().in_flight_limit) or len(books.booked) == 300, "all are booked")
        reports.check_delivered_once(books)

    assert refused[0] < 60
    assert 1 <= limits[-1] <= 16
