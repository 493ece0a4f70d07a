"""What is shown of a section's results, and what is kept of them."""

from __future__ import annotations

import json
import pathlib
import xml.etree.ElementTree as ElementTree
from typing import Optional

import pytest

from benchmarks.report import charts, markdown, results, terminal
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table


def make_section() -> Section:
    """With one of everything."""
    section = Section("disk", "events stored", "other disks", size="quick", seconds=1.0, load=[0.1])
    section.tables = [
        Table("on disk", [Row("ours", OURS, {"bytes": 12.0}), Row("other", PEER, {"bytes": 240.0, "us": None}, "slow")])
    ]
    section.goals = [Goal("bytes", 12.0, 60.0, False, "bytes"), Goal("ratio", None, 2.0, True, is_ratio=True)]
    series = [Series("ours <&>", OURS, [[1, 2.0], [10, 3.0]]), Series("limit", LIMIT, [[1, 1.0], [10, 1.5]])]
    section.charts = [Chart("disk", "Bytes", "lines", "x", "y", series, log_x=True, limit=("least", 1.0))]
    section.missing = {"huey": "cannot be installed on this Python"}
    section.machine = {
        "python": "CPython 3.11.7",
        "sqlite": "3.40.1",
        "system": "Linux",
        "processor": "x",
        "cores": 2,
        "memory_gib": 4.0,
        "load": [0.1],
        "additions_ms": [40.0, 41.0],
        "time": "2025-11-25",
    }
    return section


@pytest.mark.parametrize(
    ("value", "at_least", "reached"),
    [(60.0, False, True), (60.1, False, False), (60.0, True, True), (59.9, True, False), (None, True, None)],
)
def test_a_goal_is_reached_at_its_bound(value: Optional[float], at_least: bool, reached: Optional[bool]) -> None:
    """And nobody knows when it was not measured."""
    assert Goal("g", value, 60.0, at_least).reached is reached


def test_a_section_survives_being_kept(tmp_path: pathlib.Path) -> None:
    """What is read from its JSON is what was written."""
    section = make_section()

    results.save(tmp_path / "results", [section], ["disk"])
    [kept] = results.load(tmp_path / "results", ["disk", "never-run"])

    assert kept == section
    assert json.loads((tmp_path / "results" / "disk.json").read_text())["goals"][0]["reached"] is True
    assert (tmp_path / "results" / "disk.svg").exists()
    assert "| disk | bytes | 12 bytes | <= 60 bytes | reached |" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize("text", [terminal.show(make_section()), markdown.document([make_section()])])
def test_both_outputs_name_what_is_missing_and_what_is_not_measured(text: str) -> None:
    """And the goal that could not be measured, with a reason."""
    assert "huey" in text
    assert "cannot be installed on this Python" in text
    assert "other disks" in text
    assert "not measured: a contestant is missing" in text


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("bars", [[0, 120_000.0]]),
        ("bars", [[0, 0.0]]),
        ("lines", [[1, 5.0]]),
        ("lines", [[1, 5.0], [1000, 5.0]]),
        ("distribution", [[50, 1.5], [99, 12.0], [99.9, 140.0]]),
    ],
)
@pytest.mark.parametrize("log", [True, False])
def test_a_chart_is_a_picture(kind: str, points: list, log: bool) -> None:
    """Well-formed, its names escaped, every number a number."""
    series = [Series("ours <&>", OURS, points), Series("limit", LIMIT, points)]

    drawn = charts.draw(Chart("c", "A & B", kind, "x", "y", series, log_x=log, log_y=log, limit=("most", 200_000.0)))

    root = ElementTree.fromstring(drawn)  # noqa: S314 - written a line above
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "A & B" in texts
    assert "ours <&>" in texts
    assert "nan" not in drawn
    assert "inf" not in drawn
