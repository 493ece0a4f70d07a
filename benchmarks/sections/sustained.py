"""sustained: a service that computes all the time and records 5,000 events a second."""

from __future__ import annotations

from typing import Any, Dict, List

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import median
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.report.model import LIMIT, OURS, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import coalescing

NAME = "sustained"
RECORDING = "benchmarks.peers.recording:Recording"
RATE = 5000.0
GROUPS = 1000
WORK = 7000  # numbers added up: about a fifth of a millisecond, as long as one of 5,000 requests has
SAMPLES = 40
# Seconds of a window. In the process itself a longer one would only add to what the POSTs take.
ELSEWHERE, HERE = 1.0, 0.5


def run(size: Size) -> Section:
    """The section."""
    seconds, rounds = size.pick(5.0, 40.0, 300.0), size.pick(2, 4, 8)
    section = Section(
        NAME,
        f"{RATE:,.0f} events/s for {seconds:g} s beside a main thread that never rests, {GROUPS:,} groups, delivered "
        f"coalesced by another process (deliver=False, window {ELSEWHERE:g} s), and once more for {seconds / 2:g} s "
        f"with the process delivering itself (window {HERE:g} s): there each POST has to win the interpreter lock from "
        "the main thread, which gives it up every 5 ms. Before it what metering costs at that pace with nobody "
        f"delivering: {rounds} rounds of {seconds / 10:g} s; CPU by the clocks of the threads.",
        "several services on one machine; hours. The full five minutes are run with --full.",
    )
    there = coalescing.is_there()
    if not there:
        section.missing["coalesce"] = f"{coalescing.MISSING}; a POST an event is sent instead, and falls behind"
    share = _share(rounds, seconds / 10)
    served = _serve(seconds, there, elsewhere=True)
    here = _serve(seconds / 2, there, elsewhere=False)
    memory, ages = served["memory"], served["ages"]
    growth = _part(memory, 3) - _part(memory, 1)
    section.tables = [
        Table(
            "metering without delivery",
            [
                Row("CPU of an event, in record_usage", OURS, {"us": share["calls"]}),
                Row("CPU of an event, in the other threads", OURS, {"us": share["threads"]}),
            ],
        ),
        Table(
            "with delivery",
            [_row("delivered by another process", served), _row("delivered by the process itself", here)],
        ),
    ]
    section.goals = [
        Goal("metering without delivery", sum(share.values()) * RATE / 1e6 * 100, 10.0, False, "% of a core"),
        Goal("memory, last quarter beyond the second", growth, 2.0, False, "MiB"),
        Goal("age of the oldest pending event, another process delivers", max(ages), 2.0, False, "s"),
        Goal("age of the oldest pending event, delivered in the process", max(here["ages"]), 2.0, False, "s"),
        Goal(
            "events recorded but neither booked nor pending",
            abs(served["lost"]) + abs(here["lost"]),
            0,
            False,
            "events",
        ),
    ]
    section.charts = [_chart(memory, ages, served["wall"])]
    return section


def _share(rounds: int, seconds: float) -> Dict[str, float]:
    """CPU microseconds of an event at RATE, in the calls and in the other threads."""
    with Contest() as contest:
        options = {"peer": "ours", "url": "http://127.0.0.1:9/none", "folder": contest.folder()}
        contest.one("ours", RECORDING, {**options, "buffer": {"deliver": False}})
        played = contest.rounds(
            rounds, lambda _, worker, part: worker.call("metering", seconds=seconds * part, rate=RATE, work=WORK)
        )["ours"]
    return {name: median(one[name] for one in played) for name in ("calls", "threads")}


def _serve(seconds: float, there: bool, *, elsewhere: bool) -> Dict[str, Any]:
    """Serves, with a process beside it that delivers or without; then waits until the rest is delivered."""
    folds: Dict[str, Any] = {"coalesce": True, "coalesce_window": ELSEWHERE if elsewhere else HERE} if there else {}
    with Service() as service, Contest() as contest:
        options = {"peer": "ours", "url": service.url("ours"), "groups": GROUPS, "folder": contest.folder()}
        buffer = {**folds, "deliver": False} if elsewhere else folds
        worker = contest.one("ours", RECORDING, {**options, "buffer": buffer})
        if elsewhere:
            contest.one("deliverer", RECORDING, {**options, "buffer": folds})
        served: Dict[str, Any] = worker.call("serve", seconds=seconds, rate=RATE, work=WORK, samples=SAMPLES)
        # Coalesced, the rest is delivered in a moment; otherwise what is pending is in the ledger.
        account = worker.call("settle", seconds=10.0 if there else 0.0)
        tally = service.tally("ours")
    lost = served["events"] - account["accepted"] + account["dropped"]
    return {**served, "delivered": account["delivered"], "posts": tally["posts"], "lost": lost}


def _row(label: str, served: Dict[str, Any]) -> Row:
    memory = served["memory"]
    figures = {
        "events/s": served["events"] / served["wall"],
        "seconds": served["wall"],
        "delivered": served["delivered"],
        "POSTs": served["posts"],
        "RSS MiB, start": memory[0],
        "RSS MiB, most": max(memory),
        "growth MiB": _part(memory, 3) - _part(memory, 1),
        "oldest pending s": max(served["ages"]),
    }
    return Row(label, OURS, figures)


def _part(values: List[float], quarter: int) -> float:
    """The median of a quarter of the samples, the first is 0."""
    length = len(values) // 4
    return median(values[quarter * length : (quarter + 1) * length])


def _chart(memory: List[float], ages: List[float], seconds: float) -> Chart:
    def points(values: List[float]) -> List[List[float]]:
        return [[(number + 1) * seconds / len(values), value] for number, value in enumerate(values)]

    series = [
        Series("memory of the process, MiB", OURS, points(memory)),
        Series("oldest pending event, s", LIMIT, points(ages)),
    ]
    return Chart("sustained", "5,000 events/s beside a busy service", "lines", "seconds", "MiB, seconds", series)
