"""service-tax: what metering takes from a web service under load."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Dict, List, NamedTuple, Optional

from benchmarks.harness.contest import Contest
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


class Variant(NamedTuple):
    """One way to meter."""

    label: str
    role: str
    peer: str
    buffer: Dict[str, Any]


VARIANTS = {
    "none": Variant("not metered", LIMIT, "none", {}),
    "elsewhere": Variant("buffered, another process delivers", OURS, "ours", {"deliver": False}),
    "coalesced": Variant("buffered, coalesced, delivered here", OURS, "ours", {"coalesce": True}),
    "here": Variant("buffered, delivered here", OURS, "ours", {}),
    "synchronous": Variant("synchronous call a request", OURS, "synchronous", {}),
    "segment": Variant("segment track", PEER, "segment", {}),
    "posthog": Variant("posthog capture", PEER, "posthog", {}),
}
# A worker of gunicorn is not to be thought dead because it was stopped while another service was measured.
FLASK = ["-m", "gunicorn", "-w", "2", "-k", "gthread", "--threads", "4", "--timeout", "0", "-b", "127.0.0.1:{port}"]
FLASK += ["--log-level", "error", "benchmarks.programs.flask_app:app"]
FASTAPI = ["-m", "uvicorn", "--port", "{port}", "--log-level", "error", "benchmarks.programs.fastapi_app:app"]
SERVICES = {
    "Flask": ("Flask under gunicorn, 2 workers", FLASK, ("flask", "gunicorn")),
    "FastAPI": ("FastAPI under uvicorn", FASTAPI, ("fastapi", "uvicorn")),
}
Found = Dict[str, List[Dict[str, Any]]]


def run(size: Size) -> Section:
    """The section."""
    rounds, seconds = size.pick(1, 3, 8), size.pick(1.0, 2.0, 10.0)
    driver = "wrk" if has_wrk() else "harness/load.py (wrk is not installed), which takes a core for itself"
    section = Section(
        NAME,
        f"GET of a small JSON document, {CONNECTIONS} connections, driven by {driver}: {rounds} interleaved rounds of "
        f"{seconds:g} s after one to warm up. All that is not measured is stopped meanwhile; per cent are medians of "
        "what each round found beside the round of the service that is not metered.",
        "requests that do more: their tax is smaller. Load, service and sink share the cores, so a peer's own sending "
        "costs the service more here than on a machine with cores to spare.",
    )
    if not coalescing.is_there():
        section.missing["coalesce"] = coalescing.MISSING
    if not has_wrk():
        section.missing["wrk"] = catalogue.reason("wrk")
    for name, (title, command, needs) in SERVICES.items():
        why = next((found for found in map(catalogue.why_missing, needs) if found), None)
        found: Found = {} if why else _play(section, command, rounds, seconds)
        if why:
            section.missing[name] = why
        else:
            section.tables.append(Table(title, _rows(found)))
        section.goals += _goals(name, found, why)
        if name == "Flask" and found:
            section.charts = [_chart(title, found)]
    return section


def _play(section: Section, command: List[str], rounds: int, seconds: float) -> Found:
    found: Found = {}
    with contextlib.ExitStack() as stack:
        service, contest = stack.enter_context(Service()), stack.enter_context(Contest())
        servers = _start(section, command, service, contest, stack)
        for number in range(rounds + 1):
            for key in list(servers) if number % 2 else reversed(list(servers)):
                _for_each(servers[key], contest.workers.get(key), "resume")
                if number:
                    found.setdefault(key, []).append(drive(servers[key], seconds, CONNECTIONS))
                else:
                    warm_up(servers[key], WARM_UP, CONNECTIONS)
                _for_each(servers[key], contest.workers.get(key), "pause")
        tallies = service.report()["tallies"]
    for key, results in found.items():
        results[-1]["arrived"] = tallies.get(key, {}).get("posts")
    return found


def _start(
    section: Section, command: List[str], service: Service, contest: Contest, stack: Any
) -> Dict[str, WebServer]:
    """All variants that are possible here, started beside each other and then stopped."""
    servers: Dict[str, WebServer] = {}
    for key, variant in VARIANTS.items():
        why = catalogue.why_missing(REQUIRES[variant.peer]) if variant.peer in REQUIRES else None
        if why:
            section.missing[REQUIRES[variant.peer]] = why
            continue
        if key == "coalesced" and not coalescing.is_there():
            continue
        options = {"url": service.url(key), "folder": contest.folder(), "buffer": variant.buffer}
        environment = {"BENCH_METER": variant.peer, "BENCH_OPTIONS": json.dumps(options)}
        servers[key] = stack.enter_context(WebServer(command, environment, PATH))
        if key == "elsewhere":
            contest.enter(key, DELIVERER, {**options, "peer": "ours", "buffer": {}})
    contest.ready()
    for key in list(servers):
        try:
            servers[key].wait()
            _for_each(servers[key], contest.workers.get(key), "pause")
        except NotServing as error:
            section.missing[key] = str(error)
            del servers[key]
    return servers


def _for_each(server: WebServer, deliverer: Optional[Worker], step: str) -> None:
    """Stops or resumes the service and who delivers for it together: a stopped process may hold the spool's lock."""
    for process in (server, deliverer):
        if process is not None:
            getattr(process, step)()


def _rows(found: Found) -> List[Row]:
    rows = []
    for key, results in found.items():
        figures: Dict[str, Optional[float]] = {
            "requests/s": median(one["rate"] for one in results),
            "% of not metered": _against(found, key, "rate") * 100,
            "p50 us": median(one["p50"] for one in results),
            "p99 us": median(one["p99"] for one in results),
            "errors": sum(one["errors"] for one in results),
        }
        rows.append(Row(VARIANTS[key].label, VARIANTS[key].role, figures))
    return rows


def _against(found: Found, key: str, figure: str) -> float:
    """The median over the rounds of the figure, divided by that of the unmetered service in the same round."""
    return median(one[figure] / plain[figure] for one, plain in zip(found[key], found["none"]))


def _goals(name: str, found: Found, why: Optional[str]) -> List[Goal]:
    goals = []
    for key, words in (("elsewhere", "delivery elsewhere"), ("coalesced", "coalesced")):
        there = key in found and "none" in found
        reason = why or (coalescing.MISSING if key == "coalesced" else "the service did not start")
        rate = _against(found, key, "rate") if there else None
        late = _against(found, key, "p99") if there else None
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
