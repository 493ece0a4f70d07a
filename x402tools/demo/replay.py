"""Reports a file of the user's own events through a buffered client, and sets the file against the bill."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Tuple

from x402tools import QueueFullError, UsageBuffer, ValidationError, X402Client
from x402tools._bell import Flag
from x402tools._event import check_amount, check_id, check_key, snapshot_metadata
from x402tools.buffer import BufferStats
from x402tools.demo import report, usage_file
from x402tools.demo.checking import Row
from x402tools.demo.destination import Destination, ToEmulator, ToService
from x402tools.demo.interruption import Interrupted
from x402tools.demo.progress import WIDTH, Progress
from x402tools.demo.usage_file import BadLine, UsageLine
from x402tools.demo.words import counted
from x402tools.testing import Emulator, Tally

_PATIENCE = 30.0  # seconds without a single delivery after which the rest is left in the spool
_TICK = 0.25  # seconds between two looks
_LINES_SHOWN = 10  # bad lines, and dead letters, that are told one by one
_HEAD = "   time      lines    spooled  delivered    waiting        bad"


@dataclass
class Reading:
    """What the file has said so far, by envelope; and how many of its lines were bad."""

    happened: Dict[str, Tally] = field(default_factory=dict)
    lines: int = 0
    bad: int = 0

    def add(self, envelope_id: str, amount: int) -> None:
        before = self.happened.get(envelope_id, Tally(0, 0))
        self.happened[envelope_id] = Tally(before.events + 1, before.units + amount)


def play(path: str, live: bool, folder: str, progress: Progress, stop: Flag) -> int:
    """Reports the events; 0 when every line was good and all are billed, 1 otherwise.

    Every event is sent under a key made of the file's content and its line, so that a file that is reported twice to
    the same service is billed once, if the service honours `Idempotency-Key`.

    Raises:
        OSError: the file cannot be read.
        Interrupted: `stop` was set; what was recorded by then is in the spool.
    """
    prefix = usage_file.digest(path)[:32]
    spool = os.path.join(folder, "usage.db")
    with contextlib.ExitStack() as parts:
        destination = _destination(live, folder, parts)
        # Raises when it is full: waiting in here could not be interrupted.
        buffer = UsageBuffer(spool, on_queue_full="raise", on_delivery=destination.delivered)
        client = parts.enter_context(X402Client(destination.api_key, destination.base_url, buffer=buffer))
        progress.say(f"Events of a file, reported to {'the service' if live else 'the emulator of the API'}.")
        progress.say()
        progress.say(_HEAD)
        replay = Replay(client, buffer, destination, progress, stop)
        replay.record(path, prefix)
        replay.drain()
        progress.rest()
        stats, letters = buffer.stats(), buffer.dead_letters(_LINES_SHOWN)
        client.close()  # the callbacks have been called when it returns
        rows = replay.rows()
    lines, agrees = _account(rows, replay.reading, stats, destination.title)
    for letter in letters:
        progress.say(f"refused: {letter.envelope_id} {letter.amount}: {letter.reason}"[:WIDTH])
    for line in lines:
        progress.say(line)
    if stats.pending.events and live:
        progress.say("What waits is in the spool of the folder kept; a client with that spool delivers it.")
    return 0 if agrees else 1


def _destination(live: bool, folder: str, parts: contextlib.ExitStack) -> Destination:
    if live:
        return ToService()
    return ToEmulator(parts.enter_context(Emulator(process=True, db=os.path.join(folder, "emulator.db"))))


class Replay:
    """One file on its way.

    Attributes:
        reading: what the file has said so far.
    """

    def __init__(
        self,
        client: X402Client,
        buffer: UsageBuffer,
        destination: Destination,
        progress: Progress,
        stop: Flag,
    ) -> None:
        self.reading = Reading()
        self._client = client
        self._buffer = buffer
        self._destination = destination
        self._progress = progress
        self._stop = stop
        self._began = time.monotonic()
        self._next_look = 0.0

    def record(self, path: str, prefix: str) -> None:
        """Records every good line, and tells of the bad ones."""
        for line in usage_file.read(path):
            self._pause(0)
            self.reading.lines += 1
            reason = line.reason if isinstance(line, BadLine) else self._record(line, prefix)
            if reason:
                self._complain(line.number, reason)
            if time.monotonic() >= self._next_look:
                self._look()

    def drain(self) -> None:
        """Waits until everything is delivered or set aside, or until nothing moves any more."""
        stats = self._look()
        moved = time.monotonic()
        while not self._client.flush(_TICK) and time.monotonic() - moved < _PATIENCE:
            before, stats = stats, self._look()
            if before.pending != stats.pending:
                moved = time.monotonic()
            self._pause(0)
        self._look(last=True)

    def rows(self) -> List[Row]:
        """What the file says and what was billed, by envelope."""
        billed = self._destination.billed()
        nothing = Tally(0, 0)
        envelope = self._destination.envelope
        return [Row(name, said, billed.get(envelope(name), nothing)) for name, said in self.reading.happened.items()]

    def _record(self, line: UsageLine, prefix: str) -> str:
        """Records the event; returns what is wrong with it, or nothing."""
        try:
            # Before the envelope is made: a bad line shall leave no trace.
            check_id(line.envelope_id, "envelope_id")
            check_amount(line.amount)
            snapshot_metadata(line.metadata)
            envelope_id = self._destination.envelope(line.envelope_id)
            key = f"{prefix}-{line.number}" if line.key is None else check_key(line.key)
            self._store(envelope_id, line, key)
        except ValidationError as error:
            return str(error)
        self.reading.add(line.envelope_id, line.amount)
        return ""

    def _store(self, envelope_id: str, line: UsageLine, key: str) -> None:
        while True:
            try:
                self._client.record_usage(envelope_id, line.amount, line.metadata, idempotency_key=key)
                return
            except QueueFullError:
                self._look()
                self._pause(_TICK)

    def _complain(self, number: int, reason: str) -> None:
        self.reading.bad += 1
        if self.reading.bad <= _LINES_SHOWN:
            self._progress.say(f"line {number:,}: {reason}"[:WIDTH])
        elif self.reading.bad == _LINES_SHOWN + 1:
            self._progress.say("(further bad lines are only counted)")

    def _look(self, *, last: bool = False) -> BufferStats:
        stats = self._buffer.stats()
        figures = (self.reading.lines, stats.recorded.events, stats.delivered.events, stats.pending.events)
        text = "  ".join(f"{figure:>9,}" for figure in (*figures, self.reading.bad))
        self._progress.show(f"{time.monotonic() - self._began:>5.0f} s  {text}", last=last)
        self._next_look = time.monotonic() + _TICK
        return stats

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Interrupted


def _account(rows: List[Row], reading: Reading, stats: BufferStats, title: str) -> Tuple[List[str], bool]:
    faults = list(_faults(rows, reading, stats))
    count = sum(row.happened.events for row in rows)
    lines = ["", *report.table(rows, "file", title), ""]
    lines += report.labelled(
        [("Lines", f"{reading.lines:,} read, {reading.bad:,} bad"), ("Spool", report.spool(stats))]
    )
    proof = f"each of the {count:,} events of the file is on the bill, once and to the unit."
    return [*lines, "", *report.verdict(faults, proof)], not faults


def _faults(rows: List[Row], reading: Reading, stats: BufferStats) -> Iterator[str]:
    wrong = sum(row.difference != (0, 0) for row in rows)
    if reading.bad:
        yield f"{reading.bad:,} of {reading.lines:,} lines were bad and are not billed"
    if not rows:
        yield "the file has no event"
    if wrong:
        yield f"{wrong:,} of {len(rows):,} envelopes differ"
    if stats.dead.events:
        yield counted(stats.dead.events, "event was refused for good", "events were")
    if stats.pending.events:
        why = stats.problem or "no answer"
        yield counted(stats.pending.events, f"event could not be delivered: {why}", "events")
