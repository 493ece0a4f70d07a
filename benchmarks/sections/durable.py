"""durable: events committed and synced by one process."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import distribution, median, ratio
from benchmarks.harness.size import Size
from benchmarks.peers.stores import REQUIRES, SLOW
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table

NAME = "durable"
STORER = "benchmarks.peers.storing:Storer"
CONTESTANTS = {
    "ours": ('UsageBuffer, "interval"', OURS, ""),
    "file": ("file: write + fdatasync per 500", LIMIT, ""),
    "sqlite3-ready": ("sqlite3 executemany 500, ready bytes", LIMIT, "rows that were encoded before"),
    "sqlite3": ("sqlite3 executemany 500, json.dumps", LIMIT, ""),
    "litequeue": ("litequeue put", PEER, "synced at checkpoints only"),
    "diskcache": ("diskcache Deque.append", PEER, "synced at checkpoints only"),
    "huey": ("huey SqliteStorage.enqueue", PEER, ""),
    "persist-queue": ("persist-queue SQLiteQueue.put", PEER, ""),
}
MODES = (("commit", 1), ("commit", 8), ("fsync", 1), ("fsync", 8))


def run(size: Size) -> Section:
    """The section."""
    rounds = size.pick(2, 4, 6)
    seconds = size.pick(0.3, 1.5, 5.0)
    sustained = size.pick(2.0, 20.0, 60.0)
    section = Section(
        NAME,
        f"events with 3 metadata keys put on disk as fast as they can be, {rounds} interleaved rounds of {seconds:g} s "
        f"after one to warm up, then {sustained:g} s of ours without a pause. A round ends when everything is synced.",
        "a disk other than the one this checkout is on, a delivery at the same time (see sustained), reading back.",
    )
    with Contest() as contest:
        for key in CONTESTANTS:
            options = {"peer": key, "folder": contest.folder()}
            contest.enter(key, STORER, options, requires=REQUIRES.get(key))
        contest.ready()
        played = contest.rounds(
            rounds,
            lambda key, worker, part: worker.call("round", seconds=seconds * part / (4 if key in SLOW else 1)),
        )
        long = contest.workers["ours"].call("round", seconds=sustained)
        section.missing = contest.missing
    modes = {mode: _mode(mode, rounds, seconds) for mode in MODES}
    rates = {key: median(one["events"] / one["wall"] for one in results) for key, results in played.items()}
    section.tables = [
        Table("events committed", _rows(played, rates, long)),
        Table("each call waits", _mode_rows(modes)),
    ]
    section.goals = _goals(rates, long, modes)
    section.charts = [_chart(rates)]
    return section


def _mode(mode: Any, rounds: int, seconds: float) -> Dict[str, Any]:
    durability, threads = mode
    with Contest() as contest:
        options = {"peer": "ours", "folder": contest.folder(), "buffer": {"durability": durability}}
        contest.one("ours", STORER, options)
        played = contest.rounds(
            rounds, lambda _, worker, part: worker.call("timed", threads=threads, seconds=seconds * part)
        )
    results = played["ours"]
    return {
        "rate": median(one["events"] / one["wall"] for one in results),
        "cpu": median(one["cpu"] / one["events"] * 1e6 for one in results),
        **distribution(value / 1000 for one in results for value in one["nanoseconds"]),
    }


def _rows(played: Dict[str, List[Dict[str, Any]]], rates: Dict[str, float], long: Dict[str, Any]) -> List[Row]:
    rows = [
        Row(
            CONTESTANTS[key][0],
            CONTESTANTS[key][1],
            {
                "events/s": rates[key],
                "us CPU/event": median(one["cpu"] / one["events"] * 1e6 for one in results),
                "peak MiB": results[-1]["peak"] / 2**20,
            },
            CONTESTANTS[key][2],
        )
        for key, results in played.items()
    ]
    figures = {
        "events/s": long["events"] / long["wall"],
        "us CPU/event": long["cpu"] / long["events"] * 1e6,
        "peak MiB": long["peak"] / 2**20,
    }
    rows.insert(1, Row(f'UsageBuffer, "interval", {long["wall"]:.0f} s on end', OURS, figures))
    return rows


def _mode_rows(modes: Dict[Any, Dict[str, Any]]) -> List[Row]:
    rows = []
    for (durability, threads), found in modes.items():
        names = {"events/s": found["rate"], "us CPU/event": found["cpu"]}
        names.update({f"{name} us": found[name] for name in ("p50", "p99", "p99.9", "max")})
        rows.append(Row(f'"{durability}", {threads} thread{"s" if threads > 1 else ""}', OURS, names))
    return rows


def _goals(rates: Dict[str, float], long: Dict[str, Any], modes: Dict[Any, Dict[str, Any]]) -> List[Goal]:
    def times(peer: str) -> Optional[float]:
        return ratio(rates["ours"], rates.get(peer))

    return [
        Goal("sustained rate", long["events"] / long["wall"], 120_000, True, "events/s"),
        Goal("CPU per event, all threads", long["cpu"] / long["events"] * 1e6, 8.0, False, "us"),
        Goal("rate / raw sqlite3 executemany of 500", times("sqlite3"), 1.0, True, is_ratio=True),
        Goal('"commit", 8 threads', modes["commit", 8]["rate"], 40_000, True, "events/s"),
        Goal('"commit", p50 of 1 thread', modes["commit", 1]["p50"], 60.0, False, "us"),
    ]


def _chart(rates: Dict[str, float]) -> Chart:
    series = [Series(CONTESTANTS[key][0], CONTESTANTS[key][1], [[0, rate]]) for key, rate in rates.items()]
    series.sort(key=lambda one: -one.points[0][1])
    return Chart(
        "durable",
        "Events committed per second, one process",
        "bars",
        "events per second (logarithmic)",
        "",
        series,
        log_x=True,
        limit=("sqlite3, 500 rows a transaction", rates["sqlite3"]),
    )
