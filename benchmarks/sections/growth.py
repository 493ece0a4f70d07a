"""growth: what an event costs when there is more of something."""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import distribution, median
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.report.model import LIMIT, OURS, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import coalescing

NAME = "growth"
STORER = "benchmarks.peers.storing:Storer"
RECORDING = "benchmarks.peers.recording:Recording"

WRITERS = 8  # processes that store into one spool,
WRITES = 5000.0  # so many events a second in all,
BURST = 100  # so many in a commit, as many as `flush_at` has by default

Curve = Dict[int, float]  # CPU microseconds of an event, by how many there are


class Kind(NamedTuple):
    """What there is more of, and how the cost of an event may grow with it: its power, 0 for flat, 1 for linear.

    The bounds are a little above 0, because a power fitted to measured values is never 0 exactly: 0.1 is a quarter
    more for ten times as much.
    """

    key: str
    title: str
    x_label: str
    power: float


PENDING = Kind("growth-pending", "events pending", "events pending in the spool", 0.1)
GROUPS = Kind("growth-groups", "groups", "groups of a window", 0.25)
THREADS = Kind("growth-threads", "threads", "threads that record", 0.25)
PROCESSES = Kind("growth-processes", "processes on one spool", "processes that record into one spool", 0.25)
METADATA = Kind("growth-metadata", "metadata size", "metadata keys of an event", 1.0)


def run(size: Size) -> Section:
    """The section."""
    rounds = size.pick(2, 3, 5)
    section = Section(
        NAME,
        "CPU of an event, all threads and processes, from record_usage until it is synced (of groups: until it is "
        f"booked). The median of {rounds} rounds a point. The power is that of the straight line through the points on "
        "logarithmic axes: 0 is flat, 1 grows as the number does.",
        "waiting, but for the last table: these are CPU times. More than one of these growing at a time.",
    )
    there = coalescing.is_there()
    if not there:
        section.missing["coalesce"] = coalescing.MISSING
    curves: Dict[Kind, Optional[Curve]] = {
        PENDING: _pending(size.pick((10_000, 100_000), (10_000, 100_000, 1_000_000), _decades(4, 7)), rounds),
        GROUPS: _groups(size.pick((10, 1000), (10, 100, 1000, 10_000), _decades(1, 5)), rounds) if there else None,
        THREADS: _threads(size.pick((1, 8), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16, 32, 64)), size),
        PROCESSES: _processes(size.pick((1, 4), (1, 2, 4, 8), (1, 2, 4, 8, 16)), size),
        METADATA: _metadata(size.pick((3, 30), (1, 3, 10, 30, 100), (1, 3, 10, 30, 100, 300)), rounds, size),
    }
    for kind, curve in curves.items():
        if curve:
            row = Row("us CPU of an event", OURS, {f"{x:,}": cost for x, cost in curve.items()})
            section.tables.append(Table(kind.title, [row]))
            section.charts.append(_chart(kind, curve))
        power = fitted_power(curve) if curve else None
        reason = coalescing.MISSING
        section.goals.append(Goal(f"power of the cost in {kind.title}", power, kind.power, False, reason=reason))
    waits = _waits(size.pick(1, 2, 5), size.pick(0.5, 2.5, 10.0))
    title = f"wait for the commit of {BURST} events, {WRITES:,.0f} a second in all, us"
    rows = [Row(f"{count} process{'es' if count > 1 else ''}", OURS, dict(found)) for count, found in waits.items()]
    section.tables.append(Table(title, rows))
    more = (waits[WRITERS]["p99"] - waits[1]["p99"]) / 1000
    name = f"p99 of a commit, {WRITERS} processes at {WRITES:,.0f}/s on one spool, beyond that of one process"
    section.goals.append(Goal(name, more, 5.0, False, "ms"))
    return section


def fitted_power(curve: Curve) -> float:
    """The slope of the least-squares line through the logarithms."""
    xs, ys = [math.log(x) for x in curve], [math.log(max(y, 1e-9)) for y in curve.values()]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys))
    return above / math.fsum((x - middle_x) ** 2 for x in xs)


def _decades(first: int, last: int) -> Sequence[int]:
    return [10**power for power in range(first, last + 1)]


def _cost(results: List[Dict[str, Any]]) -> float:
    return float(sum(one["cpu"] for one in results) / sum(one["events"] for one in results) * 1e6)


def _pending(steps: Sequence[int], rounds: int) -> Curve:
    """With so many in the spool, 20,000 more."""
    curve: Curve = {}
    with Contest() as contest:
        worker = contest.one("ours", STORER, {"peer": "ours", "folder": contest.folder()})
        stored = 0
        for step in steps:
            stored = worker.call("round", count=max(step - stored, 0))["stored"]
            curve[step] = median(_cost([worker.call("round", count=20_000)]) for _ in range(rounds))
            stored += 20_000 * rounds
    return curve


def _groups(steps: Sequence[int], rounds: int) -> Curve:
    """Recorded and booked, coalesced in windows of a second."""
    curve: Curve = {}
    with Service() as service:
        for groups in steps:
            with Contest() as contest:
                buffer = {"coalesce": True, "coalesce_window": 1.0, "on_queue_full": "block"}
                options = {"peer": "ours", "url": service.url(f"groups-{groups}"), "groups": groups, "buffer": buffer}
                worker = contest.one("ours", RECORDING, {**options, "folder": contest.folder()})
                curve[groups] = median(_until_settled(worker, 50_000, patience=60.0) for _ in range(rounds))
    return curve


def _until_settled(worker: Any, count: int, threads: int = 1, patience: float = 0.0) -> float:
    """Until all is settled: booked, or where nobody delivers stored."""
    recorded = worker.call("record", count=count, threads=threads)
    settled = worker.call("settle", seconds=patience)
    return float((recorded["cpu"] + settled["cpu"]) / recorded["events"] * 1e6)


def _threads(steps: Sequence[int], size: Size) -> Curve:
    """Recording from so many threads."""
    curve: Curve = {}
    count = size.pick(20_000, 100_000, 200_000)
    for threads in steps:
        with Contest() as contest:
            buffer = {"deliver": False, "on_queue_full": "block"}
            options = {"peer": "ours", "url": "http://127.0.0.1:9/none", "folder": contest.folder(), "buffer": buffer}
            worker = contest.one("ours", RECORDING, options)
            curve[threads] = _until_settled(worker, count // threads, threads)
    return curve


def _processes(steps: Sequence[int], size: Size) -> Curve:
    """So many processes that record into one spool at once."""
    curve: Curve = {}
    for processes in steps:
        with Contest() as contest:
            folder = contest.folder()
            for number in range(processes):
                contest.enter(str(number), STORER, {"peer": "ours", "folder": folder})
            contest.ready()
            for worker in contest.workers.values():
                worker.send("round", count=size.pick(20_000, 50_000, 100_000))
            curve[processes] = _cost([worker.receive() for worker in contest.workers.values()])
    return curve


def _waits(rounds: int, seconds: float) -> Dict[int, Dict[str, float]]:
    """How long a commit takes, microseconds, with one process and with several on one spool, in interleaved rounds."""
    taken: Dict[int, List[float]] = {1: [], WRITERS: []}
    for _ in range(rounds):
        for processes, values in taken.items():
            values += _writers(processes, seconds)
    return {processes: distribution(values) for processes, values in taken.items()}


def _writers(processes: int, seconds: float) -> List[float]:
    """So many processes record into one spool at a pace; how long each waited for each of its commits."""
    with Contest() as contest:
        options = {"peer": "ours", "folder": contest.folder()}
        for number in range(processes):
            contest.enter(str(number), STORER, options)
        contest.ready()
        for number, worker in enumerate(contest.workers.values()):
            worker.send("commits", seconds=seconds, rate=WRITES / processes, burst=BURST, after=number * BURST / WRITES)
        results = [worker.receive() for worker in contest.workers.values()]
    return [value / 1000 for one in results for value in one["nanoseconds"]]


def _metadata(steps: Sequence[int], rounds: int, size: Size) -> Curve:
    """Events with so many keys."""
    curve: Curve = {}
    for keys in steps:
        with Contest() as contest:
            worker = contest.one("ours", STORER, {"peer": "ours", "folder": contest.folder(), "keys": keys})
            count = size.pick(5000, 20_000, 50_000)
            curve[keys] = median(_cost([worker.call("round", count=count)]) for _ in range(rounds))
    return curve


def _chart(kind: Kind, curve: Curve) -> Chart:
    first = next(iter(curve))
    linear = [[x, curve[first] * (x / first) ** kind.power] for x in curve]
    series = [
        Series("an event", OURS, [[x, cost] for x, cost in curve.items()]),
        Series(f"what the goal allows (power {kind.power:g})", LIMIT, linear),
    ]
    title = f"Cost of an event against {kind.title}"
    return Chart(kind.key, title, "lines", kind.x_label, "CPU us an event", series, log_x=True, log_y=True)
