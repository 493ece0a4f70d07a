"""start-exit: importing, ending, and being killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional

from benchmarks.harness.contest import Contest
from benchmarks.harness.figures import median
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size
from benchmarks.peers.recorders import REQUIRES
from benchmarks.peers.recording import new_progress, returned
from benchmarks.report.model import OURS, PEER, Goal, Row, Section, Table

NAME = "start-exit"
RECORDING = "benchmarks.peers.recording:Recording"
EVENTS = 10_000
RATE = 5000.0
# What is imported, and what was before. `import x402tools` alone imports nothing that is not asked for.
NAMES, BEYOND = "from x402tools import UsageBuffer, X402Client", "the same, requests imported already"
IMPORTS = {
    "import x402tools": ("import x402tools", "time", OURS),
    NAMES: (NAMES, "time", OURS),
    BEYOND: (NAMES, "requests", OURS),
    "import requests": ("import requests", "time", PEER),
    "import segment.analytics": ("import segment.analytics", "time", PEER),
    "import posthog": ("import posthog", "time", PEER),
}
LABELS = {
    "ours": ("UsageBuffer, exit_timeout=0", OURS),
    "commit": ('UsageBuffer, durability="commit"', OURS),
    "default": ("UsageBuffer, exit_timeout=2 (default)", OURS),
    "segment": ("segment", PEER),
    "posthog": ("posthog", PEER),
}


def run(size: Size) -> Section:
    """The section."""
    rounds, seconds = size.pick(1, 2, 5), size.pick(1.0, 3.0, 10.0)
    section = Section(
        NAME,
        f"importing in a new process; recording {EVENTS:,} events as fast as it can and leaving the program; "
        f"recording {RATE:,.0f} events/s for {seconds:g} s and SIGKILL. {rounds} interleaved rounds. Kept is what has "
        "arrived at the sink, and for ours what a new start finds in the spool.",
        "SIGTERM without a handler, which ends Python like SIGKILL; a service that is away at the end.",
    )
    imports = _imports(size.pick(3, 10, 30))
    exits: Dict[str, List[Dict[str, float]]] = {}
    kills: Dict[str, List[Dict[str, float]]] = {}
    for _ in range(rounds):
        for key in LABELS:
            left = _leave(key, section) if key != "commit" else None
            if left is not None:
                exits.setdefault(key, []).append(left)
            survived = _kill(key, seconds) if key != "default" else None
            if survived is not None:
                kills.setdefault(key, []).append(survived)
    rows = [Row(name, IMPORTS[name][2], {"ms": ms}) for name, ms in imports.items()]
    section.tables = [
        Table("start", rows),
        Table(f"{EVENTS:,} events, then the end of the program", _rows(exits)),
        Table(f"SIGKILL at {RATE:,.0f} events/s", _rows(kills)),
    ]
    ours = _summary(exits["ours"])
    killed = {key: _summary(found)["lost"] / rounds for key, found in kills.items()}
    section.goals = [
        Goal("import, beyond requests", imports[BEYOND], 20.0, False, "ms"),
        Goal("exit after 10,000 events", ours["exit s"], 0.3, False, "s"),
        Goal("lost by leaving", ours["lost"], 0, False, "events"),
        Goal('lost by SIGKILL, "interval": the last', killed["ours"] / RATE * 1000, 10.0, False, "ms"),
        Goal('lost by SIGKILL, "commit"', killed["commit"], 0, False, "events"),
    ]
    return section


def _imports(times: int) -> Dict[str, float]:
    """Milliseconds of each statement in a new process, the median of interleaved runs, all of it compiled before,
    as what pip has installed is."""
    program = "import time, {}; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1000)"
    taken: Dict[str, List[float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(times + 1):
            for name, (statement, before, _) in IMPORTS.items():
                command = [sys.executable, "-c", program.format(before, statement)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    taken.setdefault(name, []).append(float(done.stdout))
    return {name: median(values[1:]) for name, values in taken.items()}  # the first fills the caches


def _options(key: str, url: str, folder: str) -> Dict[str, Any]:
    options: Dict[str, Any] = {"peer": key if key in REQUIRES else "ours", "url": url, "folder": folder}
    options["progress"] = new_progress(folder)
    options["buffer"] = {"ours": {"exit_timeout": 0.0}, "commit": {"durability": "commit"}}.get(key, {})
    return options


def _leave(key: str, section: Section) -> Optional[Dict[str, float]]:
    with Service() as service, Contest() as contest:
        folder = contest.folder()
        contest.enter(key, RECORDING, _options(key, service.url(key), folder), requires=REQUIRES.get(key))
        contest.ready()
        section.missing.update(contest.missing)
        if key not in contest.workers:
            return None
        worker = contest.workers[key]
        recorded = worker.call("record", count=EVENTS)["events"]
        begin = time.monotonic()
        contest.workers.pop(key).close()
        took = time.monotonic() - begin
        kept = service.tally(key)["events"] if key in REQUIRES else _in_the_books(contest, folder, service.url(key))
        return {"exit s": took, "recorded": recorded, "kept": kept}


def _kill(key: str, seconds: float) -> Optional[Dict[str, float]]:
    with Service() as service, Contest() as contest:
        folder = contest.folder()
        options = _options(key, service.url(key), folder)
        contest.enter(key, RECORDING, options, requires=REQUIRES.get(key))
        contest.ready()
        if key not in contest.workers:
            return None
        worker = contest.workers[key]
        worker.send("record", seconds=600.0, rate=RATE)
        deadline = time.monotonic() + seconds * 20
        while returned(options["progress"]) < RATE * seconds and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.kill()
        recorded = returned(options["progress"])
        time.sleep(0.2)  # for the sink to read what was sent before the kill
        kept = service.tally(key)["events"] if key in REQUIRES else _in_the_books(contest, folder, service.url(key))
        return {"recorded": recorded, "kept": kept}


def _in_the_books(contest: Contest, folder: str, url: str) -> int:
    """Events that a new start on the same spool knows of, delivered or pending."""
    options = {"peer": "ours", "url": url, "folder": folder, "buffer": {"deliver": False}}
    worker = contest.one("restart", RECORDING, options)
    return int(worker.call("settle", seconds=0.0)["accepted"])


def _summary(found: List[Dict[str, float]]) -> Dict[str, float]:
    figures = {name: median(one[name] for one in found) for name in found[0]}
    # A call under way when it is killed may be kept without having returned.
    lost = sum(max(one["recorded"] - one["kept"], 0) for one in found)
    return {**figures, "lost": lost, "lost %": lost / sum(one["recorded"] for one in found) * 100}


def _rows(found: Dict[str, List[Dict[str, float]]]) -> List[Row]:
    return [Row(*LABELS[key], dict(_summary(results))) for key, results in found.items()]
