"""Reports the events of a file through a buffered client: each once, however often it is stopped and begun again.

The events are stored one after another into a spool of the file's own, so what its ledger has as recorded is the first
so many good lines of the file: they are skipped when the replay begins again. What is sent twice all the same (a
process that was killed had POSTs under way) has the same idempotency key, made of the file's content up to the line.
"""

from __future__ import annotations

import os
import time
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Protocol

from x402tools import QueueFullError, UsageBuffer, ValidationError, X402Client
from x402tools._bell import Flag
from x402tools._cli import position
from x402tools._cli.position import Position
from x402tools._cli.usage_lines import Entry, Source
from x402tools._event import check_amount, check_id, check_key, snapshot_metadata
from x402tools.buffer import BufferStats
from x402tools.demo.usage_file import BadLine, UsageLine

_TICK = 0.25  # seconds between two looks
_SAVE_EVERY = 1.0  # seconds; the position that is saved is the one of a save earlier, which is stored by then
_BAD_LINES_KEPT = 100  # that are told one by one


class OtherFileError(Exception):
    """The file is not the one whose replay was begun."""


class Told(Protocol):
    """Who is told how it goes."""

    def progress(self, replay: Replay) -> None: ...

    def bad(self, line: BadLine) -> None: ...


class Report(NamedTuple):
    """How it ended.

    Attributes:
        interrupted: before all was read, or delivered.
        problem: why something is pending.
    """

    lines: int
    skipped: int
    recorded: int
    rejected: int
    bad_lines: List[BadLine]
    stats: Optional[BufferStats]
    interrupted: bool
    problem: Optional[str]

    def document(self) -> Dict[str, Any]:
        """For JSON."""
        known = self._asdict()
        stats = known.pop("stats")
        ledger = {} if stats is None else {name: getattr(stats, name) for name in ("delivered", "pending", "dead")}
        return {**known, **ledger}


class Replay:
    """One file on its way.

    Args:
        source, kind: what is read, and its format.
        rejected: where bad lines are kept.
        told: who is told how it goes.
        stop: ends it early.
    """

    def __init__(self, source: Source, kind: str, rejected: Rejected, told: Told, stop: Flag) -> None:
        self.source = source
        self.lines = 0
        self.skipped = 0
        self.recorded = 0
        self.rejected = 0
        self.stats: Optional[BufferStats] = None
        self._kind = kind
        self._rejected = rejected
        self._told = told
        self._stop = stop
        self._bad_lines: List[BadLine] = []
        self._next_look = 0.0

    def check(self) -> Report:
        """Only reads the file."""
        for entry in self.source.entries(self._kind):
            if self._stop.is_set():
                break
            if self._good(entry) is not None:
                self.recorded += 1
        return self._report(None)

    def run(self, client: X402Client, spool: UsageBuffer, *, patience: float) -> Report:
        """Reports the events, and waits until they are delivered or nothing moves for `patience` seconds.

        Raises:
            OtherFileError: see there.
            ValueError, OSError: the file or the position cannot be read.
        """
        begun = position.load(spool.path)
        self.stats = spool.stats()
        stored = self.stats.recorded.events
        if begun is None:
            if stored:
                raise OtherFileError(f"{spool.path}: is used by something else; give --spool a path of its own")
            begun = Position()
            position.save(spool.path, begun)
        last = self._record(client, spool, begun, stored)
        problem = self._drain(client, spool, patience)
        position.save(spool.path, last)
        return self._report(problem)

    def _record(self, client: X402Client, spool: UsageBuffer, begun: Position, stored: int) -> Position:
        """Records every good line after the first `stored` ones; the position of the last line."""
        here = earlier = begun
        is_known = begun.line == 0
        save_at = time.monotonic() + _SAVE_EVERY
        for entry in self.source.entries(self._kind):
            if self._stop.is_set():
                return here
            line = self._good(entry)
            number = entry.event.number if entry.event is not None else here.line
            if not is_known and number >= begun.line and entry.event is not None:
                is_known = Position(number, entry.fingerprint) == begun
                if not is_known:
                    raise OtherFileError(f"line {begun.line} of the file is not what it was when its replay was begun")
            if line is not None and self.skipped < stored:
                self.skipped += 1
            elif line is not None:
                self._store(client, spool, line, entry.fingerprint)
            if number > here.line:
                here = Position(number, entry.fingerprint)
            now = time.monotonic()
            if now >= self._next_look:
                self._look(spool)
            if now >= save_at and is_known:
                position.save(spool.path, earlier)
                earlier, save_at = here, now + _SAVE_EVERY
        if not is_known:
            raise OtherFileError(f"the file ends before line {begun.line}, where its replay was")
        return here

    def _store(self, client: X402Client, spool: UsageBuffer, line: UsageLine, fingerprint: str) -> None:
        key = line.key or f"{fingerprint}-{line.number}"
        while not self._stop.is_set():
            try:
                client.record_usage(line.envelope_id, line.amount, line.metadata, idempotency_key=key)
                self.recorded += 1
                return
            except QueueFullError:
                self._look(spool)
                self._stop.wait(_TICK)

    def _drain(self, client: X402Client, spool: UsageBuffer, patience: float) -> Optional[str]:
        """Why something is pending in the end, or None."""
        moved, before = time.monotonic(), self._look(spool)
        while not self._stop.is_set():
            result = client.flush(_TICK)
            if result:
                self._look(spool)
                return None
            now, stats = time.monotonic(), self._look(spool)
            if stats.pending != before.pending:
                moved, before = now, stats
            if now - moved >= patience:
                return result.problem or "nothing was delivered for too long"
        return "interrupted"

    def _good(self, entry: Entry) -> Optional[UsageLine]:
        """The event, if it is one that can be recorded; a bad line is kept aside."""
        event = entry.event
        if event is None:
            self._rejected.write(entry.raw, self.source.header)
            return None
        self.lines += 1
        bad = event if isinstance(event, BadLine) else _refusal(event)
        if bad is None:
            return event  # type: ignore[return-value]  # not a BadLine
        self.rejected += 1
        self._rejected.write(entry.raw, self.source.header)
        if len(self._bad_lines) < _BAD_LINES_KEPT:
            self._bad_lines.append(bad)
        self._told.bad(bad)
        return None

    def _look(self, spool: UsageBuffer) -> BufferStats:
        self.stats = spool.stats()
        self._told.progress(self)
        self._next_look = time.monotonic() + _TICK
        return self.stats

    def _report(self, problem: Optional[str]) -> Report:
        return Report(
            self.lines,
            self.skipped,
            self.recorded,
            self.rejected,
            self._bad_lines,
            self.stats,
            self._stop.is_set(),
            problem,
        )


class Rejected:
    """The file of bad lines, word for word: made when the first one comes, and written anew by every run.

    Args:
        path: None keeps none.
    """

    def __init__(self, path: Optional[str]) -> None:
        self.path = path
        self._file: Optional[BinaryIO] = None

    def write(self, raw: bytes, header: bytes) -> None:
        """Keeps a line, or a piece of one; `header` stands above them all, for the names of columns."""
        if self.path is None:
            return
        if self._file is None:
            # Readable by its owner only: metadata may name people.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = open(descriptor, "wb")  # noqa: SIM115 - closed by `close`
            self._file.write(header)
        self._file.write(raw)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _refusal(line: UsageLine) -> Optional[BadLine]:
    """Why the client would refuse the event, or None."""
    try:
        check_id(line.envelope_id, "envelope_id")
        check_amount(line.amount)
        snapshot_metadata(line.metadata)
        if line.key is not None:
            check_key(line.key)
    except ValidationError as error:
        return BadLine(line.number, str(error))
    return None
