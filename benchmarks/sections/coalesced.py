"""coalesced: events of many groups, folded into one POST a group and window, from record to booked."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import median, ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.peers.recorders import REQUIRES
from benchmarks.peers.recording import new_progress, returned
from benchmarks.report.model import OURS, PEER, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import coalescing

NAME = "coalesced"
RECORDING = "benchmarks.peers.recording:Recording"
GROUPS = 1000
WINDOW = 1.0  # seconds
LABELS = {
    "ours": ("UsageBuffer(coalesce=True)", OURS),
    "single": ("UsageBuffer, a POST an event", OURS),
    "segment": ("segment, 100 events a POST", PEER),
}


def run(size: Size) -> Section:
    """The section."""
    rounds, seconds, kills = size.pick(1, 2, 3), size.pick(1.5, 5.0, 30.0), size.pick(1, 3, 10)
    section = Section(
        NAME,
        f"events of {GROUPS:,} groups recorded as fast as they are taken, for {seconds:g} s, then waited for until the "
        f"sink has booked them; windows of {WINDOW:g} s; {rounds} interleaved rounds after one to warm up. Then "
        f'{kills} times SIGKILL in the middle of recording (durability="commit"), and a new start on the same spool.',
        "groups that differ in the envelope; a service that does not honour idempotency keys; power cuts.",
    )
    there = coalescing.is_there()
    if not there:
        section.missing["coalesce"] = coalescing.MISSING
    found = _play(section, there, rounds, seconds)
    wrong = _killed(kills, seconds) if there else None
    section.tables = [Table("record to booked", [Row(*LABELS[key], dict(one)) for key, one in found.items()])]
    section.goals = _goals(found, wrong)
    section.charts = [_chart(found)]
    return section


def _play(section: Section, there: bool, rounds: int, seconds: float) -> Dict[str, Dict[str, Optional[float]]]:
    with Service() as service, Contest() as contest:
        for key in LABELS:
            options: Dict[str, Any] = {"peer": "segment" if key == "segment" else "ours", "url": service.url(key)}
            options.update(groups=GROUPS, folder=contest.folder())
            if key == "ours":
                options["buffer"] = {"coalesce": True, "coalesce_window": WINDOW, "on_queue_full": "block"}
            if key != "ours" or there:
                contest.enter(key, RECORDING, options, requires=REQUIRES.get(key))
        contest.ready()

        def play(key: str, worker: Any, part: float) -> Dict[str, Any]:
            before = service.tally(key)
            # One POST an event takes a hundred times as long to deliver, so it is given less to do.
            work: Dict[str, Any] = (
                {"count": int(1000 * seconds * part)} if key == "single" else {"seconds": seconds * part}
            )
            recorded = worker.call("record", waits=True, **work)
            settled = worker.call("settle", seconds=60.0)
            recorded.update(wall=recorded["wall"] + settled["wall"], cpu=recorded["cpu"] + settled["cpu"])
            after = service.tally(key)
            booked = {f"booked_{name}": after[name] - before[name] for name in ("posts", "events", "units")}
            return {**recorded, **booked}

        played = contest.rounds(rounds, play)
        section.missing.update(contest.missing)
    return {key: _figures(key, results) for key, results in played.items()}


def _figures(key: str, results: List[Dict[str, Any]]) -> Dict[str, Optional[float]]:
    booked = "booked_events" if key == "segment" else "booked_units"
    return {
        "events/s": median(one[booked] / one["wall"] for one in results),
        "us CPU/event": median(one["cpu"] / max(one[booked], 1) * 1e6 for one in results),
        "recorded": sum(one["events"] for one in results),
        "booked": sum(one[booked] for one in results),
        "POSTs": sum(one["booked_posts"] for one in results),
        "POSTs expected": sum(GROUPS * _windows(one) for one in results) if key == "ours" else None,
    }


def _windows(one: Dict[str, Any]) -> int:
    """Windows that were open in the round: one more than fit into its time, because it begins within one."""
    return math.ceil(float(one["wall"]) / WINDOW) + 1


def _killed(kills: int, seconds: float) -> int:
    """Units that the sink has too few or too many after kills; the calls under way when it is killed may be either."""
    wrong, threads = 0, 4
    for _ in range(kills):
        with Service() as service, Contest() as contest:
            folder = contest.folder()
            progress = new_progress(folder)
            buffer = {"coalesce": True, "coalesce_window": 0.2, "durability": "commit"}
            options = {"peer": "ours", "url": service.url("ours"), "groups": GROUPS, "folder": folder, "buffer": buffer}
            first = contest.one("first", RECORDING, {**options, "progress": progress})
            first.send("record", seconds=600.0, threads=threads)
            service.wait_for("ours", lambda tally: tally["posts"] > GROUPS / 2, seconds * 4)
            first.kill()
            second = contest.one("second", RECORDING, options)
            second.call("settle", seconds=60.0)
            units, least = service.tally("ours")["units"], returned(progress)
            wrong += max(least - units, 0) + max(units - least - threads, 0)
    return wrong


def _goals(found: Dict[str, Dict[str, Optional[float]]], wrong: Optional[int]) -> List[Goal]:
    ours, segment = found.get("ours", {}), found.get("segment", {})
    off: Optional[float] = None
    if ours:
        off = abs((ours["recorded"] or 0) - (ours["booked"] or 0))
    goals = [
        Goal("rate, record to booked", ours.get("events/s"), 90_000, True, "events/s"),
        Goal("rate / segment", ratio(ours.get("events/s"), segment.get("events/s")), 10.0, True, is_ratio=True),
        Goal(
            "POSTs / (groups x windows)",
            ratio(ours.get("POSTs"), ours.get("POSTs expected")),
            1.0,
            False,
            is_ratio=True,
        ),
        Goal("units booked but not recorded, or the reverse", off, 0, False, "units"),
        Goal("the same after SIGKILL in the middle", wrong, 0, False, "units"),
    ]
    for goal in goals:
        if goal.value is None:
            goal.reason = coalescing.MISSING if not ours else "segment is missing"
    return goals


def _chart(found: Dict[str, Dict[str, Optional[float]]]) -> Chart:
    series = [Series(*LABELS[key], [[0, one["events/s"] or 0.0]]) for key, one in found.items()]
    title = f"Events per second from record to booked, {GROUPS:,} groups"
    return Chart("coalesced", title, "bars", "events per second (logarithmic)", "", series, log_x=True)
