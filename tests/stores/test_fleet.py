"""What workers tell each other through an engine: one is told to wait and all do, and all keep one rate together."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import Any, Callable, Iterator, List, Optional

import pytest

from tests.buffer.helpers import FakeClock, wait_until
from tests.stores import servers
from tests.stores.servers import Server
from x402tools._redis_fleet import RedisFleet
from x402tools._store import Allowance

MakeFleet = Callable[..., RedisFleet]


@pytest.fixture(scope="module", params=[servers.REDIS, servers.VALKEY])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers.require(request.param)
    with Server(tmp_path_factory.mktemp("engine"), request.param) as started:
        yield started


@pytest.fixture
def make_fleet(server: Server, tmp_path: pathlib.Path) -> Iterator[MakeFleet]:
    """One worker's view; all that a test makes belong to one fleet."""
    import redis

    client = redis.Redis(port=server.port, protocol=2)

    def run(script: str, keys: Any, arguments: Any) -> Any:
        return client.eval(script, len(keys), *keys, *arguments)

    def make(rate: Optional[float] = None, **options: Any) -> RedisFleet:
        return RedisFleet(run, str(tmp_path), rate, **options)

    yield make
    client.close()


def test_a_fleet_that_was_told_nothing_sends_all(make_fleet: MakeFleet) -> None:
    """Without a rate, as many as there are."""
    assert make_fleet().allowance(32) == Allowance(32)


def test_what_one_was_told_holds_for_all(make_fleet: MakeFleet) -> None:
    """For as long and with the reason; a shorter time told later does not shorten it."""
    one, other = make_fleet(), make_fleet()

    one.shut("slow down, ☃", 20.0)
    other.shut("slow down, ☃", 1.0)

    for each in (one, other):
        posts, wait, reason = each.allowance(8)
        assert (posts, reason) == (0, "slow down, ☃")
        assert 10.0 < wait <= 20.0


def test_when_the_time_is_over_one_tries_it_out(make_fleet: MakeFleet) -> None:
    """The others wait for its answer, and all go on when it has one."""
    one, other = make_fleet(probe_every=60.0), make_fleet(probe_every=60.0)
    one.shut("wrong key", 0.001)
    answers: List[Allowance] = []

    wait_until(lambda: answers.append(one.allowance(8)) or answers[-1].posts, "the time is over")
    others = other.allowance(8)
    one.reopen()

    assert answers[-1] == Allowance(1, 0.0, "wrong key")
    assert (others.posts, others.reason) == (0, "wrong key")
    assert 30.0 < others.wait <= 60.0
    assert one.allowance(8) == other.allowance(8) == Allowance(8)


def test_who_was_not_told_to_wait_asks_again_soon(make_fleet: MakeFleet) -> None:
    """An answer without a reason holds for 50 ms."""
    clock = FakeClock()
    one, other = make_fleet(clock=clock), make_fleet()
    one.allowance(8)
    other.shut("slow down", 20.0)

    clock.advance(0.049)
    before = one.allowance(8)
    clock.advance(0.002)

    assert before == Allowance(8)
    assert one.allowance(8).posts == 0


def test_a_rate_is_kept_by_all_of_them_together(make_fleet: MakeFleet) -> None:
    """Two that ask as often as they can get what the time allows, and a tenth of a second's more; none is lost."""
    fleet = [make_fleet(rate=200.0), make_fleet(rate=200.0)]
    pause = threading.Event()
    begun = time.monotonic()
    granted = 0

    while granted < 60:
        for one in fleet:
            granted += one.allowance(3).posts
        pause.wait(0.005)
    took = time.monotonic() - begun

    assert granted <= 20 + 200 * took + 1


def test_a_rate_tells_when_there_is_more(make_fleet: MakeFleet) -> None:
    """So that nobody asks again and again: one POST in ten seconds."""
    fleet = make_fleet(rate=0.1)

    first, second = fleet.allowance(5), fleet.allowance(5)

    assert first.posts == 1
    assert second.posts == 0
    assert 5.0 < second.wait <= 10.0


def test_a_full_engine_still_answers(make_fleet: MakeFleet, server: Server) -> None:
    """Otherwise nothing would be sent, and what is in it could not get less."""
    fleet = make_fleet(rate=1000.0)
    server.ask("CONFIG", "SET", "maxmemory", 1)

    try:
        allowed = fleet.allowance(5)
        fleet.shut("slow down", 20.0)
        shut = fleet.allowance(5)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)

    assert allowed.posts == 5
    assert shut.reason == "slow down"
