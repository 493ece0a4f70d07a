"""disk: bytes of an event in the spool, and what is left after draining."""

from __future__ import annotations

import json
import zlib
from typing import List

from benchmarks.harness.contest import Contest
from benchmarks.harness.size import Size
from benchmarks.peers import events
from benchmarks.peers.stores import BATCH, REQUIRES, SLOW
from benchmarks.report.model import LIMIT, OURS, PEER, Goal, Row, Section, Table

NAME = "disk"
STORER = "benchmarks.peers.storing:Storer"
LABELS = {
    "ours": ("spool of UsageBuffer", OURS),
    "file": ("file of JSON lines", LIMIT),
    "sqlite3": ("sqlite3, a row an event", LIMIT),
    "litequeue": ("litequeue", PEER),
    "diskcache": ("diskcache Deque", PEER),
    "huey": ("huey SqliteStorage", PEER),
    "persist-queue": ("persist-queue SQLiteQueue", PEER),
}


def run(size: Size) -> Section:
    """The section."""
    count = size.pick(20_000, 300_000, 1_000_000)
    few = size.pick(500, 2000, 20_000)
    section = Section(
        NAME,
        f"{count:,} events with 3 metadata keys stored ({few:,} of them by the queues that commit each), then all of "
        "ours delivered to a service that takes no time.",
        "other metadata: random identifiers compress less, longer ones more.",
    )
    rows: List[Row] = [Row("JSON of an event, zlib per 500", LIMIT, {"bytes/event": _zlib_size()})]
    with Contest() as contest:
        for key in LABELS:
            options = {"peer": key, "folder": contest.folder()}
            contest.enter(key, STORER, options, requires=REQUIRES.get(key))
        contest.ready()
        for key, worker in contest.workers.items():
            label, role = LABELS[key]
            put = worker.call("round", count=few if key in SLOW else count)
            cost = {
                "bytes/event": worker.call("size") / put["stored"],
                "us CPU/event": put["cpu"] / put["stored"] * 1e6,
            }
            rows.append(Row(label, role, cost))
            if key == "file":
                line = cost["bytes/event"]
            if key == "ours":
                ours, drained = cost, worker.call("drain")
        section.missing = contest.missing
    rows.insert(0, rows.pop(1))
    section.tables = [
        Table("on disk", rows),
        Table("after draining", [Row(f"files of {count:,} events", OURS, {"MiB": drained["bytes"] / 2**20})]),
    ]
    section.goals = [
        Goal("bytes per event", ours["bytes/event"], 60.0, False, "bytes"),
        Goal("a line of JSON / an event in the spool", line / ours["bytes/event"], 2.0, True, is_ratio=True),
        Goal("files after draining", drained["bytes"] / 2**20, 1.0, False, "MiB"),
    ]
    return section


def _zlib_size() -> float:
    """Bytes of an event when 500 of them, as JSON with their keys, are compressed together."""
    usages = [
        [f"key-{number}", {"envelopeId": events.ENVELOPE, "amount": 1, "metadata": usage}]
        for number, usage in enumerate(events.metadata()[:BATCH])
    ]
    return len(zlib.compress(json.dumps(usages).encode(), 1)) / BATCH
