"""A small round of chaos on each store, from a fresh seed; `python -m tests.stores.chaos` runs large ones."""

from __future__ import annotations

import pathlib
import random

import pytest

from tests.conservation.plan import FaultPlan
from tests.stores import chaos, chaos_plan, servers


@pytest.mark.full
@pytest.mark.parametrize("store", chaos_plan.STORES)
def test_every_event_reaches_the_bill_once_though_workers_die(tmp_path: pathlib.Path, store: str) -> None:
    """Workers are killed and stalled, the engine fails: the bill is what was recorded, and the store's ledger too."""
    if store != chaos_plan.SQLITE:
        servers.require(servers.REDIS if store == chaos_plan.CLUSTER else store)
    seed = random.SystemRandom().randrange(1_000_000)
    plan = chaos_plan.draw(store, seed, 1, events=1000, kills=3)

    verdict, line = chaos.play(plan, tmp_path)

    assert not verdict.faults, line
    assert verdict.recorded.events == verdict.billed.events == 1000
    assert verdict.kills == 3


def test_a_service_that_ignores_keys_bills_too_much_and_the_round_says_so(tmp_path: pathlib.Path) -> None:
    """Otherwise a round that finds nothing would mean nothing."""
    faults = FaultPlan("doubles", {"reset after": 0.3}, honours_keys=False)
    plan = chaos_plan.draw(chaos_plan.SQLITE, 1, 1, events=300, kills=0)._replace(faults=faults)

    verdict, line = chaos.play(plan, tmp_path)

    assert verdict.error.events > 0, line
    assert any("units recorded" in fault for fault in verdict.faults), line
    assert (tmp_path / "round-sqlite-1-1").is_dir()


def test_a_seed_always_draws_the_same_round() -> None:
    """So that a failing round can be repeated; and five rounds meet all that an engine can do."""
    rounds = [chaos_plan.draw(chaos_plan.REDIS, 7, number, events=2000, kills=4) for number in range(1, 6)]

    again = [chaos_plan.draw(chaos_plan.REDIS, 7, number, events=2000, kills=4) for number in range(1, 6)]

    assert rounds == again
    assert {drawn.weather for drawn in rounds} == set(chaos_plan.WEATHERS)
