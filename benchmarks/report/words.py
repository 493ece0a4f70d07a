"""Numbers and verdicts as people read them; the terminal and the Markdown say the same."""

from __future__ import annotations

from typing import List, Optional

from benchmarks.report.model import LIMIT, OURS, PEER, Goal, Table

ROLES = {OURS: "*", PEER: " ", LIMIT: "-"}
LEGEND = "* x402tools   - a limit, which only shows the least there is   (no mark) another package"


def number(value: Optional[float]) -> str:
    """Three significant digits or more; a dash for what is not known."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.3g}"


def verdict(goal: Goal) -> str:
    """reached, NOT REACHED, or why nobody can say."""
    if goal.reached is None:
        return f"not measured: {goal.reason or 'a contestant is missing'}"
    return "reached" if goal.reached else "NOT REACHED"


def bound(goal: Goal) -> str:
    """What the goal asks for."""
    return f"{'>=' if goal.at_least else '<='} {amount(goal.bound, goal)}"


def amount(value: Optional[float], goal: Goal) -> str:
    """A value of the goal with its unit."""
    unit = "times" if goal.is_ratio and not goal.unit else goal.unit
    return f"{number(value)} {unit}".strip()


def columns(table: Table) -> List[str]:
    """Every heading that a row of the table has, in the order of first appearance."""
    seen: List[str] = []
    for row in table.rows:
        seen += [name for name in row.figures if name not in seen]
    return seen
