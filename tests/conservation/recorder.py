"""A process that records usage through the public API, and writes down what it was promised.

    python -m tests.conservation.recorder FOLDER BASE_URL PLAN OPTIONS UNKNOWN

FOLDER is where the spool and the logs are, PLAN a `ProcessPlan` as JSON, OPTIONS those of the buffer as JSON, UNKNOWN
the share of the events for an envelope that the service does not know. Once it records it prints one line of JSON with
the ids of its processes. Its standard output stays open as long as one of them lives.

Each process has an API key of its own, so that the server can tell them apart without anything added to the wire.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from tests.conservation import logs
from tests.conservation.plan import UNKNOWN_ENVELOPE, Ending, ProcessPlan, child_name, process_from_json
from x402tools import BufferClosedError, UsageBuffer, X402Client

LEDGER = ("recorded", "delivered", "pending", "dead", "dropped")

# Nobody waits for a signal for longer than this: the campaign itself may have been killed.
LONGEST_STAY = 60.0

_LARGEST_AMOUNT = 2**53 - 1


class PlannedFailure(Exception):
    """The exception of a process that is meant to end with one."""


class Recorder:
    """This process, or after a fork the child."""

    def __init__(self, folder: pathlib.Path, base_url: str, plan: ProcessPlan, options: Dict[str, Any], unknown: float):
        self.name = plan.name
        self._plan = plan
        self._unknown = unknown
        self._intents = logs.Log(folder / logs.INTENTS)
        self._acks = logs.Log(folder / logs.ACKS)
        self._life = logs.Log(folder / logs.LIFE)
        self._never = threading.Event()  # only waited on
        self._threads: List[threading.Thread] = []
        self._leaving = False
        atexit.register(self._ended)  # before the buffer registers its own, so that it runs after that
        self._buffer = UsageBuffer(folder / "usage.db", deliver=plan.deliver, **options)
        self._client = X402Client(lambda: f"sk_{self.name}", base_url, timeout=(1.0, 1.0), buffer=self._buffer)

    def run(self) -> None:
        if self._plan.signal is not None and self._plan.signal.handled:
            signal.signal(signal.SIGTERM, self._terminate)
        pids = {self.name: os.getpid()}
        if self._plan.child_endings:
            self._start_threads(0.3)  # so that there is something to inherit: events in memory, threads, locks
        for position, ending in enumerate(self._plan.child_endings):
            pid = os.fork()
            if pid == 0:
                self.name, self._threads = child_name(self._plan.name, position), []
                self._start_threads()
                self._leave(ending)
                return
            pids[child_name(self._plan.name, position)] = pid
        self._start_threads(0.7 if self._plan.child_endings else 1.0)
        print(json.dumps(pids), flush=True)
        self._leave(self._plan.ending)

    # -- recording -----------------------------------------------------------------------------------------------

    def _start_threads(self, part: float = 1.0) -> None:
        """Threads that record this part of the plan; daemons, so that they still record while the process ends."""
        each = int(self._plan.number * part) // self._plan.threads
        for _ in range(self._plan.threads):
            thread = threading.Thread(target=self._record, args=(len(self._threads), each), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _record(self, place: int, number: int) -> None:
        rng = random.Random(f"{self.name}/{place}")
        rate = self._plan.rate / self._plan.threads
        start = time.monotonic()
        for count in range(number):
            if not self._record_one(f"{self.name}/{place}/{count}", rng):
                return
            if (count + 1) % self._plan.burst == 0:
                self._never.wait(max(start + (count + 1) / rate - time.monotonic(), 0.0))

    def _record_one(self, mark: str, rng: random.Random) -> bool:
        """False when the buffer is closed."""
        envelope, amount, metadata, key = _draw_event(mark, rng, self._unknown)
        what = {"mark": mark, "process": self.name, "envelope": envelope, "amount": amount}
        what["digest"] = logs.digest(metadata)
        self._intents.write(**what, at=logs.now())
        try:
            usage = self._client.record_usage(envelope, amount, metadata, idempotency_key=key)
        except BufferClosedError:
            self._acks.write(mark=mark, process=self.name, refused="closed", at=logs.now())
            return False
        at = logs.now()
        if usage.pending:
            self._acks.write(**what, id=usage.id, pid=os.getpid(), at=at, wall=time.time_ns())
        else:
            self._acks.write(mark=mark, process=self.name, refused="dropped", at=at)
        return True

    # -- ending --------------------------------------------------------------------------------------------------

    def _leave(self, ending: Ending) -> None:
        if ending.how == "stay":
            self._never.wait(LONGEST_STAY)
        elif ending.after is not None:
            self._never.wait(ending.after)
        else:
            for thread in self._threads:
                thread.join()
        if ending.how == "drain+requeue":
            self._buffer.requeue()
        if ending.flush:
            self._flush(ending.flush)
        if ending.how.startswith("drain"):
            stats = self._buffer.stats()
            ledger = {name: list(getattr(stats, name)) for name in LEDGER}
            self._note("drained", ledger=ledger, problem=stats.problem)
        self._leaving = True
        self._note("leaving", how=ending.how)
        if ending.how == "os_exit":
            os._exit(4)
        if ending.how in ("close", "drain", "drain+requeue"):
            self._client.close()
            self._note("closed")
        elif ending.how == "exit":
            sys.exit(3)
        elif ending.how == "raise":
            raise PlannedFailure

    def _flush(self, seconds: float) -> None:
        began = logs.now()
        try:
            flushed = bool(self._client.flush(seconds))
        except BufferClosedError:  # a signal handler has closed it meanwhile
            return
        self._note("flushed", began=began, done=flushed, seconds=seconds)

    def _terminate(self, *_: object) -> None:
        self._note("leaving", how="SIGTERM")
        self._client.close()
        if not self._leaving:  # in the middle of an exit the exception would only be printed
            sys.exit(0)

    def _ended(self) -> None:
        self._note("closed")

    def _note(self, what: str, **more: Any) -> None:
        self._life.write(process=self.name, pid=os.getpid(), what=what, at=logs.now(), **more)


def _draw_event(
    mark: str, rng: random.Random, unknown: float
) -> Tuple[str, int, Optional[Dict[str, Any]], Optional[str]]:
    """Envelope, amount, metadata and the caller's own key; one of the last two carries the mark."""
    envelope = UNKNOWN_ENVELOPE if rng.random() < unknown else f"env_{rng.randint(1, 5)}"
    amount = rng.choice((1, 1, 1, 0, rng.randint(1, 10**6), _LARGEST_AMOUNT))
    shape = rng.random()
    if shape < 0.1:
        return envelope, amount, None, logs.KEY_PREFIX + mark
    metadata: Dict[str, Any] = {"mark": mark, "endpoint": "/api/users", "took_ms": rng.randint(1, 500), "ok": True}
    if shape < 0.2:
        metadata["user"] = {"name": "Zo\u00eb \u2603 \U0001f600", "tags": ["a", None, 0.5], "\u00fc": {"deep": [[]]}}
    elif shape < 0.22:
        metadata["note"] = "x" * rng.randint(1000, 8000)
    return envelope, amount, metadata, None


def main() -> None:
    faulthandler.enable()  # a hang is ended with SIGABRT, to see where it was
    folder, base_url, plan, options, unknown = sys.argv[1:]
    Recorder(pathlib.Path(folder), base_url, process_from_json(plan), json.loads(options), float(unknown)).run()


if __name__ == "__main__":
    main()
