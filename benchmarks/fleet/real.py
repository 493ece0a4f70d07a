"""A real run beside the model of a fleet with its parameters."""

from __future__ import annotations

import dataclasses
from statistics import fmean
from typing import NamedTuple, Sequence

from benchmarks.fleet.costs import MEASURED, Costs
from benchmarks.fleet.play import play
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
    """What the model has, the mean of several that differ by chance, and real / model: 1.0 where it is right."""

    model_posts: float
    model_booked: float
    posts: float
    booked: float


def compare(run: Run, costs: Costs = MEASURED, *, seeds: Sequence[int] = (1, 2, 3, 4, 5)) -> Compared:
    """Goes through the run event by event with the rate that it had, once a seed.

    Raises:
        ValueError: nothing was recorded.
    """
    if run.events < 1 or run.seconds <= 0:
        raise ValueError("a run without events says nothing")
    fleet = dataclasses.replace(run.fleet, rate=run.events / run.seconds)
    played = [play(fleet, run.seconds, costs, seed=seed, flushed=run.flushed) for seed in seeds]
    posts, booked = fmean(one.posts for one in played), fmean(one.seconds for one in played)
    return Compared(posts, booked, run.posts / posts, run.booked / booked)
