"""What a buffer says of itself: what a flush left behind, the ledger, and whether its parts are well."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

from x402tools._store import Tally
from x402tools._timings import AttemptTimes


@dataclass(frozen=True)
class FlushResult:
    """What `flush` or `close` left behind; true when nothing is pending.

    Attributes:
        pending: events in the spool and in memory that are not settled, those of other processes included. While the
            spool cannot be read nobody can say: at least 1 then.
        problem: why they wait, as far as it is known. What is held waits for `reconcile`, and for nothing else.
    """

    pending: int
    problem: Optional[str] = None

    def __bool__(self) -> bool:
        return self.pending == 0


@dataclass(frozen=True)
class BufferStats:
    """The ledger, and how things stand. Always: recorded = delivered + pending + dead + dropped.

    The ledger belongs to the spool: it counts for all processes that share it and since the file was made, except
    that other processes' last few milliseconds are still in their memory. Each tally has `events` and `units`.

    Attributes:
        recorded, delivered, pending, dead, dropped: the ledger.
        in_memory: the part of pending that only the memory of this process has: a kill would lose it.
        in_flight: POSTs this process has under way.
        retries: attempts of this process that failed and are repeated.
        unknown_resends: those of them whose outcome was unknown, and that were repeated. A service that ignores keys
            has booked at most so many POSTs of this process twice.
        oldest_pending_age: seconds since the oldest pending event was stored, or None.
        delivering: True in the one process of all that share the spool which delivers.
        problem: why deliveries or the spool are at a halt, or None.
        spool_bytes: bytes in use in the spool.
        held: the part of pending whose outcome is unknown, and that is not sent again before `reconcile`.
        set_aside: damaged spool files that are kept beside the spool; what could be read of them was carried over.
        late: what this process has delivered after the envelope's reset although it was recorded before it, for
            envelopes it knows the period of (see `UsageBuffer.watch`); it was billed to the later period.
        attempts: how long the POSTs of this process took.
        in_flight_limit: POSTs this process may have under way at the moment: `max_concurrency`, or fewer while the
            service refuses some, takes longer than it did, or has just come back. 0 where another process delivers.
    """

    recorded: Tally
    delivered: Tally
    pending: Tally
    dead: Tally
    dropped: Tally
    in_memory: int
    in_flight: int
    retries: int
    oldest_pending_age: Optional[float]
    delivering: bool
    problem: Optional[str]
    spool_bytes: int
    set_aside: Tuple[str, ...] = ()
    held: Tally = field(default_factory=Tally)
    unknown_resends: int = 0
    late: Tally = field(default_factory=Tally)
    attempts: AttemptTimes = field(default_factory=AttemptTimes)
    in_flight_limit: int = 0


@dataclass(frozen=True)
class PartHealth:
    """One part of a buffer.

    Attributes:
        ok: it does what it is there for, or is not needed.
        state: in a word or two; `UsageBuffer.health` lists them.
        reason: why it is not ok, or what happened last.
    """

    ok: bool
    state: str
    reason: Optional[str] = None


@dataclass(frozen=True)
class Health:
    """How the parts of a buffer in this process are; for a health check or a metric.

    Attributes:
        writer: the thread that stores: "running"; "no thread" (the callers store); "not started"; "closed".
        flusher: the thread that delivers: "delivering"; "standing by" (another process delivers); "no thread" (only
            `flush` and `close` deliver); "off" (`deliver=False`, or no client yet); "not started"; "closed".
        spool: "works"; "failing"; "not started"; "closed".
        gate: "open"; "closed" (the service is away, asked to wait, or refuses the key).
        held: "none"; "holding" (events wait for `reconcile`, as many as `reason` says). Never a fault of this process,
            and so always ok. As far as this process has looked: those that another one holds show in `stats`.
    """

    writer: PartHealth
    flusher: PartHealth
    spool: PartHealth
    gate: PartHealth
    held: PartHealth = PartHealth(True, "none")

    @property
    def ok(self) -> bool:
        """Whether all of them are."""
        return all(part.ok for part in (self.writer, self.flusher, self.spool, self.gate))

    @property
    def problems(self) -> List[str]:
        """A line for each part that is not ok."""
        parts = {"writer": self.writer, "flusher": self.flusher, "spool": self.spool, "gate": self.gate}
        return [f"{name} {part.state}: {part.reason}" for name, part in parts.items() if not part.ok]

    def __bool__(self) -> bool:
        return self.ok
