"""delivery: one POST an event, over loopback and over round trips of 20 and 50 ms, and beside a busy main thread."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import median, ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.peers import catalogue
from benchmarks.peers.senders import REQUIRES
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table

NAME = "delivery"
POSTER = "benchmarks.peers.posting:Poster"
BUFFERED = "benchmarks.peers.posting:Buffered"
IDLE = "benchmarks.peers.posting:Idle"
LABELS = {
    "ours": ("recorded, stored and delivered", OURS),
    "synchronous": ("record_usage without a buffer", OURS),
    "published": ("x402tools 1.0.0 record_usage", PEER),
    "session": ("requests Session.post", PEER),
    "urllib3": ("urllib3 pool", PEER),
    "http.client": ("http.client", LIMIT),
    "pycurl": ("pycurl", LIMIT),
    "socket": ("raw socket, ready bytes", LIMIT),
    "idle": ("nobody delivers", LIMIT),
}
Found = Dict[str, Dict[str, float]]


def run(size: Size) -> Section:
    """The section."""
    rounds = size.pick(2, 3, 8)
    section = Section(
        NAME,
        f"POSTs of one event with 3 metadata keys; ours from record_usage to the answer, through the disk. {rounds} "
        "interleaved rounds after one to warm up. The sink answers at once, or after a fixed "
        "delay. Under one interpreter lock more threads add nothing on loopback, so there the others have one.",
        "TLS, name resolution, a network that loses or reorders, a service that throttles. On few cores the sink's CPU "
        "bounds the rates on loopback, so there the CPU per POST says more.",
    )
    # Rounds of a second and more: in a fifth of one the CPU of a POST differed by half from round to round.
    loopback = _play(section, 0.0, 8, 1, size.pick(200, 2000, 5000), rounds)
    near = _play(section, 0.02, 64, 64, size.pick(400, 1600, 10_000), rounds)
    far = _play(section, 0.05, 8, 8, size.pick(40, 160, 2000), rounds)
    beside = _beside(section, size.pick(0.4, 1.0, 4.0), rounds)
    for title, found in (
        ("loopback (ours: 8 in flight, others: 1 thread)", loopback),
        ("20 ms round trip, 64 in flight", near),
        ("50 ms round trip, 8 in flight", far),
        ("beside a busy main thread", beside),
    ):
        section.tables.append(Table(title, [Row(*LABELS[key], dict(figures)) for key, figures in found.items()]))
    section.goals = _goals(loopback, near, far, beside)
    section.charts = [_chart("delivery", "POSTs per second at 20 ms round trip, 64 in flight", near, 64 / 0.02)]
    return section


def _play(section: Section, delay: float, ours: int, threads: int, posts: int, rounds: int) -> Found:
    """Each contestant with so many POSTs in flight; the peers on loopback with the one thread that is best there."""
    keys = [key for key in LABELS if key != "idle" and (delay == 0.0 or key != "synchronous")]
    with Service(delay) as service, Contest() as contest:
        for key in keys:
            if key == "ours":
                options: Dict[str, Any] = {"url": service.url(key), "folder": contest.folder()}
                contest.enter(key, BUFFERED, {**options, "buffer": {"max_concurrency": ours}})
            else:
                python = str(catalogue.PUBLISHED) if key == "published" else None
                options = {"peer": key, "url": service.url(key), "threads": threads}
                contest.enter(key, POSTER, options, requires=REQUIRES.get(key), python=python)
        contest.ready()
        played = contest.rounds(rounds, lambda _, worker, part: worker.call("round", posts=int(posts * part)))
        tallies = service.report()["tallies"]
        section.missing.update(contest.missing)
    return {key: {**_figures(results), **_arrival(results, tallies[key])} for key, results in played.items()}


def _figures(results: List[Dict[str, Any]]) -> Dict[str, float]:
    return {
        "POSTs/s": median(one["posts"] / one["wall"] for one in results),
        "us CPU/POST": median(one["cpu"] / max(one["posts"], 1) * 1e6 for one in results),
    }


def _arrival(results: List[Dict[str, Any]], tally: Dict[str, Any]) -> Dict[str, float]:
    return {"sent": results[-1]["total"], "arrived": tally["posts"], "twice": tally["repeated"]}


def _beside(section: Section, seconds: float, rounds: int) -> Found:
    """What a main thread that computes keeps of its speed while one sender delivers as fast as it can."""
    with Service() as service, Contest() as contest:
        contest.enter("idle", IDLE, {})
        options: Dict[str, Any] = {"url": service.url("ours"), "folder": contest.folder()}
        contest.enter("ours", BUFFERED, options)
        for key in ("published", "session"):
            python = str(catalogue.PUBLISHED) if key == "published" else None
            options = {"peer": key, "url": service.url(key), "threads": 1}
            contest.enter(key, POSTER, options, requires=REQUIRES.get(key), python=python)
        contest.ready()

        def play(key: str, worker: Any, part: float) -> Any:
            result = worker.call("round", seconds=seconds * part, spins=True)
            if key == "ours":
                worker.call("flush")  # or it would go on beside the others' rounds
            return result

        played = contest.rounds(rounds, play)
        section.missing.update(contest.missing)
    alone = median(one["turns"] for one in played["idle"])
    return {
        key: {
            "POSTs/s": median(one["posts"] / one["wall"] for one in results),
            "main thread keeps %": median(one["turns"] for one in results) / alone * 100,
        }
        for key, results in played.items()
    }


def _goals(loopback: Found, near: Found, far: Found, beside: Found) -> List[Goal]:
    def times(found: Found, figure: str, over: str, under: str) -> Optional[float]:
        return ratio(found.get(over, {}).get(figure), found.get(under, {}).get(figure))

    kept = beside["ours"]["main thread keeps %"]
    # One connection of a raw socket makes as many round trips a second as this machine's 50 ms allow.
    possible = far["socket"]["POSTs/s"] if "socket" in far else 8 / 0.05
    return [
        Goal(
            "CPU per POST of 1.0.0 / ours",
            times(loopback, "us CPU/POST", "published", "ours"),
            3.5,
            True,
            is_ratio=True,
        ),
        Goal("loopback rate / 1.0.0", times(loopback, "POSTs/s", "ours", "published"), 3.0, True, is_ratio=True),
        Goal("20 ms, 64 in flight / Session.post", times(near, "POSTs/s", "ours", "session"), 2.5, True, is_ratio=True),
        Goal("50 ms, 8 in flight / 8 raw sockets", ratio(far["ours"]["POSTs/s"], possible), 0.95, True, is_ratio=True),
        Goal("main thread keeps", kept / 100, 0.8, True, is_ratio=True, unit="of its speed"),
        Goal("POSTs sent twice", loopback["ours"]["twice"] + near["ours"]["twice"] + far["ours"]["twice"], 0, False),
    ]


def _chart(name: str, title: str, found: Found, most: float) -> Chart:
    series = [Series(*LABELS[key], [[0, figures["POSTs/s"]]]) for key, figures in found.items()]
    series.sort(key=lambda one: -one.points[0][1])
    return Chart(name, title, "bars", "POSTs per second", "", series, limit=("in flight / round trip", most))
