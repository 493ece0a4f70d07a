"""Rounds of chaos, judged. `python -m tests.conservation.campaign` runs the same with more to choose from.

X402TOOLS_CHAOS_ROUNDS and X402TOOLS_CHAOS_SEED set how many and which; the seed is a fresh one by default, printed
with the first line and named in a failure.
"""

from __future__ import annotations

import os
import pathlib
from typing import List

import pytest

from tests.conservation import campaign, plan

SHORT = 4


def run(rounds: int, base: pathlib.Path) -> List[str]:
    """What the failing rounds have to say, each with the command that repeats it."""
    chosen = os.environ.get("X402TOOLS_CHAOS_SEED")
    seed = int(chosen) if chosen else campaign.fresh_seed()
    outcomes = campaign.run(range(1, rounds + 1), seed, keep=base)
    return [
        "\n".join([campaign.command(seed, outcome.number), outcome.summary, *outcome.sentences, str(outcome.folder)])
        for outcome in outcomes
        if not outcome
    ]


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_every_event_reaches_the_bill_once_through_a_campaign_of_chaos(tmp_path: pathlib.Path) -> None:
    """Whatever dies and whatever fails, what was acknowledged is delivered once, and the ledger says so."""
    rounds = int(os.environ.get("X402TOOLS_CHAOS_ROUNDS", campaign.ROUNDS))

    failures = run(rounds, tmp_path)

    assert not failures, "\n\n".join(failures)


@pytest.mark.timeout(300)
def test_every_event_reaches_the_bill_once_through_a_few_rounds(tmp_path: pathlib.Path) -> None:
    """The same, short enough for every Python."""
    failures = run(SHORT, tmp_path)

    assert not failures, "\n\n".join(failures)


def test_a_seed_always_draws_the_same_plans() -> None:
    """So that a failing round can be repeated."""
    first = [plan.to_json(plan.draw(7, number)) for number in range(1, 61)]

    again = [plan.to_json(plan.draw(7, number)) for number in range(1, 61)]

    assert first == again
    assert len(set(first)) == 60


def test_a_campaign_meets_everything_that_can_happen() -> None:
    """Sixty rounds leave out no durability, no signal, no way to end and no fault of the service."""
    plans = [plan.draw(7, number) for number in range(1, 61)]
    text = " ".join(plan.to_json(drawn) for drawn in plans)

    wanted = ["interval", "commit", "fsync", "SIGKILL", "SIGTERM", '"handled": true', "close", "fall", "exit", "raise"]
    wanted += ["os_exit", "stay", "401", "stop", "kill", '"honours_keys": false', '"requeue": true', '"victim": 1']
    wanted += ["500", "429", "429 at once", "reset before", "reset after", "cut short", "slow", "hang before"]
    assert [word for word in wanted if word not in text] == []
    assert {len(drawn.processes) for drawn in plans} >= {1, 2, 3}
