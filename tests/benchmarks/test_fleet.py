"""The model of a fleet: cases small enough to be worked out by hand, and two ways of computing the same."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import pytest

from benchmarks.fleet.__main__ import main
from benchmarks.fleet.advice import changes
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.plan import plan
from benchmarks.fleet.play import play
from benchmarks.fleet.shape import HOST, MOST_POSTS, OWNED, SHARED, Fleet
from benchmarks.fleet.traffic import KINDS, busiest_part, bytes_per_event, distinct, groups, zipf

# One envelope without metadata is one group, whatever happens.
ONE = Fleet(hosts=10, rate=1000.0, envelopes=1, kind="none", window=10.0, workers=2, partitions=2)
SMALL = Fleet(
    look_every=0.02, hosts=4, rate=2000.0, envelopes=500, window=5.0, round_trip=0.01, workers=4, partitions=16
)


@pytest.mark.parametrize(("folding", "posts"), [(HOST, 1.0), (SHARED, 0.2), (OWNED, 0.1)])
def test_one_group_costs_a_post_a_window_and_folder(folding: str, posts: float) -> None:
    """Of ten hosts, of two workers that share the events, or of the one who reads the partition."""
    found = plan(dataclasses.replace(ONE, folding=folding, partitions=1 if folding == OWNED else 2))

    assert found.posts == pytest.approx(posts, rel=1e-6)
    assert found.window == 10.0
    assert found.keeps_up


def test_the_busiest_of_ten_thousand_envelopes_has_a_tenth_of_all() -> None:
    """1 / (1 + 1/2 + … + 1/10,000) by Zipf's law; and the classes are all envelopes and all events."""
    classes = zipf(10_000, 1.0)

    assert classes[0] == (1.0, pytest.approx(0.1021696, rel=1e-4))
    assert sum(members for members, _ in classes) == pytest.approx(10_000)
    assert sum(members * part for members, part in classes) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_groups_are_as_many_as_there_are_values_and_get_all_the_events(kind: str) -> None:
    """Those that are alike are counted together, and none is lost."""
    classes = groups(50, 1.0, kind)

    assert sum(members for members, _ in classes) == pytest.approx(50 * KINDS[kind].values, rel=1e-9)
    assert sum(members * part for members, part in classes) == pytest.approx(1.0)


def test_distinct_groups_follow_the_formula_for_equal_ones() -> None:
    """Of 100 equal groups 100 events are of 63, few events are of as many groups, and very many are of all."""
    classes = [(100.0, 0.01)]

    found = [distinct(classes, events) for events in (1e-6, 100, 1e6)]

    assert found == [pytest.approx(1e-6), pytest.approx(100 * (1 - math.exp(-1))), pytest.approx(100)]


def test_a_limit_makes_windows_as_long_as_groups_need() -> None:
    """10,000 groups at 500 POSTs a second need 20 seconds, and everything is that much later."""
    fleet = Fleet(kind="none", folding=OWNED, window=1.0, limit=500.0, workers=8, partitions=8, flush_at=500)

    found = plan(fleet)

    assert found.window == pytest.approx(20.0, rel=0.01)
    assert found.posts == pytest.approx(500.0, rel=0.01)
    assert found.keeps_up
    assert found.late_most > found.window


def test_what_no_window_can_fold_does_not_keep_up() -> None:
    """Every event has metadata of its own, and the service takes half as many POSTs as there are events."""
    found = plan(Fleet(hosts=1, rate=1000.0, kind="request", workers=8, partitions=1, limit=500.0))

    assert not found.keeps_up
    assert found.posts == pytest.approx(1000.0)


def test_a_full_fold_ends_its_window() -> None:
    """20,000 groups of one event each come in 2 seconds."""
    found = plan(Fleet(hosts=10, rate=10_000.0, kind="request", workers=1, partitions=1, concurrency=10_000))

    assert found.window == pytest.approx(MOST_POSTS / 10_000, rel=0.01)


def test_twice_the_window_is_twice_the_memory() -> None:
    """Recorded events wait in the engine for their window; the POSTs beside them are few."""
    short, long = (plan(dataclasses.replace(ONE, window=window)) for window in (100.0, 200.0))

    assert long.memory == pytest.approx(2 * short.memory, rel=0.01)
    assert long.memory_hour - long.memory == pytest.approx(short.memory_hour - short.memory)


def test_the_overrun_of_a_limit_is_what_is_used_until_it_can_be_known() -> None:
    """The one envelope gets all events: 1,000 a second for so long as an event may be late."""
    found = plan(dataclasses.replace(ONE, folding=OWNED, partitions=1))

    assert found.overrun == pytest.approx(1000.0 * found.late_most)
    assert found.late_median < found.late_most


def test_small_batches_take_more_room_and_more_of_the_engine() -> None:
    """They compress worse, and each is a call."""
    small, large = (plan(Fleet(flush_at=at, partitions=16, workers=64)) for at in (20, 500))

    assert small.engine_cores > 4 * large.engine_cores
    assert small.memory > large.memory
    for kind in KINDS.values():
        assert bytes_per_event(kind, 1) > bytes_per_event(kind, 100)


def test_a_partition_is_as_busy_as_its_busiest_envelope() -> None:
    """However many partitions there are."""
    parts = [busiest_part(1000, 1.0, partitions) for partitions in (1, 16, 256)]

    assert parts[0] == 1.0
    assert parts[0] > parts[1] > parts[2] > zipf(1000, 1.0)[0][1]


@pytest.mark.parametrize("folding", [HOST, SHARED, OWNED])
@pytest.mark.parametrize("kind", ["none", "endpoint"])
def test_the_formula_and_the_events_one_by_one_agree(folding: str, kind: str) -> None:
    """On POSTs within 3 %, and on how late an event is; every event is counted exactly once."""
    fleet, seconds = dataclasses.replace(SMALL, folding=folding, kind=kind), 15.0

    planned, played = plan(fleet), play(fleet, seconds)

    assert played.posts == pytest.approx(planned.posts * seconds, rel=0.03)
    assert played.events == pytest.approx(fleet.rate * seconds, rel=0.02)
    assert played.late_median == pytest.approx(planned.late_median, rel=0.15)
    assert played.late_most <= planned.late_most * 1.02
    assert played.memory == pytest.approx(planned.memory, rel=0.15)


def test_one_group_event_by_event() -> None:
    """30 seconds in windows of 10: three POSTs, and the last is answered a round trip after the end."""
    fleet = dataclasses.replace(ONE, hosts=1, folding=OWNED, workers=1, partitions=1, flush_at=1, look_every=0.001)

    played = play(fleet, 30.0, Costs(read_batch=0.0, fold_event=0.0, fold_group=0.0))

    assert played.posts == 3
    assert played.seconds == pytest.approx(30.1, abs=0.2)


def test_workers_that_look_seldom_share_unevenly() -> None:
    """Each takes what came since anybody looked: fewer POSTs than equal shares make, and more than one worker makes."""
    fleet = Fleet(hosts=1, rate=4000.0, envelopes=1000, kind="none", window=1.0, workers=4, partitions=1)

    one, four = (play(dataclasses.replace(fleet, workers=workers), 6.0).posts for workers in (1, 4))

    assert one < four < plan(fleet).posts * 6.0


def test_the_same_seed_gives_the_same_and_another_one_something_else() -> None:
    """Of what is played; what is computed has no chance in it."""
    first, same, other = (play(SMALL, 2.0, seed=seed) for seed in (7, 7, 8))

    assert first == same
    assert first != other


def test_the_advice_names_what_is_too_much() -> None:
    """Nothing for a small fleet; an engine, one reader, a coarser group or a log where the numbers ask for it."""
    small = Fleet(hosts=1, rate=1000.0, kind="none", folding=HOST)
    hosts = Fleet(folding=HOST)
    shared = Fleet(folding=SHARED, workers=64, partitions=1, flush_at=500)
    unique = Fleet(kind="request", folding=OWNED, workers=64, partitions=64)

    found = [" / ".join(changes(fleet, plan(fleet))) for fleet in (small, hosts, shared, unique)]

    assert found[0] == ""
    assert "an engine" in found[1]
    assert "one reader a partition" in found[2]
    assert "coalesce_by" in found[3]
    assert "a log on disk" in found[3]


def test_the_command_prints_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, with the same figures as the function; status 1 when the fleet does not keep up."""
    status = main(["--hosts", "10", "--rate", "1000", "--kind", "none", "--json"])

    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert printed["posts"] == plan(Fleet(hosts=10, rate=1000.0, kind="none")).posts
    assert main(["--kind", "request", "--limit", "10", "--workers", "4", "--partitions", "4"]) == 1


def test_a_fleet_of_a_million_events_a_second_takes_a_moment() -> None:
    """Seconds of CPU at the most, because people try many."""
    begin = time.process_time()

    plan(Fleet(kind="user", folding=OWNED))

    assert time.process_time() - begin < 10
