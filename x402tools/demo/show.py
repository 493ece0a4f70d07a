"""The service under load while everything fails around it: starts the parts, plays the script, has the bill checked."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Dict, NamedTuple

from x402tools import UsageBuffer, X402Client
from x402tools._bell import Flag
from x402tools.demo import account, log_file
from x402tools.demo.account import Evidence
from x402tools.demo.load import Load
from x402tools.demo.progress import Progress
from x402tools.demo.server import Server
from x402tools.demo.service import Settings
from x402tools.demo.stage import HEAD, TICK, ShowFailed, Stage
from x402tools.testing import Emulator

CUSTOMERS = ("acme", "birch", "corvid", "dune", "ember")
PATIENCE = 30.0  # seconds without a single delivery after which the rest is given up
_REQUESTS_AT_ONCE = 6


class Plan(NamedTuple):
    """How the show is played: seconds of load, requests a second, worker processes, and the durability."""

    seconds: float
    rate: int
    workers: int
    durability: str


class Files(NamedTuple):
    """What a run writes, in its folder."""

    spool: str
    books: str
    settings: str
    access_log: str
    worker_log: str

    @classmethod
    def within(cls, folder: str) -> Files:
        names = ("usage.db", "emulator.db", "settings.json", "access.log", "workers.log")
        return cls(*(os.path.join(folder, name) for name in names))


def play(plan: Plan, folder: str, progress: Progress, stop: Flag) -> int:
    """Plays the show; 0 when the bill is right, 1 when it is not.

    Raises:
        Interrupted: `stop` was set. Everything that was started has ended.
        ShowFailed: a part did not start or did not end; everything that was started has ended.
    """
    files = Files.within(folder)
    with contextlib.ExitStack() as parts:
        emulator = parts.enter_context(Emulator(process=True, db=files.books))
        envelopes = {emulator.create_envelope(customer): customer for customer in CUSTOMERS}
        # Only looks: who delivers is for the workers to agree on.
        watch = parts.enter_context(UsageBuffer(files.spool, deliver=False))
        service = parts.enter_context(_service(plan, files, emulator, envelopes))
        _announce(plan, progress)
        stage = Stage(emulator, service, watch, files.worker_log, progress, stop)
        stage.await_workers(plan.workers)
        load = Load(service.port, CUSTOMERS, rate=plan.rate, seconds=plan.seconds, threads=_REQUESTS_AT_ONCE)
        parts.enter_context(load)
        stage.perform(plan.seconds, load)
        load.stop()
        emulator.clear_faults()
        if not service.stop(lambda: stage.look(load, "gets the rest: service stops")):
            raise ShowFailed("gunicorn did not end in time and was killed")
        _drain(files, emulator, stage, load)
        progress.rest()
        evidence = _evidence(plan, files, emulator, watch, stage, load, envelopes)
    lines, agrees = account.account(evidence)
    for line in lines:
        progress.say(line)
    return 0 if agrees else 1


def _service(plan: Plan, files: Files, emulator: Emulator, envelopes: Dict[str, str]) -> Server:
    by_customer = {customer: envelope_id for envelope_id, customer in envelopes.items()}
    settings = Settings(files.spool, files.access_log, files.worker_log, plan.durability, by_customer)
    settings.to_file(files.settings)
    destination = {"X402TOOLS_BASE_URL": emulator.base_url, "X402TOOLS_API_KEY": emulator.api_key}
    folder = os.path.dirname(files.settings)
    return Server(files.settings, folder=folder, workers=plan.workers, environment=destination)


def _announce(plan: Plan, progress: Progress) -> None:
    progress.say(f"A metered service: gunicorn, {plan.workers} workers, one spool, durability={plan.durability!r}.")
    progress.say(f"Load: {plan.rate} requests a second for {plan.seconds:g} s. Billing: the emulator of the API.")
    progress.say()
    progress.say(HEAD)


def _drain(files: Files, emulator: Emulator, stage: Stage, load: Load) -> None:
    """Delivers what the workers left in the spool when they ended, as long as anything moves."""
    buffer = UsageBuffer(files.spool)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        pending, moved = len(buffer), time.monotonic()
        while not client.flush(timeout=TICK) and time.monotonic() - moved < PATIENCE:
            if len(buffer) != pending:
                pending, moved = len(buffer), time.monotonic()
            stage.look(load, "gets what the workers left")
            stage.pause(0)
    stage.look(load, "is done", last=True)


def _evidence(
    plan: Plan,
    files: Files,
    emulator: Emulator,
    watch: UsageBuffer,
    stage: Stage,
    load: Load,
    envelopes: Dict[str, str],
) -> Evidence:
    return Evidence(
        durability=plan.durability,
        access_log=list(log_file.entries(files.access_log)),
        worker_log=list(log_file.entries(files.worker_log)),
        kills=stage.kills,
        ledger=emulator.ledger(),
        booked=emulator.events(),
        envelopes=envelopes,
        stats=watch.stats(),
        answered=load.answered,
        refused=load.refused,
        broken=load.broken,
    )
