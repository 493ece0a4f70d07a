"""`--check`: when a ratio counts as worse than the kept one."""

from __future__ import annotations

from typing import List, Optional

import pytest

from benchmarks.report.check import compare, show, worse_part
from benchmarks.report.model import Goal, Section


def sections(*goals: Goal) -> List[Section]:
    """One section with these goals."""
    return [Section("durable", "work", "nothing", goals=list(goals))]


def ratio_of(value: Optional[float], *, at_least: bool = True, name: str = "rate / limit") -> Goal:
    """A goal that is a ratio."""
    return Goal(name, value, 1.0, at_least, is_ratio=True)


@pytest.mark.parametrize(
    ("kept", "now", "at_least", "part"),
    [
        (4.0, 3.0, True, 0.25),
        (4.0, 5.0, True, -0.25),
        (1.0, 1.5, False, 0.5),
        (1.0, 0.5, False, -0.5),
        (0.0, 0.0, False, 0.0),
        (0.0, 0.1, False, 1.0),
        (0.0, 0.1, True, 0.0),
    ],
)
def test_the_lost_part_is_taken_in_the_direction_of_the_goal(
    kept: float, now: float, at_least: bool, part: float
) -> None:
    """More is worse where less is asked for."""
    assert worse_part(kept, now, at_least=at_least) == pytest.approx(part)


@pytest.mark.parametrize(("now", "worse"), [(4.0, False), (3.1, False), (2.9, True), (None, True)])
def test_a_ratio_that_got_worse_than_the_tolerance_is_told(now: Optional[float], worse: bool) -> None:
    """So is one that cannot be measured any more."""
    [found] = compare(sections(ratio_of(4.0)), sections(ratio_of(now)))

    assert found.is_worse(0.25) is worse


def test_only_ratios_are_compared() -> None:
    """Another machine may be slower at everything."""
    kept = sections(Goal("rate", 100_000, 1, True, "events/s"))
    now = sections(Goal("rate", 10, 1, True, "events/s"))

    assert compare(kept, now) == []


def test_a_ratio_that_was_never_kept_is_no_failure() -> None:
    """The first run of a new section has nothing to be worse than."""
    [found] = compare([], sections(ratio_of(0.1)))

    assert not found.is_worse(0.25)
    assert "not kept" in show([found], 0.25)


def test_the_words_say_which_ratio_and_how_much() -> None:
    """A line a ratio, with both values and the mark."""
    text = show(compare(sections(ratio_of(4.0)), sections(ratio_of(2.0))), 0.25)

    assert "durable" in text
    assert "rate / limit" in text
    assert "50% worse" in text
    assert "WORSE" in text
