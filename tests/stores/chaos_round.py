"""Runs one round and sets the bill against what was recorded. Every wait has a deadline, and says what was missed."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from tests.conservation import logs
from tests.conservation.plan import to_json
from tests.stores import weather
from tests.stores.chaos_plan import SQLITE, UNIT, Plan
from tests.stores.chaos_process import open_buffer
from tests.stores.servers import free_port
from x402tools import SpoolError
from x402tools._stats import BufferStats
from x402tools._store import Tally

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

# Seconds. Far above what a busy machine needs.
_START, _RECORD, _DRAIN, _END = 60.0, 120.0, 120.0, 60.0
_LOOK_EVERY = 0.05

_NOTHING = Tally()


class Harm(Exception):
    """The round itself could not go on."""


@dataclass
class Verdict:
    """What came of a round; `faults` is empty when the bill is right to the unit."""

    recorded: Tally = _NOTHING
    billed: Tally = _NOTHING
    kills: int = 0
    stalls: int = 0
    strokes: Dict[str, int] = field(default_factory=dict)  # of the weather: what, and how often
    replays: int = 0  # POSTs that the service had booked before
    posts: int = 0
    faults: List[str] = field(default_factory=list)

    @property
    def error(self) -> Tally:
        return self.billed.minus(self.recorded)


class Process:
    """A process of the round; prints lines, ends with its standard input."""

    def __init__(self, folder: pathlib.Path, name: str, module: str, *arguments: str) -> None:
        self.name = name
        self._first: concurrent.futures.Future[str] = concurrent.futures.Future()
        with open(folder / f"{name}.err", "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._first.set_result(self._process.stdout.readline().decode("ascii"))

    @property
    def is_ready(self) -> bool:
        """Whether it has printed its line and still runs."""
        return self._first.done() and bool(self._first.result()) and self._process.poll() is None

    def line(self, seconds: float) -> str:
        """The line that it prints."""
        try:
            line = self._first.result(seconds)
        except concurrent.futures.TimeoutError:
            line = ""
        if not line:
            self.signal(signal.SIGABRT)  # which prints where it was
            raise Harm(f"{self.name} said nothing within {seconds:g} s; see {self.name}.err")
        return line

    def signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait(_END)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def end(self) -> Optional[int]:
        """Lets it come to its end; its status, or None when it does not come to it in time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(_END)
        except subprocess.TimeoutExpired:
            return None


class Round:
    """One round in a folder of its own."""

    def __init__(self, plan: Plan, folder: pathlib.Path) -> None:
        self._plan = plan
        self._folder = folder
        self._processes: List[Process] = []
        self._workers: List[Process] = []
        self._never = threading.Event()  # only waited on
        self._url = ""
        self._verdict = Verdict()

    def run(self) -> Verdict:
        """Plays the plan; what went wrong is in the verdict."""
        verdict = self._verdict
        try:
            with weather.place(self._plan, self._folder) as there:
                self._play(there)
        except Harm as harm:
            verdict.faults.append(str(harm))
        finally:
            for process in self._processes:
                with contextlib.suppress(OSError):
                    process.kill()
        return verdict

    def _play(self, there: weather.Place) -> None:
        plan, verdict = self._plan, self._verdict
        service = self._start_service()
        recorders = [
            self._start("recorder", there, f"r{at}", str(events), str(plan.seconds), str(coalesces), self._spill(at))
            for at, (coalesces, events) in enumerate(plan.recorders)
        ]
        self._workers = [self._start("worker", there, f"w{at}") for at in range(plan.workers)]
        over = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            storm = pool.submit(weather.blow, plan, there, over)
            try:
                self._strike(there)
            finally:
                over.set()
            verdict.strokes = storm.result(_START)
        said = [json.loads(recorder.line(_RECORD)) for recorder in recorders]
        stats = self._drained(there)
        for worker in self._workers:
            if worker.end() != 0:
                verdict.faults.append(f"{worker.name} did not end in order; see {worker.name}.err")
        service.kill()
        self._compare(said, stats)

    # -- the processes -------------------------------------------------------------------------------------------

    def _start_service(self) -> Process:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        arguments = (str(self._folder), str(port), to_json(self._plan.faults))
        service = Process(self._folder, "service", "tests.conservation.server", *arguments)
        self._processes.append(service)
        service.line(_START)
        return service

    def _spill(self, recorder: int) -> str:
        """Every other recorder has a file for the time an engine is away."""
        has_one = recorder % 2 and self._plan.store != SQLITE
        return str(self._folder / f"r{recorder}.spill.db") if has_one else ""

    def _start(self, role: str, there: weather.Place, name: str, *more: str) -> Process:
        arguments = (role, there.store, str(there.replicas), self._url, name, *more)
        process = Process(self._folder, name, "tests.stores.chaos_process", *arguments)
        self._processes.append(process)
        return process

    def _strike(self, there: weather.Place) -> None:
        """Kills workers, or stalls them for longer than a lease; each that is killed has a successor at once.

        Two at the least are at work by then: where one is hit as soon as it begins, nothing is ever under way.
        """
        rng = random.Random(f"blows/{self._plan.seed}/{self._plan.number}")
        for number, blow in enumerate(self._plan.blows):
            self._never.wait(blow.after)
            victim = rng.choice(self._ready_workers())
            if blow.stall:
                victim.signal(signal.SIGSTOP)
                self._never.wait(blow.stall)
                victim.signal(signal.SIGCONT)
                self._verdict.stalls += 1
            else:
                victim.kill()
                self._verdict.kills += 1
                self._workers[self._workers.index(victim)] = self._start("worker", there, f"w{number + 10}")

    def _ready_workers(self) -> List[Process]:
        deadline = time.monotonic() + _START
        while True:
            ready = [worker for worker in self._workers if worker.is_ready]
            if len(ready) >= min(2, self._plan.workers):
                return ready
            if time.monotonic() > deadline:
                raise Harm(f"no worker began to work within {_START:g} s; see {self._workers[0].name}.err")
            self._never.wait(_LOOK_EVERY)

    # -- the end -------------------------------------------------------------------------------------------------

    def _drained(self, there: weather.Place) -> BufferStats:
        """The store's ledger when nothing is pending any more, or at the deadline."""
        deadline = time.monotonic() + _DRAIN
        with open_buffer(there.behind, deliver=False) as buffer:
            while True:
                with contextlib.suppress(SpoolError):
                    stats = buffer.stats()
                    if stats.pending.events == 0 or time.monotonic() > deadline:
                        return stats
                if time.monotonic() > deadline:
                    raise Harm("the store's ledger could not be read")
                self._never.wait(_LOOK_EVERY)

    def _compare(self, said: List[Dict[str, Any]], stats: BufferStats) -> None:
        verdict, faults = self._verdict, self._verdict.faults
        recorded: Dict[str, int] = collections.Counter()
        for one in said:
            recorded.update({envelope: units for envelope, (_, units) in one["taken"].items()})
            verdict.recorded = verdict.recorded.plus(Tally(*map(sum, zip(*one["taken"].values()))))
            if one["in_memory"]:
                faults.append(f"a recorder ended with {one['in_memory']} events in memory: {one['problem']}")
        billed, marks = self._bill()
        verdict.billed = Tally(sum(billed.values()) // UNIT, sum(billed.values()))
        faults += [
            f"{name}: {units:,} units recorded, {billed.get(name, 0):,} billed"
            for name, units in sorted(recorded.items())
            if units != billed.get(name, 0)
        ]
        wanted = [mark for one in said for mark in one["marks"]]
        faults += [f"{mark} is on the bill {marks[mark]} times" for mark in wanted if marks[mark] != 1][:5]
        faults += self._ledger_faults(stats)

    def _ledger_faults(self, stats: BufferStats) -> List[str]:
        sums = stats.delivered.plus(stats.pending).plus(stats.dead).plus(stats.dropped)
        faults = [] if stats.recorded == sums else [f"the store's ledger does not add up: {stats}"]
        if stats.recorded != self._verdict.recorded:
            faults.append(f"the store says {stats.recorded} recorded, the recorders {self._verdict.recorded}")
        if stats.delivered != stats.recorded:
            faults.append(f"not everything is delivered: {stats}")
        return faults

    def _bill(self) -> Any:
        """Units by envelope, and how often each mark was booked."""
        posts: Dict[str, Dict[str, Any]] = {}
        billed: Dict[str, int] = collections.Counter()
        marks: Dict[str, int] = collections.Counter()
        keys = set()
        for line in logs.read(self._folder / logs.SERVER):
            if line["what"] == "arrived":
                posts[line["attempt"]] = {**json.loads(line["body"]), "key": line["key"]}
                self._verdict.posts += 1
            elif line["what"] == "booked":
                post = posts[line["attempt"]]
                self._verdict.replays += post["key"] in keys
                billed[post["envelopeId"]] += line["units"]
                mark = (post.get("metadata") or {}).get("mark")
                if mark is not None and post["key"] not in keys:
                    marks[mark] += 1
                keys.add(post["key"])
        return billed, marks
