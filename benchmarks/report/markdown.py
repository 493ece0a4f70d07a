"""RESULTS.md, made from the kept JSON of every section; nothing in it is written by hand."""

from __future__ import annotations

from typing import Dict, List, Sequence

from benchmarks.harness.machine import line
from benchmarks.report.model import OURS, Section, Table
from benchmarks.report.words import amount, bound, columns, number, verdict


def document(sections: Sequence[Section]) -> str:
    """The whole file."""
    lines = [
        "# What the benchmarks found",
        "",
        "Written by `make bench` from the JSON files in `results/`. Bold rows are x402tools. A limit is no competitor:",
        "it shows the least there is. What counts are ratios within one run; figures of two machines do not compare.",
        "",
        "## Every goal",
        "",
        "| section | goal | measured | must be | |",
        "|---|---|---:|---:|---|",
    ]
    for section in sections:
        lines += [
            f"| {section.name} | {goal.name} | {amount(goal.value, goal)} | {bound(goal)} | {verdict(goal)} |"
            for goal in section.goals
        ]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines) + "\n"


def _section(section: Section) -> List[str]:
    lines = ["", f"## {section.name}", "", section.work, ""]
    for table in section.tables:
        lines += [*_table(table), ""]
    lines += [f"![{chart.title}](results/{chart.name}.svg)" for chart in section.charts]
    lines += ["", f"Not measured: {section.not_measured}", ""]
    lines += [f"Missing: {peer}: {why}" for peer, why in section.missing.items()]
    lines += [
        f"Size {section.size}, {section.seconds:.0f} s. {line(section.machine)}.",
        "",
        _versions(section.versions),
    ]
    return lines


def _table(table: Table) -> List[str]:
    headings = columns(table)
    lines = [f"| {table.title} | " + " | ".join(headings) + " | |", "|---|" + "---:|" * len(headings) + "---|"]
    for row in table.rows:
        label = f"**{row.label}**" if row.role == OURS else row.label
        figures = " | ".join(number(row.figures.get(heading)) for heading in headings)
        role = "" if row.role == OURS else row.role
        lines.append(f"| {label} | {figures} | {'; '.join(text for text in (role, row.note) if text)} |")
    return lines


def _versions(versions: Dict[str, str]) -> str:
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
