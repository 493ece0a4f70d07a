"""engine: events published to a Redis server by one process, and the memory that they take there."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.engine import Engine, opened
from benchmarks.harness.figures import median, ratio
from benchmarks.harness.size import Size
from benchmarks.peers import engine_tool
from benchmarks.peers.publishers import REQUIRES
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import engine_store

NAME = "engine"
PUBLISHING = "benchmarks.peers.publishing:Publishing"
CONTESTANTS = {
    "ours": ("UsageBuffer(store=redis://…)", OURS, ""),
    "recorded": (
        "record_usage alone, nothing published meanwhile",
        LIMIT,
        "the fastest batch of 500 of a round: nothing in Python publishes more than it records",
    ),
    "ready": ("the store's script, ready batches", LIMIT, "batches of 500 that were encoded before, as ours are sent"),
    "pipelined-batches": (
        "XADD of ready batches, pipelined",
        LIMIT,
        "500 events each, 20 in a round trip, nothing kept",
    ),
    "pipelined-events": ("XADD of ready events, 500 a pipeline", LIMIT, "events that were encoded before"),
    engine_tool.NAME: (
        "XADD of a ready event, redis-benchmark",
        LIMIT,
        f"the engine's own tool in C, -P 100 -c 4, the same event {engine_tool.EVENTS:,} times a round",
    ),
    "each": ("XADD and json.dumps an event", PEER, ""),
    "rq": ("RQ enqueue", PEER, ""),
    "celery": ("Celery send_task", PEER, ""),
}
PLAYED_BY = {
    "recorded": "benchmarks.peers.publishing:Recording",
    engine_tool.NAME: "benchmarks.peers.engine_tool:Tool",
}
STORES = ("ours", "recorded", "ready")  # those that need the store
# What the engine does with ready-made bytes. Not the ready batches: there is no work for each event in one, and as
# events a second they come to more than a process can record.
READY_EVENTS = ("pipelined-events", engine_tool.NAME)


def run(size: Size) -> Section:
    """The section."""
    rounds, seconds = size.pick(1, 3, 6), size.pick(0.2, 0.7, 5.0)
    section = Section(
        NAME,
        f"events with 3 metadata keys published by one process as fast as it can, {rounds} interleaved rounds of "
        f"{seconds:g} s after one to warm up, to a server on loopback (append-only file, synced every second) that is "
        "emptied before each. A round ends when the server has answered for everything. The server has one core of "
        "the machine, the publisher another. What the engine does with ready-made bytes, of which half is asked for, "
        "is the faster of the two limits that send an entry an event; x402tools sends batches.",
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
    rows = [Row(CONTESTANTS[key][0], CONTESTANTS[key][1], dict(one), _note(key, found)) for key, one in found.items()]
    section.tables = [Table("published", rows)]
    section.goals = _goals(found)
    section.charts = [_chart(found)] if found else []
    return section


def _play(
    contest: Contest, engine: Engine, keys: List[str], rounds: int, seconds: float
) -> Dict[str, List[Dict[str, Any]]]:
    for key in keys:
        if key == engine_tool.NAME and engine_tool.program() is None:
            contest.missing[key] = engine_tool.MISSING
            continue
        options = {"peer": "ours" if key == "recorded" else key, "engine": engine.url}
        contest.enter(key, PLAYED_BY.get(key, PUBLISHING), options, requires=REQUIRES.get(options["peer"]))
    contest.ready()

    def play(key: str, worker: Any, part: float) -> Dict[str, Any]:
        engine.empty()
        cpu, memory = engine.cpu(), engine.memory()
        arguments = {} if key == engine_tool.NAME else {"seconds": seconds * part}  # the tool is given a number
        result = worker.call("round", **arguments)
        if key == "recorded":  # what the engine did meanwhile is not what was measured
            return result
        return {**result, "engine_cpu": engine.cpu() - cpu, "memory": engine.memory() - memory}

    return contest.rounds(rounds, play)


def _figures(results: List[Dict[str, Any]]) -> Dict[str, Optional[float]]:
    def an_event(name: str, unit: float) -> Optional[float]:
        return median(one[name] / one["events"] * unit for one in results) if name in results[0] else None

    return {
        "events/s": median(one["events"] / one["wall"] for one in results),
        "us CPU/event": an_event("cpu", 1e6),
        "us engine CPU/event": an_event("engine_cpu", 1e6),
        "engine bytes/event": an_event("memory", 1.0),
    }


def _note(key: str, found: Dict[str, Dict[str, Optional[float]]]) -> str:
    """What to know about its figures; of the ready batches, why nothing is judged by them."""
    note = CONTESTANTS[key][2]
    if key != "ready":
        return note
    note += "; not judged, because no work for an event is in them"
    ready, recorded = found[key]["events/s"], found.get("recorded", {}).get("events/s")
    if not ready or not recorded:
        return note
    return f"{note}: half of it is {ready / 2:,.0f} events/s, and one process records {recorded:,.0f}/s at the most"


def ready_events(found: Dict[str, Dict[str, Optional[float]]]) -> Optional[float]:
    """Ready-made events that the engine takes in a second, an entry each: the most that any way of sending reached.

    Returns:
        None when one of the ways is missing: the others alone would make the limit lower than it is.
    """
    rates = [found.get(key, {}).get("events/s") for key in READY_EVENTS]
    known = [one for one in rates if one is not None]
    return max(known) if len(known) == len(rates) else None


def _goals(found: Dict[str, Dict[str, Optional[float]]]) -> List[Goal]:
    def figure(key: str, name: str) -> Optional[float]:
        return found.get(key, {}).get(name)

    def times(peer: str) -> Optional[float]:
        return ratio(figure("ours", "events/s"), figure(peer, "events/s"))

    reason = "no server, no client library, no redis-benchmark, or no store for it here"
    rate = Goal("published by one process", figure("ours", "events/s"), 100_000, True, "events/s")
    goals = [
        rate,
        Goal(
            "rate / XADD of ready events, from Python or by redis-benchmark, whichever is faster",
            ratio(figure("ours", "events/s"), ready_events(found)),
            0.5,
            True,
            is_ratio=True,
        ),
        Goal("rate / XADD an event", times("each"), 10.0, True, is_ratio=True),
        Goal("rate / Celery", times("celery"), 50.0, True, is_ratio=True),
        Goal("memory in the engine", figure("ours", "engine bytes/event"), 60.0, False, "bytes/event"),
    ]
    for goal in goals:
        goal.reason = reason
    return goals


def _chart(found: Dict[str, Dict[str, Optional[float]]]) -> Chart:
    rates = {key: one["events/s"] or 0.0 for key, one in found.items() if key != "recorded"}
    series = [Series(CONTESTANTS[key][0], CONTESTANTS[key][1], [[0, rate]]) for key, rate in rates.items()]
    series.sort(key=lambda one: -one.points[0][1])
    title = "Events published to a Redis server per second, one process"
    return Chart(NAME, title, "bars", "events per second (logarithmic)", "", series, log_x=True)
