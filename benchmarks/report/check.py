"""`--check`: did a ratio get worse than the one kept in results/? For use before a release.

Only ratios are compared: both sides of one were measured in the same run, so a slower machine slows both.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence

from benchmarks.report.model import Goal, Section

# A ratio may be so much worse than the kept one before it counts: two runs on one busy machine differ by about half.
TOLERANCE = 0.25


class Comparison(NamedTuple):
    """One ratio, then and now."""

    section: str
    name: str
    kept: Optional[float]
    now: Optional[float]
    worse_by: Optional[float]  # 0.1 is a tenth worse, negative is better

    def is_worse(self, tolerance: float) -> bool:
        """Whether it got worse than the tolerance allows, or was there and is not any more."""
        if self.worse_by is None:
            return self.kept is not None and self.now is None
        return self.worse_by > tolerance


def compare(kept: Sequence[Section], now: Sequence[Section]) -> List[Comparison]:
    """Every ratio of the sections that were run now, beside the kept one of the same name."""
    known = {(section.name, goal.name): goal for section in kept for goal in section.goals}
    return [
        _compare(section.name, known.get((section.name, goal.name)), goal)
        for section in now
        for goal in section.goals
        if goal.is_ratio
    ]


def _compare(section: str, kept: Optional[Goal], now: Goal) -> Comparison:
    before = kept.value if kept is not None else None
    worse_by: Optional[float] = None
    if before is not None and now.value is not None:
        worse_by = worse_part(before, now.value, at_least=now.at_least)
    return Comparison(section, now.name, before, now.value, worse_by)


def worse_part(kept: float, now: float, *, at_least: bool) -> float:
    """By which part of the kept value the new one is worse; negative when it is better.

    Of a value of which more is better that can be 1 at most, of one of which less is better any number. Next to a kept
    value of 0 there are no parts: then it is 0 when it did not get worse, and 1 when it did.
    """
    lost = kept - now if at_least else now - kept
    if kept == 0:
        return 1.0 if lost > 0 else 0.0
    return lost / kept


def show(comparisons: Sequence[Comparison], tolerance: float) -> str:
    """A line for each."""
    if not comparisons:
        return "check: no ratio was measured"
    lines = [f"check: ratios beside those kept in benchmarks/results; worse by more than {tolerance:.0%} fails"]
    for found in comparisons:
        kept, now = ("-" if value is None else f"{value:.3g}" for value in (found.kept, found.now))
        change = (
            "not kept" if found.kept is None else "not measured" if found.worse_by is None else _words(found.worse_by)
        )
        mark = "WORSE" if found.is_worse(tolerance) else "ok"
        lines.append(f"  {found.section:12} {found.name:60} kept {kept:>8}  now {now:>8}  {change:>14}  {mark}")
    return "\n".join(lines)


def _words(worse_by: float) -> str:
    return f"{abs(worse_by):.0%} {'worse' if worse_by > 0 else 'better'}"
