"""A real run beside the model of a fleet with its parameters."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from benchmarks.fleet.costs import MEASURED, Costs
from benchmarks.fleet.play import Played, play
from benchmarks.fleet.shape import Fleet


class Run(NamedTuple):
    """What was done and what came of it.

    Attributes:
        fleet: its parameters; the rate is replaced by the one that was reached.
        events: recorded.
        seconds: for which was recorded.
        posts: that arrived.
        booked: seconds from the first event until the last POST had arrived.
        flushed: whether the last window was ended by a flush.
    """

    fleet: Fleet
    events: int
    seconds: float
    posts: int
    booked: float
    flushed: bool = True


class Compared(NamedTuple):
    """Real / model: 1.0 where the model is right."""

    played: Played
    posts: float
    booked: float


def compare(run: Run, costs: Costs = MEASURED, *, seed: int = 1) -> Compared:
    """Goes through the run event by event with the rate that it had.

    Raises:
        ValueError: nothing was recorded.
    """
    if run.events < 1 or run.seconds <= 0:
        raise ValueError("a run without events says nothing")
    fleet = dataclasses.replace(run.fleet, rate=run.events / run.seconds)
    played = play(fleet, run.seconds, costs, seed=seed, flushed=run.flushed)
    return Compared(played, run.posts / max(played.posts, 1), run.booked / played.seconds)
