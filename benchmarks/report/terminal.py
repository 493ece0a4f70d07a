"""A section as text for a terminal."""

from __future__ import annotations

import textwrap
from typing import List

from benchmarks.report.model import Section, Table
from benchmarks.report.words import ROLES, amount, bound, columns, number, verdict

WIDTH = 116


def show(section: Section) -> str:
    """Tables, then goals, then what is missing and what was not measured."""
    parts = [f"\n{section.name}  ({section.size}, {section.seconds:.0f} s)", _wrap(section.work, "  ")]
    parts += [_table(table) for table in section.tables]
    if section.goals:
        parts.append(_goals(section))
    parts += [_wrap(f"missing: {peer}: {why}", "  ") for peer, why in section.missing.items()]
    parts.append(_wrap(f"Not measured: {section.not_measured}", "  "))
    return "\n".join(parts)


def _table(table: Table) -> str:
    headings = columns(table)
    cells = [[number(row.figures.get(heading)) for heading in headings] for row in table.rows]
    widths = [max(len(text) for text in column) for column in zip(headings, *cells)]
    label = max([len(row.label) for row in table.rows] + [len(table.title)])
    lines = [f"  {table.title:{label + 2}}  " + "  ".join(f"{text:>{width}}" for text, width in zip(headings, widths))]
    for row, texts in zip(table.rows, cells):
        figures = "  ".join(f"{text:>{width}}" for text, width in zip(texts, widths))
        lines.append(f"  {ROLES[row.role]} {row.label:{label}}  {figures}")
        if row.note:
            lines.append(_wrap(row.note, "      "))
    return "\n".join(lines)


def _goals(section: Section) -> str:
    width = max(len(goal.name) for goal in section.goals)
    lines: List[str] = []
    for goal in section.goals:
        lines.append(
            f"  {goal.name:{width}}  {amount(goal.value, goal):>16}  must be {bound(goal):18}  {verdict(goal)}"
        )
    return "\n".join(lines)


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
