"""Memory behind the spool: while the disk fails, events stay here and are delivered from here.

    append ──► kept ──deposit──► spool          the ordinary way; kept is empty between two calls
                │
                └──hand out──► flusher ──settle──► owed ──► kept or spool, once the disk works

Guarantees:

1. A batch that was appended is kept until a deposit with it is known to be stored. A deposit that failed may be stored
   all the same (a sync that fails says so too late), so before the next one is made the spool is asked for its number.
2. A POST that was delivered from memory is never stored as pending: a batch is deposited without those of its POSTs,
   and they go into the ledger as recorded and delivered in the same transaction.
3. What was settled while the disk cannot take it is owed: counted at once, written down later. When the process dies
   before that, those POSTs are sent again under the same keys. The claim is kept as long as something is owed, because
   only its holder may write it down.

What is noted before it is sent (see `_store`) needs no note while it is only here: it dies with the process. The note
goes into the spool together with the batch. A POST from the spool is not sent while the spool takes no note.

POSTs from memory have negative sequence numbers, those from the spool positive ones.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._connection import DamagedError
from x402tools._fair_lock import FairLock
from x402tools._journal_file import PREFIX
from x402tools._kept import Kept, Moved, sum_of
from x402tools._spool import Deposit, Spool
from x402tools._spool_rows import numbered
from x402tools._store import (
    Acknowledgement,
    Allowance,
    Burial,
    Counts,
    DeadLetter,
    HeldPost,
    Holding,
    Part,
    Place,
    RecordedBatch,
    SealedBatch,
    Tally,
)
from x402tools._takeover import Takeover
from x402tools.errors import SpoolError

if TYPE_CHECKING:  # most buffers keep a file, and need nothing of a server
    from x402tools._redis_partitions import Partitions
    from x402tools._redis_store import Engine
    from x402tools._spill import Spilling

Settled = Union[Acknowledgement, Burial, Holding]
_Result = TypeVar("_Result")

# Batches (of 500 events) kept while the disk fails; the rest waits in the intake, which has its own limit.
_MOST_KEPT = 20

# Settlements owed at the most. Beyond it nothing more is delivered until the disk works again: a process that dies
# sends all of them once more.
_MOST_OWED = 20_000

# Batches looked at, one page after the other, to find what of the spool is one envelope's; of a page the decoding costs
# about 35 ms. Beyond so many (a million events) only the oldest are counted.
_BATCHES_PER_PAGE = 20
_MOST_LOOKED_THROUGH = 2000

# Batches that are taken at once from a store that is shared: the other processes are to find some too.
_MOST_SHARED = 2

# Above every sequence number there will ever be: whoever waits for everything up to it waits for everything.
_UNKNOWN = 2**62
_OTHERS_MEANWHILE = 100  # batches that other processes may store before what is kept here gets its numbers


class Reserve:
    """A store: the spool, and memory while the spool fails.

    Args:
        may_resend: a POST of unknown outcome may be sent again.
    """

    def __init__(self, spool: Union[Spool, Engine, Partitions, Spilling], *, may_resend: bool = True) -> None:
        self._spool = spool
        self._may_resend = may_resend
        self._takeover = Takeover(spool) if isinstance(spool, Spool) else None
        self._lock = FairLock()  # guards everything below, also while the disk is slow: callers do not wait for it
        self._kept: Dict[int, Kept] = {}
        self._moved: Dict[int, Moved] = {}
        self._owed: List[Settled] = []
        self._delivered = Tally()  # from memory, not in the ledger yet
        self._dropped = Tally()
        self._buried: List[Burial] = []  # from memory, not in the spool yet
        self._held: List[Holding] = []  # likewise
        self._unsure: Optional[Tuple[Deposit, Dict[int, Kept]]] = None  # the last deposit, if it may be stored
        self._deposits = 0
        self._newest: Dict[str, int] = {}  # the number of each recorder's last batch
        self._next_sequence = -1
        self._known_held = 0  # events
        self._known: Optional[Counts] = None  # what the spool said when it could last be read
        self._trouble: Optional[SpoolError] = None  # of the last attempt to write
        self._read_trouble: Optional[SpoolError] = None  # of the flusher's last attempt to read

    # -- for the writer --------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        """See `Store`. Never raises SpoolError: what the spool does not take is kept, and `trouble` says why."""
        with self._lock:
            for batch in batches:
                recorder, number = numbered(batch.id)
                if number > self._newest.get(recorder, -1):  # or it is here, or was: a caller that was interrupted
                    self._kept[self._next_sequence] = Kept(batch)
                    self._next_sequence -= 1
                    self._newest[recorder] = number
            if dropped.events:
                self._dropped = self._dropped.plus(dropped)
            self._catch_up()

    def catch_up(self) -> None:
        """Brings to the spool what is only in memory, or else looks whether its file is still there; see `trouble`."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            if self.is_behind:
                self._resolve()
                self._write_down_owed()  # first, because it makes room
                self._deposit()
            else:
                self._spool.look()
        except SpoolError as error:
            self._failed(error)
        else:
            self._trouble = None

    def _failed(self, error: SpoolError) -> None:
        self._trouble = error
        if "full" in str(error):
            self._spool.make_room()

    def sync(self) -> None:
        with self._lock:
            try:
                self._spool.sync()
            except SpoolError as error:
                self._trouble = error
                raise

    @property
    def has_noted(self) -> bool:
        """Whether anything is kept that a journal has."""
        return any(kept.batch.is_noted for kept in list(self._kept.values()))

    def take_over(self, patience: float) -> None:
        """Has the spool take in what killed processes left, as far as that is possible now; see `Takeover.run`."""
        if self._takeover is not None:
            self._takeover.run(patience)

    def leave_noted(self) -> None:
        """Leaves to others what a journal has, which nobody here looks after any more. They count it, and what was
        settled of it from memory: that is not to be written down from here any more."""
        with self._lock:
            if self.has_noted:
                self._kept = {sequence: kept for sequence, kept in self._kept.items() if not kept.batch.is_noted}
                self._delivered, self._buried, self._held, self._unsure = Tally(), [], [], None

    def forget_recorder(self, recorder: str) -> None:
        """See `Spool`. Never raises SpoolError: what is left is one small row."""
        if isinstance(self._spool, Spool):
            with contextlib.suppress(SpoolError):
                self._spool.forget_recorder(recorder)

    @property
    def has_room(self) -> bool:
        """False while so much is kept that events had better wait where they are."""
        return len(self._kept) < _MOST_KEPT

    @property
    def in_memory(self) -> int:
        """Pending events that are only here."""
        if not self._kept:  # as a rule, and asked after every commit
            return 0
        with self._lock:
            return self._kept_pending().events

    @property
    def is_behind(self) -> bool:
        """Whether there is anything that the spool has yet to learn."""
        set_aside = self._buried or self._held
        return bool(self._kept or self._owed or set_aside or self._delivered.events or self._dropped.events)

    def give_up(self) -> List[Post]:
        """The POSTs that are only in memory; from now on they count as dropped. What a journal has stays pending."""
        with self._lock:
            lost = [post for kept in self._kept.values() if not kept.batch.is_noted for post in kept.pending_posts()]
            self._kept = {sequence: kept for sequence, kept in self._kept.items() if kept.batch.is_noted}
            self._unsure = None
            self._dropped = self._dropped.plus(sum_of(lost))
            return lost

    def take_notices(self) -> List[str]:
        """What was mended since this was last asked, for people. Takes no lock: the main thread asks, see `_desk`."""
        taken: List[str] = []
        if not self._spool.notices:  # as a rule, and asked after every commit
            return taken
        try:
            while True:
                taken.append(self._spool.notices.pop(0))
        except IndexError:
            return taken

    # -- for the flusher -------------------------------------------------------------------------------------------

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        """See `Store`. What is in memory comes in addition, once, whatever `after` says."""
        with self._lock:
            batches: List[SealedBatch] = []
            try:
                self._resolve()
                most = min(limit, _MOST_SHARED) if self._spool.is_shared else limit
                batches = self._spool.oldest_sealed(after, most)
            except SpoolError as error:
                self._read_trouble = error  # what is in memory goes on all the same
            else:
                self._read_trouble = None
            if not self._spool.is_shared:  # or another process might have it too, if it got there after all
                batches += [self._hand_out(number) for number, kept in self._kept.items() if self._may_hand_out(kept)]
            return batches

    def _may_hand_out(self, kept: Kept) -> bool:
        """Events that are to be folded go out from memory each under its own key. So not while they may be in the spool
        or a journal too, which would have them folded under another. What a journal has is sent once more if this
        process is killed before the spool learns of it."""
        may_be_stored = self._unsure is not None and kept in self._unsure[1].values()
        if kept.batch.is_noted is not False and not (kept.batch.is_sealed and self._may_resend):
            return False
        return kept.posts is None and (kept.batch.is_sealed or not may_be_stored)

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        return _repeated_on_damage(lambda: self._spool.recorded(after, limit))

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        self._spool.seal(up_to, batches)

    def sweep(self) -> bool:
        return self._spool.sweep()

    def parts(self) -> Sequence[Part]:
        """What is folded apart."""
        return [self] if isinstance(self._spool, Spool) else self._spool.parts()

    def note_sending(self, begun: Sequence[Place], ended: Sequence[Place] = ()) -> List[Place]:
        """See `Store`. Never raises SpoolError: what the spool does not take is not noted, and `trouble` says why."""
        with self._lock:
            try:
                self._resolve()
            except SpoolError as error:
                self._trouble = error
                return []
            in_spool = {place: there for place in begun if (there := self._place_in_spool(place)) is not None}
            ended_there = [there for place in ended if (there := self._place_in_spool(place)) is not None]
            noted = [place for place in begun if place not in in_spool]
            self._note_here(noted, ended)
            if self._trouble is not None or not (in_spool or ended_there):
                return noted
            try:
                self._spool.note_sending(list(in_spool.values()), ended_there)
            except SpoolError as error:
                self._trouble = error
                return noted
            return [*noted, *in_spool]

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        with self._lock:
            if not self._spool.has_claim:
                raise SpoolError(f"{self._spool.path}: only the process that holds the claim settles")
            settled: List[Settled] = [*acknowledged, *buried, *held]
            self._known_held += sum_of([one.post for one in held]).events
            try:
                self._resolve()
                self._write_down_owed()
            except SpoolError as error:
                self._trouble = error
                if len(self._owed) >= _MOST_OWED:
                    raise
                self._owed += settled
                return
            self._owed = settled
            try:
                self._write_down_owed()
            except SpoolError as error:
                self._trouble = error
            except BaseException:  # a mistake of the caller: it may not be tried again
                self._owed = []
                raise

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> Optional[SpoolError]:
        """Why the spool cannot be written or read at the moment, or None."""
        return self._trouble or self._read_trouble

    def last_sequence(self) -> int:
        return self._last(self._spool.last_sequence)

    def last_recorded(self) -> int:
        return self._last(self._spool.last_recorded)

    def _last(self, of_the_spool: Callable[[], int]) -> int:
        with self._lock:
            coming = len(self._kept) + _OTHERS_MEANWHILE if self._kept else 0  # what is kept will get higher numbers
            try:
                return of_the_spool() + coming
            except SpoolError:
                return _UNKNOWN

    def first_recorded(self) -> Optional[int]:
        """See `Store`. What is only in memory counts for `first_sequence`."""
        with self._lock:
            try:
                return self._spool.first_recorded()
            except SpoolError:
                return 0  # as if something were

    def first_sequence(self) -> Optional[int]:
        with self._lock:
            try:
                if not self._kept and not self._owed:
                    return self._spool.first_sequence()
                counts = self.counts()
                return 0 if counts.pending.events > counts.held.events else None
            except SpoolError:
                return 0  # nobody can say: as if something were pending

    def counts(self) -> Counts:
        """See `Store`. While the spool cannot be read, what it said last goes for it."""
        with self._lock:
            try:
                self._resolve()
                self._known = _repeated_on_damage(self._spool.counts)
            except SpoolError:
                if self._known is None:
                    raise
            spool, kept = self._known, self._kept_pending()
            noted = sum(one.pending().events for one in self._kept.values() if one.batch.is_noted)
            owed_delivered = sum_of([one.post for one in self._owed if isinstance(one, Acknowledgement)])
            owed_dead = sum_of([one.post for one in self._owed if isinstance(one, Burial)])
            dead = sum_of([burial.post for burial in self._buried])
            owed_held = sum_of([one.post for one in self._owed if isinstance(one, Holding)])
            held = sum_of([holding.post for holding in self._held])
            pending = spool.pending.plus(kept).plus(held).minus(owed_delivered).minus(owed_dead)
            self._known_held = spool.held.plus(owed_held).plus(held).events
            return spool._replace(
                recorded=spool.recorded.plus(kept).plus(self._delivered).plus(self._dropped).plus(dead).plus(held),
                delivered=spool.delivered.plus(self._delivered).plus(owed_delivered),
                pending=pending,
                dead=spool.dead.plus(dead).plus(owed_dead),
                dropped=spool.dropped.plus(self._dropped),
                in_memory=kept.plus(held).events - noted,
                held=spool.held.plus(owed_held).plus(held),
            )

    def pending_of(self, envelope_id: str, up_to: int, recorded_up_to: int) -> int:
        """The units of an envelope that are pending, in memory and in the spool's batches up to those."""
        with self._lock:
            kept = [post for one in self._kept.values() for post in one.pending_posts()]
            owed = [one.post for one in self._owed]  # settled, and still in the spool as pending
        units = _units_of(envelope_id, kept) - _units_of(envelope_id, owed)
        # What is recorded first: what is sealed meanwhile may be missed rather than counted twice.
        part = self._spool if isinstance(self._spool, Spool) else self._spool.part_of(envelope_id)
        units += self._units_in(envelope_id, part.pending_events, recorded_up_to)
        units += self._units_in(envelope_id, part.pending_posts, up_to)
        return max(units, 0)

    def _units_in(self, envelope_id: str, page: Callable[[int, int, int], Tuple[int, List[Post]]], up_to: int) -> int:
        units, after = 0, 0
        for _ in range(_MOST_LOOKED_THROUGH // _BATCHES_PER_PAGE):
            with self._lock:
                after, posts = page(after, up_to, _BATCHES_PER_PAGE)
            units += _units_of(envelope_id, posts)
            if not after:
                break
        return units

    # -- straight to the spool ---------------------------------------------------------------------------------------

    def bind(self, destination: str) -> None:
        _repeated_on_damage(lambda: self._spool.bind(destination))

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        return _repeated_on_damage(lambda: self._spool.dead_letters(after, limit))

    def held(self, after: int, limit: int) -> List[HeldPost]:
        return _repeated_on_damage(lambda: self._spool.held(after, limit))

    def has_held(self) -> bool:
        """Whether any POST is held; while the spool cannot be read, as far as it is known."""
        with self._lock:
            if self._held or any(isinstance(one, Holding) for one in self._owed):
                return True
            try:
                return bool(_repeated_on_damage(self._spool.has_held))
            except SpoolError:
                return self._known is not None and self._known.held.events > 0

    @property
    def known_held(self) -> int:
        """How many events were held when that was last looked up; at the disk nobody looks for it."""
        return self._known_held

    def resolve(self, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:
        settled, resent = _repeated_on_damage(lambda: self._spool.resolve(booked, absent))
        self._known_held = max(self._known_held - sum_of([*settled, *resent]).events, 0)
        return settled, resent

    def requeue(self, ids: Sequence[int]) -> int:
        return _repeated_on_damage(lambda: self._spool.requeue(ids))

    def claim(self) -> bool:
        return self._spool.claim()

    def allowance(self, most: int) -> Allowance:
        return self._spool.allowance(most)

    def shut(self, reason: str, seconds: float) -> None:
        """See `Store`. Never raises SpoolError: who is not told of it is told by the service."""
        with contextlib.suppress(SpoolError):
            self._spool.shut(reason, seconds)

    def reopen(self) -> None:
        """See `Store`. Never raises SpoolError: what is not reopened tries itself out."""
        with contextlib.suppress(SpoolError):
            self._spool.reopen()

    def release(self) -> None:
        """See `Store`. With something owed it only happens at `close`, when it is written down or given up."""
        with self._lock:
            if not self._owed:
                self._spool.release()

    def tidy(self) -> None:
        try:
            self._spool.tidy()
        except SpoolError as error:  # only housekeeping: it must not keep the flusher from delivering
            self._trouble = error

    def give_up_at(self, moment: Optional[float]) -> None:
        self._spool.give_up_at(moment)

    def go_on(self, seconds: float) -> None:
        """The disk has so long from now on, where `give_up_at` said less: it works, there is only much to store."""
        self._spool.go_on(seconds)

    def close(self) -> None:
        self._spool.close()

    def append_alone(self, batch: EncodedBatch) -> None:
        self._spool.append_alone(batch)

    def is_in_use_here(self) -> bool:
        """See `Connection.is_in_use_here`."""
        return self._lock.is_mine() or self._spool.is_in_use_here()

    def _kept_pending(self) -> Tally:
        total = Tally()
        for kept in self._kept.values():
            total = total.plus(kept.pending())
        return total

    # -- from memory to the spool; call with the lock held -------------------------------------------------------------

    def _resolve(self) -> None:
        """Finds out what became of the last deposit. Until that is known, nothing of it is changed."""
        if self._unsure is None:
            return
        deposit, kept = self._unsure
        if self._spool.has_deposit(deposit.number):
            self._arrived(deposit, kept)
        self._unsure = None

    def _deposit(self) -> None:
        anything = self._kept or self._buried or self._held or self._delivered.events or self._dropped.events
        if not anything:
            return
        self._deposits += 1
        kept = dict(self._kept)
        batches = [batch.to_store() for batch in kept.values()]
        notes = [note for batch in kept.values() for note in batch.notes()]
        deposit = Deposit(
            self._deposits,
            batches,
            self._delivered,
            self._dropped,
            tuple(self._buried),
            tuple(self._held),
            tuple(notes),
            self._all_of() if self._delivered.events or self._buried or self._held else (),
        )
        # Until it has arrived, which an interrupt in a caller's thread may prevent too.
        self._unsure = deposit, kept
        self._spool.deposit(deposit)
        self._arrived(deposit, kept)

    def _all_of(self) -> Sequence[Tuple[str, int]]:
        """Up to which number this has all batches of recorders with a journal. Of those that are not in a deposit,
        every POST was settled from memory, and nobody who finds the journal may store them."""
        return tuple((recorder, number) for recorder, number in self._newest.items() if recorder.startswith(PREFIX))

    def _arrived(self, deposit: Deposit, kept: Dict[int, Kept]) -> None:
        """Forgets what the spool has; POSTs of it that the flusher holds are settled there from now on."""
        handed_out = {sequence: batch for sequence, batch in kept.items() if batch.posts is not None}
        places = self._spool.places_of([batch.batch.id for batch in handed_out.values()]) if handed_out else {}
        for sequence, batch in handed_out.items():
            place = places.get(batch.batch.id)
            if place is None or batch.posts is None:
                continue  # another process has delivered it already
            self._spool.adopt(place, [batch.posts[at] for at in batch.left])
            self._moved[sequence] = Moved(place, {at: new for new, at in enumerate(batch.left)})
        left = {sequence: batch for sequence, batch in self._kept.items() if sequence not in kept}
        delivered, dropped = self._delivered.minus(deposit.delivered), self._dropped.minus(deposit.dropped)
        buried, held = self._buried[len(deposit.buried) :], self._held[len(deposit.held) :]
        # In one step: an interrupt that came in between would have some of it counted again.
        self._unsure, self._kept, self._delivered, self._dropped, self._buried, self._held = (
            None, left, delivered, dropped, buried, held,
        )  # fmt: skip

    def _hand_out(self, sequence: int) -> SealedBatch:
        kept = self._kept[sequence]
        kept.posts = _batch.decode(kept.batch.value)
        return SealedBatch(sequence, [(Place(sequence, at), post) for at, post in enumerate(kept.posts)])

    def _write_down_owed(self) -> None:
        """Takes settlements to where their POSTs are now; call when `_resolve` has worked."""
        if not self._owed:
            return
        self._owed = [moved for moved in map(self._where_it_is, self._owed) if moved is not None]
        acknowledged = [one for one in self._owed if isinstance(one, Acknowledgement)]
        buried = [one for one in self._owed if isinstance(one, Burial)]
        held = [one for one in self._owed if isinstance(one, Holding)]
        if self._owed:
            self._spool.settle(acknowledged, buried, held)
            self._owed = []

    def _place_in_spool(self, place: Place) -> Optional[Place]:
        """Where a POST is now; None when it is only in memory, or nowhere."""
        if place.sequence >= 0:
            return place
        moved = self._moved.get(place.sequence)
        if moved is None or place.position not in moved.positions:
            return None
        return Place(moved.sequence, moved.positions[place.position])

    def _note_here(self, begun: Sequence[Place], ended: Sequence[Place]) -> None:
        for place in begun:
            if place.sequence in self._kept:
                self._kept[place.sequence].sending.setdefault(place.position, time.time())
        for place in ended:
            if place.sequence in self._kept:
                self._kept[place.sequence].sending.pop(place.position, None)

    def _where_it_is(self, settled: Settled) -> Optional[Settled]:
        """The settlement as one for the spool; None when it was for memory, and is done."""
        place = settled.place
        if place.sequence >= 0:
            return settled
        moved = self._moved.get(place.sequence)
        if moved is not None:
            new = Place(moved.sequence, moved.positions.pop(place.position))
            if not moved.positions:
                del self._moved[place.sequence]
            return settled._replace(place=new)
        kept = self._kept.get(place.sequence)
        if kept is None or kept.posts is None:
            return None  # given up, or delivered by another process
        bit = 1 << place.position
        if kept.settled & bit:
            raise AssertionError(f"settled twice: {place}")  # a fault of the flusher: it may not be counted
        kept.settled |= bit
        if isinstance(settled, Burial):
            self._buried.append(settled)
        elif isinstance(settled, Holding):
            self._held.append(settled)
        else:
            self._delivered = self._delivered.plus(Tally(settled.post.events, settled.post.amount))
        if not kept.left:
            del self._kept[place.sequence]
        return None


def _repeated_on_damage(operation: Callable[[], _Result]) -> _Result:
    """One that hits upon damage has the file set aside: the second time it finds a new one."""
    try:
        return operation()
    except DamagedError:
        return operation()


def _units_of(envelope_id: str, posts: Sequence[Post]) -> int:
    return sum(post.amount for post in posts if post.envelope_id == envelope_id)
