"""backlog: a start with very many events pending."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any, Dict, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.report.model import OURS, Goal, Row, Section, Table

NAME = "backlog"
RECORDING = "benchmarks.peers.recording:Recording"
STORER = "benchmarks.peers.storing:Storer"
FEW = 10_000


def run(size: Size) -> Section:
    """The section."""
    many, seconds, rounds = size.pick(100_000, 1_000_000, 1_000_000), size.pick(1.5, 4.0, 4.0), size.pick(1, 3, 5)
    section = Section(
        NAME,
        f"a spool with {many:,} events pending is opened by a new process, which then delivers, one POST an event, for "
        f"{seconds:g} s; beside it one with {FEW:,}. {rounds} interleaved rounds, the best of each.",
        "draining the whole backlog; a backlog of sealed POSTs that all failed before.",
    )
    with Contest() as contest:
        folders = {count: _filled(contest, count) for count in (FEW, many)}
        found: Dict[int, Dict[str, float]] = {}
        for _ in range(rounds):
            for count, folder in folders.items():
                found[count] = _best(found.get(count), _open(folder, seconds))
    section.tables = [
        Table("opened with so many pending", [Row(f"{count:,}", OURS, dict(one)) for count, one in found.items()])
    ]
    section.goals = [
        Goal("first POST after opening", found[many]["first POST s"], 0.5, False, "s"),
        Goal("memory beyond that before opening", found[many]["+MiB"], 40.0, False, "MiB"),
        Goal(
            f"drain rate / that at {FEW:,}",
            ratio(found[many]["POSTs/s"], found[FEW]["POSTs/s"]),
            0.9,
            True,
            is_ratio=True,
        ),
    ]
    return section


def _filled(contest: Contest, count: int) -> str:
    folder = contest.folder()
    worker = contest.one(f"fill {count}", STORER, {"peer": "ours", "folder": folder})
    stored = worker.call("round", count=count)["stored"]
    assert stored >= count
    contest.workers.pop(f"fill {count}").close()
    return folder


def _open(folder: str, seconds: float) -> Dict[str, float]:
    """Opens a copy of the spool for a while: a spool remembers where its events go, and each sink has its own port."""
    with Service() as service, Contest() as contest:
        options = {"peer": "ours", "url": service.url("ours"), "folder": _copy(contest, folder)}
        worker = contest.one("ours", RECORDING, {**options, "buffer": {"exit_timeout": 0.0}})
        watched: Dict[str, Any] = worker.call("watch", seconds=seconds)
        tally = service.tally("ours")
    return {
        "first POST s": tally["first"] - watched["opened"],
        "POSTs/s": tally["posts"] / (tally["last"] - tally["first"]),
        "+MiB": watched["most"] - watched["before"],
    }


def _copy(contest: Contest, folder: str) -> str:
    made = contest.folder()
    for file in pathlib.Path(folder).iterdir():
        shutil.copy2(file, made)
    return made


def _best(before: Optional[Dict[str, float]], now: Dict[str, float]) -> Dict[str, float]:
    """What else the machine does only ever makes it slower."""
    if before is None:
        return now
    return {
        "first POST s": min(before["first POST s"], now["first POST s"]),
        "POSTs/s": max(before["POSTs/s"], now["POSTs/s"]),
        "+MiB": max(before["+MiB"], now["+MiB"]),
    }
