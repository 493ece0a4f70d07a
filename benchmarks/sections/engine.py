"""engine: events published to a Redis server by one process, and the memory that they take there."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.engine import Engine, opened
from benchmarks.harness.figures import median, ratio
from benchmarks.harness.size import Size
from benchmarks.peers.publishers import REQUIRES
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import engine_store

NAME = "engine"
PUBLISHING = "benchmarks.peers.publishing:Publishing"
CONTESTANTS = {
    "ours": ("UsageBuffer(store=redis://…)", OURS, ""),
    "ready": ("the store's script, ready batches", LIMIT, "batches of 500 that were encoded before"),
    "pipelined-batches": (
        "XADD of ready batches, pipelined",
        LIMIT,
        "500 events each, 20 in a round trip, nothing kept",
    ),
    "pipelined-events": ("XADD of ready events, 500 a pipeline", LIMIT, "events that were encoded before"),
    "each": ("XADD and json.dumps an event", PEER, ""),
    "rq": ("RQ enqueue", PEER, ""),
    "celery": ("Celery send_task", PEER, ""),
}
STORES = ("ours", "ready")  # those that need the store
LIMITS = {"ready": "the store's script, ready batches", "pipelined-events": "XADD of ready events, 500 a pipeline"}


def run(size: Size) -> Section:
    """The section."""
    rounds, seconds = size.pick(1, 3, 6), size.pick(0.2, 0.7, 5.0)
    section = Section(
        NAME,
        f"events with 3 metadata keys published by one process as fast as it can, {rounds} interleaved rounds of "
        f"{seconds:g} s after one to warm up, to a server on loopback (append-only file, synced every second) that is "
        "emptied before each. A round ends when the server has answered for everything. The server has one core of "
        "the machine, the publisher another.",
        "a network, TLS, a replica (WAIT), a cluster; the folding and the POSTs are in the section workers.",
    )
    with Contest() as contest:
        no_store = engine_store.why_missing()
        if no_store:
            section.missing["x402tools"] = no_store
        engine, why = opened(contest.folder())
        if engine is None:
            section.missing["redis-server"] = f"{why}: the whole section is left out"
            section.goals = _goals({})
            return section
        with engine:
            played = _play(
                contest, engine, [key for key in CONTESTANTS if not (no_store and key in STORES)], rounds, seconds
            )
        section.missing.update(contest.missing)
    found = {key: _figures(results) for key, results in played.items()}
    section.tables = [
        Table(
            "published",
            [
                Row(CONTESTANTS[key][0], CONTESTANTS[key][1], dict(one), CONTESTANTS[key][2])
                for key, one in found.items()
            ],
        )
    ]
    section.goals = _goals(found)
    section.charts = [_chart(found)] if found else []
    return section


def _play(
    contest: Contest, engine: Engine, keys: List[str], rounds: int, seconds: float
) -> Dict[str, List[Dict[str, Any]]]:
    for key in keys:
        contest.enter(key, PUBLISHING, {"peer": key, "engine": engine.url}, requires=REQUIRES[key])
    contest.ready()

    def play(_: str, worker: Any, part: float) -> Dict[str, Any]:
        engine.empty()
        cpu, memory = engine.cpu(), engine.memory()
        result = worker.call("round", seconds=seconds * part)
        return {**result, "engine_cpu": engine.cpu() - cpu, "memory": engine.memory() - memory}

    return contest.rounds(rounds, play)


def _figures(results: List[Dict[str, Any]]) -> Dict[str, Optional[float]]:
    return {
        "events/s": median(one["events"] / one["wall"] for one in results),
        "us CPU/event": median(one["cpu"] / one["events"] * 1e6 for one in results),
        "us engine CPU/event": median(one["engine_cpu"] / one["events"] * 1e6 for one in results),
        "engine bytes/event": median(one["memory"] / one["events"] for one in results),
    }


def _goals(found: Dict[str, Dict[str, Optional[float]]]) -> List[Goal]:
    def figure(key: str, name: str) -> Optional[float]:
        return found.get(key, {}).get(name)

    def times(peer: str) -> Optional[float]:
        return ratio(figure("ours", "events/s"), figure(peer, "events/s"))

    reason = "no server, no client library, or no store for it here"
    rate = Goal("published by one process", figure("ours", "events/s"), 100_000, True, "events/s")
    goals = [
        rate,
        *(Goal(f"rate / {words}", times(key), 0.5, True, is_ratio=True) for key, words in LIMITS.items()),
        Goal("rate / XADD an event", times("each"), 10.0, True, is_ratio=True),
        Goal("rate / Celery", times("celery"), 50.0, True, is_ratio=True),
        Goal("memory in the engine", figure("ours", "engine bytes/event"), 60.0, False, "bytes/event"),
    ]
    for goal in goals:
        goal.reason = reason
    return goals


def _chart(found: Dict[str, Dict[str, Optional[float]]]) -> Chart:
    rates = {key: one["events/s"] or 0.0 for key, one in found.items()}
    series = [Series(CONTESTANTS[key][0], CONTESTANTS[key][1], [[0, rate]]) for key, rate in rates.items()]
    series.sort(key=lambda one: -one.points[0][1])
    title = "Events published to a Redis server per second, one process"
    return Chart(NAME, title, "bars", "events per second (logarithmic)", "", series, log_x=True)
