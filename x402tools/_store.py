"""The seam between recording and delivering: where events wait, and the only ways in which they move.

        record                seal                  settle
    ──────────► recorded ──────────► sealed ──────────────────► gone (delivered)
                                     ▲ ▲ │ └───── bury ───────► dead
                                     │ └─┼─────── requeue ────────┘
                                     │   └─ hold ─► held ──────► gone (delivered, as reconcile found out)
                                     └── resend ────┘

    recorded   in the memory of the process (`_intake`); with coalescing also on disk until its window is folded: one
               transaction makes the events gone as recorded ones and the POSTs they add up to sealed
    sealed     a frozen POST on disk: its amount and its idempotency key never change again; only these are sent
    gone       the service has it; nothing is kept but a count
    dead       set aside with the reason, until somebody requeues it under its old key or removes it
    held       nobody knows whether the service has it: set aside until it is compared with what the service has

"In flight" is no state: a process that dies while it sends leaves a sealed POST, which is sent again under the same
key. Only where that is not wanted (`on_unknown="hold"`, `idempotency_window`) a sealed POST is noted as being sent
before it goes out: the note tells the next process that its outcome is unknown.

Who moves what: the writer thread appends; the flusher thread of the one process that holds the claim notes, settles,
buries and holds; requeue and reconcile come from whoever operates the service, in any process. What is held is moved
by nobody else, and each move counts only the rows that it finds, so two that reconcile at once move nothing twice.

The ledger adds up at any moment and across restarts: recorded = delivered + pending + dead + dropped, in events and
in units of usage. What is held is a part of pending. Recorded, delivered and dropped are counters kept in the same
transactions as the rows they count; pending, held and dead are counted from the rows themselves, so that the equation
can fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple, Union

from x402tools._batch import EncodedBatch, Post
from x402tools._columns import Columns, Row
from x402tools.errors import SpoolError


class Tally(NamedTuple):
    """A number of events and the units of usage they add up to."""

    events: int = 0
    units: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(self.events + other.events, self.units + other.units)

    def minus(self, other: Tally) -> Tally:
        return Tally(self.events - other.events, self.units - other.units)


class Counts(NamedTuple):
    """What the ledger of a store says."""

    recorded: Tally
    delivered: Tally
    pending: Tally
    dead: Tally
    dropped: Tally
    oldest_pending_at: Optional[float]  # seconds since 1970
    size: int  # bytes in use
    in_memory: int = 0  # pending events that the store could not write down yet
    held: Tally = Tally()  # the part of pending whose outcome is unknown


class Place(NamedTuple):
    """Where a sealed POST stands: the sequence number of its batch and its position in it."""

    sequence: int
    position: int


class RecordedBatch(NamedTuple):
    """Events that are stored and not sealed; what `rows` are is told in `_columns`."""

    sequence: int
    stored_at: float  # seconds since 1970
    recorder: str
    rows: Union[List[Row], Columns]


class ChangedError(SpoolError):
    """What was read is not what there is any more: read it again."""


class SealedBatch(NamedTuple):
    """The POSTs of one batch that are not settled yet.

    `sent` has the positions of those that were noted as being sent, by this process or an earlier one, and since when
    (seconds since 1970).
    """

    sequence: int
    posts: List[Tuple[Place, Post]]
    sent: Mapping[int, float] = {}


class Burial(NamedTuple):
    """Why a POST is set aside."""

    place: Place
    post: Post
    reason: str
    status_code: Optional[int]
    attempts: int


class Acknowledgement(NamedTuple):
    """A POST that the service has."""

    place: Place
    post: Post


class Holding(NamedTuple):
    """A POST that is held, because nobody knows whether the service has it."""

    place: Place
    post: Post
    reason: str


class HeldPost(NamedTuple):
    """A POST that was held at that moment, in seconds since 1970."""

    id: int
    post: Post
    held_at: float


class Allowance(NamedTuple):
    """How many POSTs may go out now, seconds after which more may, and why no process sends, or only one."""

    posts: int
    wait: float = 0.0
    reason: Optional[str] = None


@dataclass(frozen=True)
class DeadLetter:
    """A POST that the service refused for good.

    Attributes:
        id: names it for `UsageBuffer.requeue`.
        key: the idempotency key it was sent under, and will be again.
        envelope_id, amount, metadata: what was recorded; `amount` in units of usage.
        reason: what the service said, up to 1,000 characters.
        status_code: the HTTP status of the last answer, or None.
        attempts: how often it was sent by the process that gave up.
        recorded_at, died_at: seconds since 1970.
        events: how many recorded events it counts for.
        readable: False for a batch of the spool that was damaged; it is kept as it was and cannot be requeued.
    """

    id: int
    key: str
    envelope_id: str
    amount: int
    metadata: Optional[Dict[str, Any]]
    reason: str
    status_code: Optional[int]
    attempts: int
    recorded_at: float
    died_at: float
    events: int = 1
    readable: bool = True


class Part(Protocol):
    """What is folded apart from the rest of a store; see there. A store that is not split is the one part of itself."""

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]: ...

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None: ...

    def sweep(self) -> bool: ...

    def sync(self) -> None: ...


class Store(Protocol):
    """What the writer and the flusher need of a store. Every method may raise `SpoolError`, and has then done nothing
    that doing it again would double."""

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        """Stores sealed batches and counts what was dropped, all or nothing; a batch stored before is not stored
        again. Refuses when the store has reached its limit of bytes."""

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        """Up to `limit` batches with a sequence number above `after`, oldest first, without what is settled."""

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        """Writes down what became of POSTs, all or nothing. What was noted about them is gone with it."""

    def note_sending(self, begun: Sequence[Place], ended: Sequence[Place] = ()) -> List[Place]:
        """Notes that these POSTs are about to be sent, unless that is noted already, and takes the notes about others
        back, which were certainly not booked. Returns those of `begun` that are noted now: send no other."""

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        """Up to `limit` batches of events that are not sealed, oldest first, above a sequence number of their own."""

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        """Makes the recorded batches up to this number, all of which were handed out, gone, and stores these sealed
        ones: all or nothing, and once however often it is asked. Raises `ChangedError` when that cannot be any more."""

    def sweep(self) -> bool:
        """Gives back room of what was sealed; whether there is more to give back. Does little at a time."""

    def last_recorded(self) -> int:
        """The number of the newest batch that was ever stored to be sealed later."""

    def first_recorded(self) -> Optional[int]:
        """The number of the oldest that is not sealed, or None."""

    def last_sequence(self) -> int:
        """The sequence number of the newest batch ever stored."""

    def first_sequence(self) -> Optional[int]:
        """The sequence number of the oldest batch that is not settled as a whole, or None."""

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        """Up to `limit` dead letters with an id above `after`, oldest first."""

    def requeue(self, ids: Sequence[int]) -> int:
        """Seals these dead letters again under their old keys; returns how many there were."""

    def held(self, after: int, limit: int) -> List[HeldPost]:
        """Up to `limit` POSTs that are held and whose id is above `after`, oldest first."""

    def resolve(self, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:
        """Takes POSTs that are held for delivered, and seals others again under their old keys, all or nothing.
        Returns the ones and the others that were still held."""

    def counts(self) -> Counts:
        """The ledger, and what it costs."""

    def sync(self) -> None:
        """Everything committed is safe from a power cut when this returns."""

    def claim(self) -> bool:
        """True while this process is the one that delivers; tries to become it otherwise. Never waits."""

    def release(self) -> None:
        """Lets another process deliver."""

    def allowance(self, most: int) -> Allowance:
        """How many POSTs, of `most`, this process may send now, as all do that deliver from this store; see `_fleet`.
        They count as sent."""

    def shut(self, reason: str, seconds: float) -> None:
        """Nobody sends for so long, and then one of them one POST at a time, until `reopen`."""

    def reopen(self) -> None:
        """The service answers again, so all of them send; not before the time of `shut` is over."""

    def tidy(self) -> None:
        """Gives back room that is no longer needed; called when nothing is pending."""

    def close(self) -> None:
        """Gives the claim and every resource back. Nothing that was stored is lost."""
