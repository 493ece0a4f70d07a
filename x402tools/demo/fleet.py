"""The fleet's show: hosts that record into one engine, workers that deliver from it, one of them killed; then the bill.

    python -m x402tools.demo.fleet [--seconds 15] [--rate 200] [--keep DIR]

Exits with 0 when each event is on the bill exactly once, 1 when not or when the show could not be played, 3 when a
package is missing and 130 when it was interrupted. Every process that was started has ended by then.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from typing import Dict, List, Optional, Sequence, Tuple

import x402tools
from x402tools import SpoolError, UsageBuffer
from x402tools._bell import Flag
from x402tools.buffer import BufferStats
from x402tools.demo import checking, interruption, log_file, report
from x402tools.demo.engine import Engine
from x402tools.demo.fleet_host import Settings
from x402tools.demo.folder import FolderInUseError, run_folder
from x402tools.demo.interruption import Interrupted
from x402tools.demo.progress import Progress
from x402tools.demo.show import CUSTOMERS
from x402tools.demo.stage import ShowFailed
from x402tools.errors import MissingExtraError, X402Error
from x402tools.testing import Emulator, EmulatorError, Fault, Ledger

HOSTS, WORKERS = 2, 2

_HEAD = "  time  recorded  delivered  waiting  what happens"
_TICK = 0.25  # seconds between two looks
_PATIENCE = 30.0  # seconds without a single delivery after which the rest is given up
_END_SECONDS = 30.0

# Seconds. A worker that is killed leaves what it held; a minute, as usual, would be longer than the show.
_LEASE = 3

# When, as a share of the whole.
_LOSES_FROM, _KILL_AT, _REPLACE_AT, _CALM_FROM = 0.15, 0.4, 0.6, 0.8
_LOSING = (Fault.reset_after_commit(share=0.05), Fault.status(500, share=0.05))


class Child:
    """A process of the show, in a session of its own: Ctrl-C in a terminal is for the show, which then ends it."""

    def __init__(self, log: str, emulator: Emulator, *arguments: str) -> None:
        here = os.path.dirname(os.path.dirname(os.path.abspath(x402tools.__file__)))
        paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        destination = {"X402TOOLS_BASE_URL": emulator.base_url, "X402TOOLS_API_KEY": emulator.api_key}
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - a command of our own
                [sys.executable, "-m", *arguments],
                env={**os.environ, "PYTHONPATH": paths, "NO_PROXY": "127.0.0.1", **destination},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def status(self) -> Optional[int]:
        """What it ended with; None while it runs."""
        return self._popen.poll()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it, by SIGKILL when it does not end by itself in time; what it ended with."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
        try:
            return self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


class Show:
    """The running parts, and the clock."""

    def __init__(self, engine: Engine, emulator: Emulator, folder: str, progress: Progress, stop: Flag) -> None:
        self._engine = engine
        self._emulator = emulator
        self._folder = folder
        self._progress = progress
        self._stop = stop
        self._children: List[Child] = []
        self._watch = UsageBuffer(store=engine.url, deliver=False)
        self._begun = time.monotonic()
        self._stats: Optional[BufferStats] = None
        self.access_log = os.path.join(folder, "access.log")
        self.killed: List[int] = []

    def play(self, seconds: float, rate: float, envelopes: Dict[str, str]) -> BufferStats:
        """Plays it; the store's own ledger at the end."""
        settings = Settings(self._engine.url, self.access_log, envelopes, seconds, rate / HOSTS)
        hosts = [self._start("host", "x402tools.demo.fleet_host", json.dumps(settings._asdict())) for _ in range(HOSTS)]
        workers = [self._worker() for _ in range(WORKERS)]
        while not (self._stats is not None and self._stats.recorded.events) and all(
            host.status is None for host in hosts
        ):
            self._look("hosts and workers start")
        self._begun = time.monotonic()
        self._until(seconds * _LOSES_FROM, "the service answers as it should")
        self._emulator.set_faults(*_LOSING)
        self._until(seconds * _KILL_AT, "answers get lost")
        workers[0].end(signal.SIGKILL)
        self.killed.append(workers[0].pid)
        self._note(f"worker {workers[0].pid} is killed by SIGKILL")
        self._until(seconds * _REPLACE_AT, "answers get lost, one worker")
        workers[0] = self._worker()
        self._note(f"worker {workers[0].pid} is started in its place, as on any other host")
        self._until(seconds * _CALM_FROM, "answers get lost")
        self._emulator.clear_faults()
        while any(host.status is None for host in hosts):
            self._look("the service answers as it should")
        if any(host.status for host in hosts):
            raise ShowFailed("a host failed; see host.log with --keep DIR")
        self._drain()
        statuses = [worker.end() for worker in workers]
        if any(statuses):
            raise ShowFailed("a worker did not end in order; see worker.log with --keep DIR")
        return self._watch.stats()

    def close(self) -> None:
        """Ends what still runs."""
        for child in self._children:
            child.end(signal.SIGKILL)
        self._watch.close(0)

    def _worker(self) -> Child:
        words = ("worker", "--store", self._engine.url, "--lease", f"{_LEASE}s", "--grace", "10s")
        return self._start("worker", "x402tools", *words)

    def _start(self, name: str, *arguments: str) -> Child:
        child = Child(os.path.join(self._folder, f"{name}.log"), self._emulator, *arguments)
        self._children.append(child)
        return child

    def _until(self, moment: float, what: str) -> None:
        while time.monotonic() - self._begun < moment:
            self._look(what)

    def _drain(self) -> None:
        delivered, moved = -1, time.monotonic()
        while time.monotonic() - moved < _PATIENCE:
            self._look("the workers deliver the rest")
            if self._stats is None:
                continue
            if self._stats.pending.events == 0:
                break
            if self._stats.delivered.events != delivered:
                delivered, moved = self._stats.delivered.events, time.monotonic()
        self._look("done", last=True)
        self._progress.rest()

    def _look(self, what: str, *, last: bool = False) -> None:
        with contextlib.suppress(SpoolError):  # what was seen last is shown again
            self._stats = self._watch.stats()
        if self._stats is not None:
            recorded, delivered, pending = self._stats.recorded, self._stats.delivered, self._stats.pending
            figures = f"{recorded.events:>8,}  {delivered.events:>9,}  {pending.events:>7,}"
            self._progress.show(f"{time.monotonic() - self._begun:>4.0f} s  {figures}  {what}", last=last)
        if self._stop.wait(0 if last else _TICK):
            raise Interrupted

    def _note(self, text: str) -> None:
        self._progress.say(f"{time.monotonic() - self._begun:>4.0f} s  ** {text}")


def play(seconds: float, rate: float, folder: str, progress: Progress, stop: Flag) -> int:
    """Plays the show; 0 when the bill is right, 1 when it is not.

    Raises:
        Interrupted: `stop` was set. Everything that was started has ended.
        ShowFailed: a part did not start or did not end; everything that was started has ended.
    """
    with contextlib.ExitStack() as parts:
        engine = parts.enter_context(Engine(folder))
        emulator = parts.enter_context(Emulator(process=True, db=os.path.join(folder, "emulator.db")))
        envelopes = {customer: emulator.create_envelope(customer) for customer in CUSTOMERS}
        progress.say(f"A fleet: {HOSTS} hosts record into one {engine.name}, {WORKERS} workers deliver from it.")
        progress.say(f"Load: {rate:g} events a second for {seconds:g} s. Billing: the emulator of the API.")
        progress.say()
        progress.say(_HEAD)
        show = Show(engine, emulator, folder, progress, stop)
        parts.callback(show.close)
        stats = show.play(seconds, rate, envelopes)
        lines, faults = _account(show, stats, emulator, envelopes)
    for line in lines:
        progress.say(line)
    return 1 if faults else 0


def _account(
    show: Show, stats: BufferStats, emulator: Emulator, envelopes: Dict[str, str]
) -> Tuple[List[str], List[str]]:
    """The lines to print, and what is wrong."""
    requests = checking.requests_in(log_file.entries(show.access_log))
    names = {envelope_id: customer for customer, envelope_id in envelopes.items()}
    outcome = checking.compare(requests, emulator.events(), names)
    ledger = emulator.ledger()
    faults = [*outcome.faults, *_disagreements(stats, ledger, len(requests))]
    proof = (
        f"each of the {len(requests):,} events that the hosts recorded is on the bill exactly once, to the unit, "
        f"although a worker was killed with its POSTs under way and answers of the billing service got lost."
    )
    lines = ["", "The hosts' logs (what was recorded) against the emulator's ledger (what is billed):", ""]
    lines += [*report.bill(outcome), ""]
    lines += report.labelled(
        [
            ("Killed", " and ".join(f"worker {pid}" for pid in show.killed)),
            ("Engine", report.spool(stats)),
            ("Emulator", f"{ledger.repeats_dropped:,} repeats recognized by their key and not booked again"),
        ]
    )
    return [*lines, "", *report.verdict(faults, proof)], faults


def _disagreements(stats: BufferStats, ledger: Ledger, recorded: int) -> List[str]:
    settled = stats.delivered.plus(stats.pending).plus(stats.dead).plus(stats.dropped)
    checks: Sequence[Tuple[bool, str]] = (
        (stats.recorded != settled, f"the engine's own ledger does not add up: {report.spool(stats)}"),
        (stats.delivered != stats.recorded, f"not everything was delivered: {report.spool(stats)}"),
        (
            tuple(stats.delivered) != (ledger.events, ledger.units),
            f"the emulator's ledger has {ledger.events:,} events",
        ),
        (stats.recorded.events != recorded, f"the hosts recorded {recorded:,} events, the engine says another number"),
        (not recorded, "nothing was recorded, so nothing was tried"),
    )
    return [fault for is_wrong, fault in checks if is_wrong]


def main(words: Optional[List[str]] = None) -> int:
    """Parses the command line and plays the show; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m x402tools.demo.fleet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="how long hosts record (default %(default)g)")
    parser.add_argument("--rate", type=float, default=200.0, help="events a second, of all hosts (default %(default)g)")
    parser.add_argument("--keep", metavar="DIR", help="leave engine, books and logs in this new folder")
    chosen = parser.parse_args(words)
    progress = Progress(sys.stdout)
    logging.getLogger("x402tools").setLevel(logging.ERROR)  # that this engine has no replica is no news here
    try:
        if any(importlib.util.find_spec(package) is None for package in ("redis", "click", "starlette", "uvicorn")):
            raise MissingExtraError("the demo of a fleet", "demo-fleet")
        with interruption.noticed() as stop, run_folder(chosen.keep) as folder:
            return play(chosen.seconds, chosen.rate, folder, progress, stop)
    except ImportError as error:
        print(f"x402tools: {error}", file=sys.stderr)
        return 3
    except Interrupted:
        progress.rest()
        progress.say("Interrupted; everything that was started has ended.")
        return interruption.EXIT_CODE
    except (ShowFailed, EmulatorError, FolderInUseError, OSError, X402Error) as error:
        progress.rest()
        print(f"x402tools demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
