"""workers: what takes events out of a Redis server: folding, POSTs, one to four workers, a million events behind."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Dict, List, Optional, Tuple

from benchmarks.fleet.costs import MEASURED
from benchmarks.fleet.real import Compared, Run, compare
from benchmarks.fleet.shape import OWNED, Fleet
from benchmarks.harness.contest import Contest
from benchmarks.harness.engine import Engine, opened
from benchmarks.harness.figures import ratio
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.report.model import LIMIT, OURS, Goal, Row, Section, Table
from benchmarks.sections import engine_store

NAME = "workers"
PUBLISHING = "benchmarks.peers.publishing:Publishing"
DELIVERING = "benchmarks.peers.publishing:Delivering"
WORKERS = (1, 2, 4)
# The traffic that is folded is drawn as the model draws it: envelopes by Zipf's law, one metadata. So little of it that
# the processes do not take the machine's cores from each other, which the model knows nothing of.
ENVELOPES = 1000
RATE = 4000.0
WINDOW = 1.0
FEW = 10_000
PATIENCE = 60.0
# How the workers of this version share the work; see benchmarks/fleet/shape.py.
FOLDING = OWNED

Figures = Dict[str, Optional[float]]


class Bench:
    """A server, a sink and the processes of one measurement after the other."""

    def __init__(self, engine: Engine, service: Service) -> None:
        self.engine = engine
        self.service = service
        self._names = 0

    def begin(self) -> str:
        """Empties the server; returns the name under which the sink counts from now on."""
        self.engine.empty()
        self._names += 1
        return f"run-{self._names}"

    def publisher(self, contest: Contest, name: str, *, coalesce: bool) -> Any:
        """A process that publishes the traffic of the model."""
        options: Dict[str, Any] = {"peer": "ours", "engine": self.engine.url, "url": self.service.url(name)}
        # The server has everything when a round is over, so there is nothing to wait for at the exit.
        options["buffer"] = {"coalesce": coalesce, "deliver": False, "exit_timeout": 0.0}
        return contest.one("publisher", PUBLISHING, {**options, "envelopes": ENVELOPES, "values": 1})

    def workers(self, contest: Contest, name: str, count: int, **buffer: Any) -> List[Any]:
        """So many processes that deliver."""
        options = {"engine": self.engine.url, "url": self.service.url(name), "buffer": {"exit_timeout": 0.0, **buffer}}
        for number in range(count):
            contest.enter(f"worker {number}", DELIVERING, {**options, "phase": number / count})
        contest.ready()
        if contest.missing:
            raise RuntimeError(f"a worker could not be made: {contest.missing}")
        return [contest.workers[f"worker {number}"] for number in range(count)]

    def booked(self, name: str, units: int) -> Dict[str, Any]:
        """The tally of the sink once so many units have arrived."""
        return self.service.wait_for(name, lambda tally: tally["units"] >= units, PATIENCE)


def run(size: Size) -> Section:
    """The section."""
    many = size.pick(20_000, 1_000_000, 1_000_000)
    section = Section(
        NAME,
        f"events of {ENVELOPES:,} envelopes (Zipf) in a Redis server on loopback; workers are "
        "processes with UsageBuffer(deliver=True), the sink answers at once. End to end: published at "
        f"{RATE:,.0f}/s, folded in windows of {WINDOW:g} s, until the sink has booked everything; beside it what the "
        "model of the section fleet says of the same run.",
        "a network, several servers; more processes than this machine has cores do not show what they could do.",
    )
    with Contest() as contest:
        why = engine_store.why_missing()
        engine, no_engine = opened(contest.folder()) if not why else (None, why)
        if engine is None:
            section.missing["engine"] = f"{no_engine}: the whole section is left out"
            return section
        with engine, Service() as service:
            bench = Bench(engine, service)
            alone = [_fold(bench, size.pick(20_000, 200_000, 1_000_000)), _post(bench, size.pick(500, 5000, 20_000))]
            posts = alone[-1].figures["events/s"] or 1.0
            runs = {
                count: _end_to_end(bench, count, size.pick(1.5, 4.5, 20.5), posts)
                for count in WORKERS[: size.pick(1, 3, 3)]
            }
            behind = {count: _backlog(bench, count, size.pick(0.7, 2.0, 5.0)) for count in (FEW, many)}
    section.tables = [
        Table("one worker, everything published before", alone),
        Table("end to end", [row for count, found in runs.items() for row in _beside(count, *found)]),
        Table("opened with so many behind", [Row(f"{count:,}", OURS, found) for count, found in behind.items()]),
    ]
    section.goals = [*_model_goals(runs), *_backlog_goals(behind, many)]
    return section


def _fold(bench: Bench, count: int) -> Row:
    name = bench.begin()
    with Contest() as contest:
        bench.publisher(contest, name, coalesce=True).call("round", count=count)
        cpu = bench.engine.cpu()
        [worker] = bench.workers(contest, name, 1, coalesce=True, coalesce_window=0.1)
        tally = bench.booked(name, count)
        used = worker.call("used")
        figures: Figures = {
            "events/s": count / (tally["last"] - used["opened"]),
            "us CPU/event": used["cpu"] / count * 1e6,
            "us engine CPU/event": (bench.engine.cpu() - cpu) / count * 1e6,
            "POSTs": float(tally["posts"]),
            "units missing": float(count - tally["units"]),
        }
    return Row("folded (window 0.1 s) and booked", OURS, figures, "the CPU is also that of opening and of the POSTs")


def _post(bench: Bench, count: int) -> Row:
    name = bench.begin()
    with Contest() as contest:
        bench.publisher(contest, name, coalesce=False).call("round", count=count)
        cpu = bench.engine.cpu()
        [worker] = bench.workers(contest, name, 1)
        tally = bench.booked(name, count)
        used = worker.call("used")
        figures: Figures = {
            "events/s": count / (tally["last"] - tally["first"]),
            "us CPU/event": used["cpu"] / count * 1e6,
            "us engine CPU/event": (bench.engine.cpu() - cpu) / count * 1e6,
            "POSTs": float(tally["posts"]),
            "units missing": float(count - tally["units"]),
        }
    return Row("a POST an event", OURS, figures)


def _end_to_end(bench: Bench, count: int, seconds: float, posts: float) -> Tuple[Figures, Compared]:
    """So many workers. `posts` is how many one of them sends a second on this machine, for the model."""
    name = bench.begin()
    with Contest() as contest:
        publisher = bench.publisher(contest, name, coalesce=True)
        workers = bench.workers(contest, name, count, coalesce=True, coalesce_window=WINDOW)
        cpu = bench.engine.cpu()
        begin = time.monotonic()
        published = publisher.call("round", count=int(RATE * seconds), rate=RATE)
        tally = bench.booked(name, published["events"])
        spent = sum(worker.call("used")["cpu"] for worker in workers)
    events = published["events"]
    fleet = Fleet(
        hosts=1,
        envelopes=ENVELOPES,
        kind="none",
        window=WINDOW,
        workers=count,
        partitions=1,
        round_trip=0.001,
        folding=FOLDING,
    )
    run = Run(fleet, events, published["handed"], tally["posts"], tally["last"] - begin, flushed=False)
    figures: Figures = {
        "POSTs": float(run.posts),
        "booked after s": run.booked,
        "events/s": events / run.booked,
        "us CPU/event": spent / events * 1e6,
        "us engine CPU/event": (bench.engine.cpu() - cpu) / events * 1e6,
        "units missing": float(events - tally["units"]),
    }
    return figures, compare(run, dataclasses.replace(MEASURED, post=1e6 / posts - MEASURED.seal_post))


def _beside(count: int, figures: Figures, compared: Compared) -> List[Row]:
    words = f"{count} worker{'s' if count > 1 else ''}"
    model: Figures = {"POSTs": compared.model_posts, "booked after s": compared.model_booked}
    return [Row(words, OURS, figures), Row(f"{words}, as the model has it", LIMIT, model)]


def _backlog(bench: Bench, count: int, seconds: float) -> Figures:
    name = bench.begin()
    before = bench.engine.memory()
    with Contest() as contest:
        bench.publisher(contest, name, coalesce=False).call("round", count=count)
        size = bench.engine.memory() - before
        contest.workers.pop("publisher").close()
        [worker] = bench.workers(contest, name, 1)
        time.sleep(seconds)
        tally, used = bench.service.tally(name), worker.call("used")
    return {
        "first POST s": tally["first"] - used["opened"],
        "POSTs/s": tally["posts"] / (tally["last"] - tally["first"]),
        "worker MiB": used["peak"] / 2**20,
        "engine MiB": size / 2**20,
        "engine bytes/event": size / count,
    }


def _model_goals(runs: Dict[int, Tuple[Figures, Compared]]) -> List[Goal]:
    goals = []
    for count, (figures, compared) in runs.items():
        words = f"{count} worker{'s' if count > 1 else ''}"
        goals += [
            Goal(f"units missing, {words}", abs(figures["units missing"] or 0.0), 0.0, False),
            Goal(f"POSTs, {words}: the model is off by", abs(compared.posts - 1), 0.15, False),
            Goal(f"time until booked, {words}: the model is off by", abs(compared.booked - 1), 0.25, False),
        ]
    return goals


def _backlog_goals(behind: Dict[int, Figures], many: int) -> List[Goal]:
    rates = ratio(behind[many]["POSTs/s"], behind[FEW]["POSTs/s"])
    more = (behind[many]["worker MiB"] or 0.0) - (behind[FEW]["worker MiB"] or 0.0)
    return [
        Goal(f"first POST after opening, {many:,} behind", behind[many]["first POST s"], 1.0, False, "s"),
        Goal(f"drain rate / that at {FEW:,}", rates, 0.9, True, is_ratio=True),
        Goal(f"memory of the worker beyond that at {FEW:,}", more, 40.0, False, "MiB"),
        Goal("memory in the engine", behind[many]["engine bytes/event"], 60.0, False, "bytes/event"),
    ]
