"""The results folder: a JSON file a section, the charts, and RESULTS.md beside the folder."""

from __future__ import annotations

import json
import pathlib
from typing import List, Sequence

from benchmarks.report import charts, markdown
from benchmarks.report.model import Section

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "results"


def load(folder: pathlib.Path, order: Sequence[str]) -> List[Section]:
    """The kept sections, in the given order; those never run are left out."""
    paths = [folder / f"{name}.json" for name in order]
    return [Section.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]


def save(folder: pathlib.Path, sections: Sequence[Section], order: Sequence[str]) -> None:
    """Keeps these sections, and makes RESULTS.md anew from all that are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        (folder / f"{section.name}.json").write_text(json.dumps(section.as_dict(), indent=1) + "\n", encoding="utf-8")
        for chart in section.charts:
            (folder / f"{chart.name}.svg").write_text(charts.draw(chart), encoding="utf-8")
    text = markdown.document(load(folder, order))
    (folder.parent / "RESULTS.md").write_text(text, encoding="utf-8")
