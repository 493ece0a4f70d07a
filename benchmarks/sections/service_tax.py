"""service-tax: what metering takes from a web service under load."""

from __future__ import annotations

import contextlib
import json
from typing import Any, ContextManager, Dict, List, NamedTuple, Optional, Tuple

from benchmarks.harness import cores
from benchmarks.harness.contest import Contest
from benchmarks.harness.cores import Cores
from benchmarks.harness.figures import median
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.harness.webserver import NotServing, WebServer, drive, has_wrk, warm_up
from benchmarks.harness.worker import Worker
from benchmarks.peers import catalogue
from benchmarks.peers.recorders import REQUIRES
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table
from benchmarks.sections import coalescing

NAME = "service-tax"
DELIVERER = "benchmarks.peers.recording:Recording"
CONNECTIONS = 16
WARM_UP = 0.3  # seconds
PATH = "/items/17"
NEEDS_CORES = "needs two cores and a system that lets processes be put on one (Linux)"


class Variant(NamedTuple):
    """One way to meter."""

    label: str
    role: str
    peer: str
    buffer: Dict[str, Any]
    apart: bool = True  # with the service on a core of its own
    shared: bool = True  # with everybody on all cores


VARIANTS = {
    "none": Variant("not metered", LIMIT, "none", {}),
    "again": Variant("not metered, another process of the same", LIMIT, "none", {}, shared=False),
    "crowded": Variant("not metered, something nice beside the load", LIMIT, "none", {}, shared=False),
    "elsewhere": Variant("buffered, another process delivers", OURS, "ours", {"deliver": False}),
    "folded": Variant(
        "buffered, another process delivers coalesced", OURS, "ours", {"deliver": False, "coalesce": True}, shared=False
    ),
    "coalesced": Variant("buffered, coalesced, delivered here", OURS, "ours", {"coalesce": True}),
    "here": Variant("buffered, delivered here", OURS, "ours", {}, apart=False),
    "synchronous": Variant("synchronous call a request", OURS, "synchronous", {}),
    "segment": Variant("segment track", PEER, "segment", {}),
    "posthog": Variant("posthog capture", PEER, "posthog", {}),
}
GOALS = (("elsewhere", "delivery elsewhere"), ("coalesced", "coalesced"))
# A worker of gunicorn is not to be thought dead because it was stopped while another service was measured.
FLASK = ["-m", "gunicorn", "-w", "2", "-k", "gthread", "--threads", "4", "--timeout", "0", "-b", "127.0.0.1:{port}"]
FLASK += ["--log-level", "error", "benchmarks.programs.flask_app:app"]
FASTAPI = ["-m", "uvicorn", "--port", "{port}", "--log-level", "error", "benchmarks.programs.fastapi_app:app"]
SERVICES = {
    "Flask": ("Flask under gunicorn, 2 workers", FLASK, ("flask", "gunicorn")),
    "FastAPI": ("FastAPI under uvicorn", FASTAPI, ("fastapi", "uvicorn")),
}
Found = Dict[str, List[Dict[str, Any]]]
Rounds = Tuple[int, float]  # how many, and seconds of each


def run(size: Size) -> Section:
    """The section."""
    shared: Rounds = size.pick((1, 1.0), (2, 2.0), (8, 10.0))
    apart: Rounds = size.pick((1, 1.0), (5, 1.0), (30, 2.0))
    driver = "wrk" if has_wrk() else "harness/load.py (wrk is not installed), which takes a core for itself"
    section = Section(
        NAME,
        f"GET of a small JSON document, {CONNECTIONS} connections, driven by {driver}; interleaved rounds after one to "
        "warm up. All that is not measured is stopped meanwhile; per cent are medians of what each round found beside "
        "the round of the service that is not metered, least and most those of one round. First with the service on "
        "one core and load, sink and who delivers (nice) on the others: "
        f"{apart[0]} rounds of {apart[1]:g} s. What is not metered stands there twice, which shows how far two of the "
        "same differ, and once with something nice that computes beside the load, which shows whether who delivers "
        f"there slows the load. Then with everybody on all cores: {shared[0]} rounds of {shared[1]:g} s.",
        "requests that do more: their tax is smaller. With the service on one core: what who delivers takes of a "
        "machine that has no core to spare for it, and the CPU of the sink. On all cores load and sink take theirs "
        "from the service, so a peer's own sending costs it more than on a machine with cores to spare.",
    )
    if not coalescing.is_there():
        section.missing["coalesce"] = coalescing.MISSING
    if not has_wrk():
        section.missing["wrk"] = catalogue.reason("wrk")
    placed = cores.apart()
    if placed is None:
        section.missing["the service on a core of its own"] = NEEDS_CORES
    for name in SERVICES:
        _measure(section, name, placed, apart, ", on one core")
        _measure(section, name, None, shared, ", on all cores with its load")
    return section


def _measure(section: Section, name: str, placed: Optional[Cores], rounds: Rounds, where: str) -> None:
    """One service, with its table, goals and chart."""
    title, command, needs = SERVICES[name]
    is_apart = where == ", on one core"
    why = next((found for found in map(catalogue.why_missing, needs) if found), None)
    if why:
        section.missing[name] = why
    elif is_apart and placed is None:
        why = NEEDS_CORES
    found: Found = {} if why else _play(section, command, placed, rounds)
    if found:
        section.tables.append(Table(title + where, _rows(found)))
    section.goals += _goals(name if is_apart else f"{name}, cores shared", found, why)
    if name == "Flask" and found and (is_apart or not section.charts):
        section.charts = [_chart(title + where, found)]


def _play(section: Section, command: List[str], placed: Optional[Cores], rounds: Rounds) -> Found:
    found: Found = {}
    with contextlib.ExitStack() as stack:
        if placed is not None:
            stack.enter_context(cores.on(placed.others))
        service, contest = stack.enter_context(Service()), stack.enter_context(Contest())
        servers = _start(section, command, placed, service, contest, stack)
        for number in range(rounds[0] + 1):
            for key in list(servers) if number % 2 else reversed(list(servers)):
                _for_each(servers[key], contest.workers.get(key), "resume")
                if number:
                    with cores.busy() if key == "crowded" else _nothing():
                        found.setdefault(key, []).append(drive(servers[key], rounds[1], CONNECTIONS))
                else:
                    warm_up(servers[key], WARM_UP, CONNECTIONS)
                _for_each(servers[key], contest.workers.get(key), "pause")
        tallies = service.report()["tallies"]
    for key, results in found.items():
        results[-1]["arrived"] = tallies.get(key, {}).get("posts")
    return found


def _start(
    section: Section, command: List[str], placed: Optional[Cores], service: Service, contest: Contest, stack: Any
) -> Dict[str, WebServer]:
    """All variants that are possible here, started beside each other and then stopped."""
    servers: Dict[str, WebServer] = {}
    for key, variant in VARIANTS.items():
        if not (variant.shared if placed is None else variant.apart):
            continue
        why = catalogue.why_missing(REQUIRES[variant.peer]) if variant.peer in REQUIRES else None
        if why:
            section.missing[REQUIRES[variant.peer]] = why
            continue
        if variant.buffer.get("coalesce") and not coalescing.is_there():
            continue
        options = {"url": service.url(key), "folder": contest.folder(), "buffer": variant.buffer}
        environment = {"BENCH_METER": variant.peer, "BENCH_OPTIONS": json.dumps(options)}
        with _nothing() if placed is None else cores.on(placed.measured):
            servers[key] = stack.enter_context(WebServer(command, environment, PATH))
        if variant.buffer.get("deliver") is False:
            folds = {name: value for name, value in variant.buffer.items() if name == "coalesce"}
            contest.enter(key, DELIVERER, {**options, "peer": "ours", "buffer": folds})
    contest.ready()
    for key in list(servers):
        try:
            servers[key].wait()
            _for_each(servers[key], contest.workers.get(key), "pause")
        except NotServing as error:
            section.missing[key] = str(error)
            del servers[key]
    for worker in contest.workers.values() if placed is not None else ():
        cores.give_way(worker.process.pid)
    return servers


def _nothing() -> ContextManager[None]:
    return contextlib.nullcontext()


def _for_each(server: WebServer, deliverer: Optional[Worker], step: str) -> None:
    """Stops or resumes the service and who delivers for it together: a stopped process may hold the spool's lock."""
    for process in (server, deliverer):
        if process is not None:
            getattr(process, step)()


def _rows(found: Found) -> List[Row]:
    rows = []
    for key, results in found.items():
        shares = [share * 100 for share in _shares(found, key, "rate")]
        cpu = [one["cpu"] for one in results if one["cpu"] is not None]
        figures: Dict[str, Optional[float]] = {
            "requests/s": median(one["rate"] for one in results),
            "% of not metered": median(shares),
            "least": min(shares),
            "most": max(shares),
            "p50 us": median(one["p50"] for one in results),
            "p99 us": median(one["p99"] for one in results),
            "p99 times": median(_shares(found, key, "p99")),
            "CPU us/request": median(cpu) if cpu else None,
            "errors": sum(one["errors"] for one in results),
        }
        rows.append(Row(VARIANTS[key].label, VARIANTS[key].role, figures))
    return rows


def _shares(found: Found, key: str, figure: str) -> List[float]:
    """For each round the figure, divided by that of the unmetered service in the same round."""
    return [one[figure] / plain[figure] for one, plain in zip(found[key], found["none"])]


def _goals(name: str, found: Found, why: Optional[str]) -> List[Goal]:
    goals = []
    for key, words in GOALS:
        there = key in found and "none" in found
        reason = why or (coalescing.MISSING if key == "coalesced" else "the service did not start")
        rate = median(_shares(found, key, "rate")) if there else None
        late = median(_shares(found, key, "p99")) if there else None
        goals += [
            Goal(f"{name}, {words}: requests/s", rate, 0.97, True, is_ratio=True, reason=reason),
            Goal(f"{name}, {words}: p99", late, 1.05, False, is_ratio=True, reason=reason),
        ]
    return goals


def _chart(title: str, found: Found) -> Chart:
    series = [
        Series(VARIANTS[key].label, VARIANTS[key].role, [[0, median(one["rate"] for one in results)]])
        for key, results in found.items()
    ]
    limit = ("not metered", median(one["rate"] for one in found["none"]))
    return Chart("service-tax", f"{title}: requests per second", "bars", "requests per second", "", series, limit=limit)
