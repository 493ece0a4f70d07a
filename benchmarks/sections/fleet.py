"""fleet: how far the design goes, computed: 1,000 hosts and a million events a second."""

from __future__ import annotations

import dataclasses
import time
from typing import Dict, List, NamedTuple, Optional

from benchmarks.fleet.advice import changes
from benchmarks.fleet.plan import Plan, plan, wanted
from benchmarks.fleet.play import play
from benchmarks.fleet.real import Run, compare
from benchmarks.fleet.shape import HOST, OWNED, SHARED, Fleet
from benchmarks.fleet.traffic import KINDS
from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.report.model import LIMIT, OURS, PEER, Chart, Goal, Row, Section, Series, Table

NAME = "fleet"
Figures = Dict[str, Optional[float]]
WINDOWS = (1.0, 10.0, 60.0, 300.0)
FOLDING = {
    HOST: "folded by each host",
    SHARED: "engine, if every worker folded",
    OWNED: "engine, one folds a partition",
}
FEW = 4  # workers where how many there are does not matter, or is to be the same
FLUSH_AT = 500  # what a host of a fleet should publish at once
RATES = (1e3, 1e4, 2.5e4, 1e5, 3e5, 1e6, 3e6)
HOST_RATE = 1000.0  # events a second of a host
REAL_HOSTS = (1, 4)  # run beside the model, as processes
REAL_RATE = 2000.0  # events a second of each
REAL_FLEET = Fleet(envelopes=200, folding=HOST, window=1.0, round_trip=0.001)
REAL = "a real run beside the model: hosts that fold, windows of 1 s"
PUBLISHING = "benchmarks.peers.publishing:Publishing"
LIMITS = (50.0, 500.0, 5000.0)
# Gone through event by event as well; large enough that chance moves the number of POSTs by less than a hundredth. Its
# workers look all the time, because the formula knows nothing of looks.
SMALL = Fleet(
    look_every=0.02, hosts=4, rate=2000.0, envelopes=500, window=5.0, round_trip=0.01, workers=4, partitions=16
)
SMALL_SECONDS = 15.0


def run(size: Size) -> Section:
    """The section; takes seconds, but for the hosts that are run beside the model."""
    section = Section(
        NAME,
        "computed, not measured: 1,000 hosts, 1,000,000 events/s, 10,000 envelopes (Zipf), a service that answers "
        f"after 0.1 s; hosts publish {FLUSH_AT} events at once. Unit costs are those of benchmarks/fleet/costs.py; "
        "`python -m benchmarks.fleet --help` takes other ones.",
        "peaks of the day, engines that fail over, hosts of unequal load, the network.",
    )
    runs = [_real(hosts, size.pick(1.5, 3.5, 20.5)) for hosts in REAL_HOSTS[: size.pick(1, 2, 2)]]
    section.tables = [
        _wanted(),
        _needs(),
        _limited(),
        _rates(SHARED),
        _rates(OWNED),
        Table(REAL, [row for run in runs for row in run.rows]),
    ]
    section.goals = [*(_goal(folding) for folding in FOLDING), *(goal for run in runs for goal in run.goals)]
    section.charts = [_chart()]
    return section


def _fleet(**changed: object) -> Fleet:
    return dataclasses.replace(Fleet(flush_at=FLUSH_AT), **changed)  # type: ignore[arg-type]  # from keyword to field


def _wanted() -> Table:
    """Of workers that share everything there are four, so that what is compared is the folding."""
    rows = []
    for key, kind in KINDS.items():
        for folding, words in FOLDING.items():
            figures: Figures = {}
            for window in WINDOWS:
                figures[f"{window:g} s"] = _wanted_by(key, folding, window)
            note = f"with {FEW} workers" if folding == SHARED else ""
            rows.append(Row(f"{kind.title}: {words}", _role(folding), figures, note))
    return Table("POSTs/s, one a group and window", rows)


def _wanted_by(kind: str, folding: str, window: float) -> float:
    return wanted(_fleet(kind=kind, folding=folding, window=window, workers=FEW, partitions=FEW))


def _needs() -> Table:
    rows = []
    for key, kind in KINDS.items():
        for folding, words in FOLDING.items():
            fleet = _fleet(kind=key, folding=folding)
            found = plan(fleet)
            rows.append(Row(f"{kind.title}: {words}", _role(folding), _figures(found), _note(fleet, found)))
    small = _fleet(flush_at=Fleet().flush_at, folding=OWNED)
    found = plan(small)
    label = f"the same with flush_at={small.flush_at}: {KINDS[small.kind].title}, one reader"
    rows.append(Row(label, OURS, _figures(found), _note(small, found)))
    return Table("window 60 s: what it takes", rows)


def _figures(found: Plan) -> Figures:
    return {
        "POSTs/s": found.posts,
        "workers": float(found.workers),
        "cores": found.worker_cores,
        "partitions": float(found.partitions),
        "engine cores": found.engine_cores,
        "GiB": found.memory / 2**30,
        "GiB, 1 h behind": found.memory_hour / 2**30,
        "late s p50": found.late_median,
        "late s at most": found.late_most,
        "overrun units": found.overrun,
    }


def _note(fleet: Fleet, found: Plan) -> str:
    words = [] if found.keeps_up else ["does not keep up"]
    if found.window > fleet.window * 1.01:
        words.append(f"windows of {found.window:.0f} s")
    elif found.window < fleet.window * 0.99:
        words.append(f"folds are full after {found.window:.1f} s")
    return "; ".join([*words, *changes(fleet, found)])


def _limited() -> Table:
    """How long windows have to be where the service limits the POSTs."""
    rows = []
    for key in ("none", "endpoint"):
        figures: Figures = {}
        for limit in LIMITS:
            found = plan(_fleet(kind=key, folding=OWNED, window=1.0, limit=limit, workers=64, partitions=64))
            figures[f"{limit:,.0f} POSTs/s"] = found.window if found.keeps_up else None
        rows.append(Row(f"{KINDS[key].title}: {FOLDING[OWNED]}", OURS, figures))
    return Table("seconds of the window when the service takes no more than", rows)


def _rates(folding: str) -> Table:
    rows = []
    for rate in RATES:
        fleet = _fleet(rate=rate, hosts=max(round(rate / HOST_RATE), 1), folding=folding)
        found = plan(fleet)
        rows.append(Row(f"{rate:,.0f} events/s", OURS, _figures(found), _note(fleet, found)))
    return Table(f"{KINDS[Fleet().kind].title}, window 60 s, {FOLDING[folding]}", rows)


def _goal(folding: str) -> Goal:
    """Two ways of computing it that share no formula."""
    fleet = dataclasses.replace(SMALL, folding=folding)
    value = ratio(play(fleet, SMALL_SECONDS).posts, plan(fleet).posts * SMALL_SECONDS)
    off = abs(value - 1) if value is not None else None
    return Goal(f"POSTs event by event against the formula, {FOLDING[folding]}: off by", off, 0.03, False)


class _Real(NamedTuple):
    rows: List[Row]
    goals: List[Goal]


def _real(hosts: int, seconds: float) -> _Real:
    """Processes with a spool each, which fold and POST what the model draws, and the same in the model."""
    fleet = dataclasses.replace(REAL_FLEET, hosts=hosts)
    with Service() as service, Contest() as contest:
        for host in range(hosts):
            options = {"peer": "ours", "folder": contest.folder(), "url": service.url("fleet"), "seed": host}
            options.update(envelopes=fleet.envelopes, values=fleet.metadata.values)
            options["buffer"] = {"coalesce": True, "coalesce_window": fleet.window, "flush_at": fleet.flush_at}
            contest.enter(str(host), PUBLISHING, options)
        contest.ready()
        assert not contest.missing, contest.missing
        begin = time.monotonic()
        for worker in contest.workers.values():
            worker.send("round", count=int(REAL_RATE * seconds), rate=REAL_RATE)
        results = [worker.receive() for worker in contest.workers.values()]
        tally = service.tally("fleet")
    events, booked = sum(one["events"] for one in results), tally["last"] - begin
    run = Run(fleet, events, max(one["handed"] for one in results), tally["posts"], booked)
    compared = compare(run)
    words = f"{hosts} host{'s' if hosts > 1 else ''}"
    missing = float(events - tally["units"])
    real: Figures = {"events": float(events), "POSTs": float(run.posts), "booked after s": booked}
    model: Figures = {"POSTs": compared.model_posts, "booked after s": compared.model_booked}
    goals = [
        Goal(f"{words}, a real run: units missing", abs(missing), 0.0, False),
        Goal(f"{words}, POSTs of a real run: the model is off by", abs(compared.posts - 1), 0.1, False),
    ]
    return _Real([Row(words, OURS, real), Row(f"{words}, as the model has it", LIMIT, model)], goals)


def _chart() -> Chart:
    windows = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0]
    series: List[Series] = []
    for key, kind in KINDS.items():
        for folding in (HOST, OWNED):
            if key == "request" and folding == HOST:
                continue  # the same line
            points = [[window, _wanted_by(key, folding, window)] for window in windows]
            label = kind.title if key == "request" else f"{kind.title}, {'hosts' if folding == HOST else 'engine'}"
            # One of them in the colour of ours, the others in colours of their own, so that they can be told apart.
            ours = key == Fleet().kind and folding == OWNED
            series.append(Series(label, OURS if ours else LIMIT if key == "request" else PEER, points))
    title = "POSTs that 1,000,000 events/s become, 1,000 hosts, 10,000 envelopes"
    limit = ("500 a second", 500.0)
    return Chart(NAME, title, "lines", "window, seconds", "POSTs/s", series, log_x=True, log_y=True, limit=limit)


def _role(folding: str) -> str:
    return PEER if folding == HOST else OURS
