"""The tables and the words at the end. Returns lines, prints nothing."""

from __future__ import annotations

import textwrap
from typing import Iterable, List, Optional, Sequence

from x402tools.buffer import BufferStats
from x402tools.demo.checking import INTERVAL_LOSS, Outcome, Row, total
from x402tools.demo.progress import WIDTH

_GAP = "  "
_SHORTEST_NAME = 8  # characters of an envelope's name, where figures are long
_MOST_ROWS = 20
_LABEL = 10  # columns


def table(rows: Sequence[Row], happened: str, billed: str, *, extra: Optional[List[str]] = None) -> List[str]:
    """The rows, the largest first, and their sum; what is on both sides of each, and the difference.

    Args:
        rows: at most 20 are shown; the others are summed up in one, unless they differ.
        happened, billed: what stands above the two sides.
        extra: the cells of one more line, below the sum.
    """
    cells = [["envelope", "events", "units", "events", "units", "events", "units"]]
    cells += [_cells(row) for row in _shortened(rows)]
    cells.append(_cells(total(rows)))
    cells += [extra] if extra else []
    widths = [max(len(line[column]) for line in cells) for column in range(7)]
    for left, title in ((1, happened), (3, billed), (5, "difference")):
        widths[left] += max(len(title) - len(_GAP) - widths[left] - widths[left + 1], 0)
    widths[0] = max(min(widths[0], WIDTH - sum(widths[1:]) - 6 * len(_GAP)), _SHORTEST_NAME)
    lines = [_line(line, widths) for line in cells]
    titles = [title.rjust(widths[n] + len(_GAP) + widths[n + 1]) for n, title in ((1, happened), (3, billed))]
    head = _GAP.join([" " * widths[0], *titles, "difference".rjust(widths[5] + len(_GAP) + widths[6])])
    rule = "-" * len(lines[0])
    end = len(lines) - (2 if extra else 1)
    return [head, lines[0], rule, *lines[1:end], rule, *lines[end:]]


def _cells(row: Row) -> List[str]:
    figures = [*row.happened, *row.billed, *row.difference]
    return [row.name, *(f"{figure:,}" for figure in figures)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "~"
    return _GAP.join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))])


def _shortened(rows: Sequence[Row]) -> List[Row]:
    """What differs first, then the largest; the tail as one row."""
    ordered = sorted(rows, key=lambda row: (row.difference == (0, 0), -row.happened.events, row.name))
    if len(ordered) <= _MOST_ROWS:
        return ordered
    rest = ordered[_MOST_ROWS - 1 :]
    return [*ordered[: _MOST_ROWS - 1], total(rest, f"{len(rest):,} more")]


def bill(outcome: Outcome) -> List[str]:
    """The access log beside the ledger."""
    extra = ["cut off", f"{outcome.cut_off:,}", "", f"{outcome.cut_off_billed:,}", "", "either", ""]
    lines = table(outcome.rows, "access log", "ledger", extra=extra if outcome.cut_off else None)
    if outcome.cut_off:
        lines += ["", *wrapped("Cut off: a worker was killed inside the request, before record_usage had returned.")]
    return lines


def spool(stats: BufferStats) -> str:
    """The spool's own ledger as an equation, in events."""
    left = f"{stats.recorded.events:,} recorded = {stats.delivered.events:,} delivered"
    return f"{left} + {stats.pending.events:,} pending + {stats.dead.events:,} dead + {stats.dropped.events:,} dropped"


def allowance(outcome: Outcome, durability: str) -> str:
    """How many requests are missing from the bill, and how many may be."""
    if durability != "interval":
        return f"{outcome.missing:,}; allowed: 0 (durability={durability!r} survives a kill)"
    window = f"durability='interval', {INTERVAL_LOSS * 1000:.0f} ms before a kill"
    return f"{outcome.missing:,}; allowed: {outcome.excusable:,} ({window})"


def labelled(pairs: Iterable[Sequence[str]]) -> List[str]:
    """Lines of a label and a text; an empty label goes on with the one before."""
    lines = []
    for label, text in pairs:
        first, *more = textwrap.wrap(text, WIDTH - _LABEL)
        lines += [f"{label:<{_LABEL}}{first}", *(" " * _LABEL + line for line in more)]
    return lines


def verdict(faults: Sequence[str], proof: str) -> List[str]:
    """The last lines: what was proved, or everything that is wrong."""
    if not faults:
        return wrapped(f"Proved: {proof}")
    return ["NOT PROVED:", *(line for fault in faults for line in wrapped(f"- {fault}"))]


def wrapped(text: str) -> List[str]:
    """The text in lines of the width that everything here has."""
    return textwrap.wrap(text, WIDTH)
