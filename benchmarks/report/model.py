"""What a section found, as plain values: rows, goals, charts. Everything that is shown or kept is made from these."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

OURS = "x402tools"
PEER = "peer"
LIMIT = "limit"


@dataclasses.dataclass
class Row:
    """One contestant.

    Attributes:
        label: what it did.
        role: OURS, PEER or LIMIT.
        figures: by the heading of the column; None is shown as a dash.
        note: what to know about these figures.
    """

    label: str
    role: str
    figures: Dict[str, Optional[float]]
    note: str = ""


@dataclasses.dataclass
class Goal:
    """What a section has to show.

    Attributes:
        name: which figure; stays the same, because `--check` compares by it.
        value: what was measured, or None.
        bound: what it must not pass.
        at_least: whether more is better.
        unit: of both; "" for a ratio.
        is_ratio: whether it was measured against something else in the same run, and so is fit to be compared with
            another run.
        reason: why there is no value.
    """

    name: str
    value: Optional[float]
    bound: float
    at_least: bool
    unit: str = ""
    is_ratio: bool = False
    reason: str = ""

    @property
    def reached(self) -> Optional[bool]:
        """None when it could not be measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclasses.dataclass
class Series:
    """One line, or one bar, of a chart."""

    label: str
    role: str
    points: List[List[float]]


@dataclasses.dataclass
class Chart:
    """A picture.

    Attributes:
        name: of its file.
        kind: "distribution" (points are [percent, value]), "bars" (one point [0, value] each) or "lines".
        limit: (label, value) of a line that is drawn in.
    """

    name: str
    title: str
    kind: str
    x_label: str
    y_label: str
    series: List[Series]
    log_x: bool = False
    log_y: bool = False
    limit: Optional[Tuple[str, float]] = None


@dataclasses.dataclass
class Table:
    """Rows with the same columns."""

    title: str
    rows: List[Row]


@dataclasses.dataclass
class Section:
    """What one section found.

    Attributes:
        name: of the section.
        work: what was done.
        not_measured: what these figures say nothing about.
        missing: contestants that could not take part, and why.
    """

    name: str
    work: str
    not_measured: str
    tables: List[Table] = dataclasses.field(default_factory=list)
    goals: List[Goal] = dataclasses.field(default_factory=list)
    charts: List[Chart] = dataclasses.field(default_factory=list)
    missing: Dict[str, str] = dataclasses.field(default_factory=dict)
    size: str = ""
    seconds: float = 0.0
    load: List[float] = dataclasses.field(default_factory=list)
    machine: Dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: Dict[str, str] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> Dict[str, Any]:
        """For JSON; says of each goal whether it was reached."""
        result = dataclasses.asdict(self)
        for goal, kept in zip(self.goals, result["goals"]):
            kept["reached"] = goal.reached
        return result

    @classmethod
    def from_dict(cls, kept: Dict[str, Any]) -> Section:
        """What `as_dict` returned."""
        fields = dict(kept)
        fields["tables"] = [Table(table["title"], [Row(**row) for row in table["rows"]]) for table in fields["tables"]]
        fields["goals"] = [
            Goal(**{name: value for name, value in goal.items() if name != "reached"}) for goal in fields["goals"]
        ]
        fields["charts"] = [
            Chart(**{**chart, "series": [Series(**series) for series in chart["series"]]}) for chart in fields["charts"]
        ]
        for chart in fields["charts"]:
            chart.limit = tuple(chart.limit) if chart.limit else None
        return cls(**fields)
