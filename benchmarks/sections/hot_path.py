"""hot-path: what one `record_usage` costs the thread that calls it."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import curve, distribution, ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.peers.recorders import REQUIRES
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table

NAME = "hot-path"
CALLER = "benchmarks.peers.calling:Caller"
RATE = 10_000.0  # calls a second: more than any peer here delivers, and what one busy service may record
RUN, BURST = 500, 20  # calls back to back: a loop, whose code stays in the caches, and a request or two

CONTESTANTS = {
    "ours": ("record_usage, buffered", OURS),
    "deque": ("deque.append of a tuple", LIMIT),
    "simple-queue": ("SimpleQueue.put of a tuple", LIMIT),
    "kafka": ("confluent-kafka produce + json.dumps", PEER),
    "opentelemetry": ("OpenTelemetry log record", PEER),
    "segment": ("segment track", PEER),
    "posthog": ("posthog capture", PEER),
}
SLOWEST = "synchronous"  # in a table with the others, but each of its calls takes a thousand times as long


class Kind(NamedTuple):
    """One way of calling."""

    title: str
    threads: int
    rate: float
    burst: int


KINDS = {
    "one": Kind(f"1 thread, {RUN} calls back to back, 10,000 a second", 1, RATE, RUN),
    "eight": Kind(f"8 threads, {RUN} calls back to back, 10,000 a second", 8, RATE, RUN),
    "bursts": Kind(f"1 thread, {BURST} calls back to back, 10,000 a second", 1, RATE, BURST),
    "paced": Kind("1 thread, 2,000 single calls a second", 1, 2000.0, 1),
}


def run(size: Size) -> Section:
    """The section."""
    rounds = size.pick(2, 3, 10)
    seconds = size.pick(0.25, 0.75, 2.0)
    section = Section(
        NAME,
        "microseconds of one call with 3 metadata keys, while spool and flusher work; the sink answers at once, so "
        f"that a delivering thread is always busy. {rounds} interleaved rounds of {seconds:g} s after one to warm up.",
        "a service that does other work between the calls (see service-tax), coalescing, and what a peer's own "
        "agent or broker costs elsewhere: OpenTelemetry's exporter only counts here, Kafka's broker is in its client.",
    )
    with Service() as service, Contest() as contest:
        for key in [*CONTESTANTS, SLOWEST]:
            options = {"peer": key, "url": service.url(key), "folder": contest.folder()}
            contest.enter(key, CALLER, options, requires=REQUIRES.get(key))
        contest.ready()
        found = {name: _play(contest, kind, rounds, seconds) for name, kind in KINDS.items()}
        accounts = {key: worker.call("settle", seconds=_patience(key)) for key, worker in contest.workers.items()}
        for key, worker in contest.workers.items():
            if key != "ours":  # it would go on delivering until its exit_timeout; it is known what it has
                worker.call("close")
        tallies = service.report()["tallies"]
        section.missing = contest.missing
    for name, kind in KINDS.items():
        section.tables.append(Table(f"{kind.title}, us", _rows(found[name])))
    section.tables.append(Table("what became of the events", _fates(accounts, tallies)))
    section.goals = _goals(found, accounts)
    section.charts = [_chart(found["one"])]
    return section


def _patience(key: str) -> float:
    return 0.0 if key == "ours" else 10.0  # ours delivers one POST an event; what waits is in its ledger


def _play(contest: Contest, kind: Kind, rounds: int, seconds: float) -> Dict[str, List[int]]:
    def play(key: str, worker: Any, part: float) -> List[int]:
        rate = kind.rate if key != SLOWEST else 400.0
        count = int(rate * seconds * part)
        result = worker.call("round", calls=count, threads=kind.threads, rate=rate, burst=kind.burst)
        return result["nanoseconds"]

    results = contest.rounds(rounds, play)
    return {key: [value for one in played for value in one] for key, played in results.items()}


def _rows(found: Dict[str, List[int]]) -> List[Row]:
    rows = []
    for key, nanoseconds in found.items():
        label, role = CONTESTANTS.get(key, ("record_usage, synchronous (no buffer)", OURS))
        rows.append(Row(label, role, {name: value / 1000 for name, value in distribution(nanoseconds).items()}))
    return rows


def _fates(accounts: Dict[str, Dict[str, Any]], tallies: Dict[str, Any]) -> List[Row]:
    rows = []
    for key, account in accounts.items():
        label, role = CONTESTANTS.get(key, ("record_usage, synchronous (no buffer)", OURS))
        if role == LIMIT:
            continue
        arrived = tallies.get(key, {}).get("events", account["delivered"])
        figures = {
            "calls": account["calls"],
            "arrived": arrived,
            "pending on disk": account["calls"] - account["dropped"] - account["delivered"] if key == "ours" else None,
            "dropped": account["dropped"] if account["dropped"] is not None else account["calls"] - (arrived or 0),
            "peak MiB": account["peak"] / 2**20,
        }
        rows.append(Row(label, role, figures))
    return rows


def _goals(found: Dict[str, Dict[str, List[int]]], accounts: Dict[str, Dict[str, Any]]) -> List[Goal]:
    ours = {name: {p: value / 1000 for p, value in distribution(kind["ours"]).items()} for name, kind in found.items()}

    def times(peer: str) -> Optional[float]:
        nanoseconds = found["one"].get(peer)
        return ratio(distribution(nanoseconds)["p50"] / 1000 if nanoseconds else None, ours["one"]["p50"])

    account = accounts["ours"]
    lost = account["calls"] - account["accepted"] + account["dropped"]
    return [
        Goal("p50, 1 thread", ours["one"]["p50"], 2.0, False, "us"),
        Goal("p99, 1 thread", ours["one"]["p99"], 10.0, False, "us"),
        Goal("p99.9, 1 thread", ours["one"]["p99.9"], 150.0, False, "us"),
        Goal("p50, 8 threads", ours["eight"]["p50"], 2.5, False, "us"),
        Goal("p99 at 2,000/s beside a busy sender", ours["paced"]["p99"], 35.0, False, "us"),
        Goal("p50 of segment / ours", times("segment"), 25.0, True, is_ratio=True),
        Goal("p50 of OpenTelemetry / ours", times("opentelemetry"), 10.0, True, is_ratio=True),
        Goal("p50 of confluent-kafka with json.dumps / ours", times("kafka"), 2.5, True, is_ratio=True),
        Goal("events of ours not in its ledger, or dropped", lost, 0, False, "events"),
    ]


def _chart(found: Dict[str, List[int]]) -> Chart:
    series = []
    for key, nanoseconds in found.items():
        label, role = CONTESTANTS.get(key, ("record_usage, synchronous", PEER))
        series.append(Series(label, role, [[x, y / 1000] for x, y in curve(nanoseconds)]))
    return Chart(
        "hot-path",
        f"What one call costs its caller (1 thread, {RUN} calls back to back)",
        "distribution",
        "share of the calls that took no longer",
        "microseconds",
        series,
        log_y=True,
    )
