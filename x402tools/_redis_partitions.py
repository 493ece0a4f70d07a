"""The store on a server, or a cluster, in several partitions: events are split by their envelope, so that each
partition is folded by another worker and lies on another node.

Each partition is an engine (`_redis_store`) and keeps all of its promises; this only sends each thing to the right one.

- The writer splits before it encodes (`_partition`). Batches of one partition keep the order of their numbers, by which
  a repetition is known there.
- A deposit goes to the partitions it touches, one after the other, and is sent again as a whole as long as any of them
  may lack it: who has its batches adds none. What was dropped is counted by the first partition, which is asked last:
  its answer stands for the whole deposit.
- Numbers of what is handed out rise over all partitions; a number, divided by how many there are, leaves that of its
  partition. So does the number of a dead letter.
- While one does not answer, the others go on delivering. Who records waits with all of it: a partition would take
  what it lacks for a repetition, once it has what came later.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

from x402tools._batch import EncodedBatch, Post
from x402tools._partition import partition_of
from x402tools._redis_fleet import RedisFleet
from x402tools._redis_limits import OnServer
from x402tools._redis_link import Link, RefusedError
from x402tools._redis_share import FoldShare
from x402tools._redis_start import Entrance
from x402tools._redis_store import Engine, Ground, new_name, prefix_of
from x402tools._spool import Deposit
from x402tools._store import (
    Acknowledgement,
    Burial,
    ChangedError,
    Counts,
    DeadLetter,
    Holding,
    RecordedBatch,
    SealedBatch,
    Tally,
)
from x402tools.errors import SpoolError
from x402tools.redis_store import RedisStore

_Result = TypeVar("_Result")
_Number = TypeVar("_Number", int, float)

_WITHOUT_LIMIT = 2**63  # bytes of one partition: the limit is for all together
_LOOK_EVERY = 1.0  # seconds

# Who delivers leaves a partition that did not answer alone for ten times as long as it waited for it: so the others get
# most of its time. Seconds, at the least and at the most.
_LEFT_ALONE, _LEFT_ALONE_AT_LEAST, _LEFT_ALONE_AT_MOST = 10, 0.5, 5.0

_OF_A_PART = "only a part of it is asked for that"

_TOLD_AFTER = 1.0  # seconds of trouble: the others have been asked by then

# Looking up how large a partition is costs three commands; so all together cost a dozen a second.
_SIZES_A_SECOND = 4


class Partition:
    """What is folded apart: a partition, as the flusher's `Folder` sees it."""

    def __init__(self, whole: Partitions, number: int) -> None:
        self._whole = whole
        self._number = number

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        return self._whole.recorded_in(self._number, after, limit)

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        self._whole.engines[self._number].seal(up_to, batches)

    def sweep(self) -> bool:
        return False

    def sync(self) -> None:
        """See `Engine.sync`."""


class Partitions(OnServer):
    """A store of several partitions.

    Args:
        store: which one.
        max_bytes: how large the content of all of them may become.

    Raises:
        SpoolError: a server is one that would lose usage, or it is split otherwise. One that is away is no error.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(self, store: RedisStore, *, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = store.place
        self.notices: List[str] = []
        self.has_claim = False
        self._max_bytes = max_bytes
        self._clock = clock
        self._link = Link(store)
        own = self._link.at(f"{{x402:{store.namespace}}}")
        self._entrance = Entrance(self._link, store)
        self._fleet = RedisFleet(own.run, store.namespace, store.rate, clock=clock)
        self._count = store.partitions
        numbers, name = itertools.count(1), new_name()
        self.engines: List[Engine] = []
        for number in range(self._count):
            prefix = prefix_of(store, number)
            ground = Ground(self._link.at(prefix), self._entrance, prefix, _numbers(numbers, self._count, number), name)
            self.engines.append(Engine(store, max_bytes=_WITHOUT_LIMIT, clock=clock, ground=ground))
        self._share = FoldShare(own, store.namespace, name, self.engines, store.lease, clock)
        self._arriving = 0, 0  # the number of the last deposit, and of the partition that stands for it
        self._given = [0] * self._count  # the number that was handed out last
        self._next = 0  # whose turn it is to be read first
        self._ask_at = [0.0] * self._count
        self._trouble: Dict[int, Tuple[float, str]] = {}  # of those that did not answer: since when, and what it said
        self._has_told = False
        self._look_at = 0.0
        self._looked = 0
        self._try_to_make_ready()

    def _try_to_make_ready(self) -> None:
        try:
            for engine in self.engines:
                engine.make_ready()
        except RefusedError:
            raise
        except SpoolError:
            pass  # away, and the time-out of one is enough; each is made ready when it is needed

    def bind(self, destination: str) -> None:
        """See `Engine.bind`."""
        for engine in self.engines:
            engine.bind_later(destination)
        self._try_to_make_ready()

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self.deposit(Deposit(0, batches, dropped=dropped))

    def deposit(self, deposit: Deposit) -> None:
        """Stores all of it; what was stored before is not stored again."""
        self._entrance.enter()
        parts: Dict[int, List[EncodedBatch]] = {}
        for batch in deposit.batches:
            parts.setdefault(batch.partition % self._count, []).append(batch)
        if parts and self._size(parts) >= self._max_bytes:
            raise SpoolError(f"{self.path}: max_disk_bytes ({self._max_bytes}) is reached; the store is full")
        last = 0 if deposit.dropped.events else max(parts, default=0)
        if deposit.number:
            self._arriving = deposit.number, last
        for number, batches in parts.items():
            if number != last:
                self.engines[number].deposit(Deposit(deposit.number, batches))
        self.engines[last].deposit(Deposit(deposit.number, parts.get(last, ()), dropped=deposit.dropped))

    def has_deposit(self, number: int) -> bool:
        """See `Spool.has_deposit`: whether each partition that it touches has it."""
        arriving, last = self._arriving
        return number == arriving and self.engines[last].has_deposit(number)

    def _size(self, numbers: Iterable[int]) -> int:
        """Bytes of all, looked up again for some of them."""
        for number in numbers:
            self.engines[number].size(max(self._count / _SIZES_A_SECOND, _LOOK_EVERY))
        return sum(engine.known_size for engine in self.engines)

    def append_alone(self, batch: EncodedBatch) -> None:
        """Stores a batch in the calling thread, also beyond `max_bytes`."""
        self.engines[batch.partition % self._count].append_alone(batch)

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        """Sent again as a whole when a partition fails: what one has settled it does not settle twice."""
        if held:
            raise SpoolError(f"{self.path}: nothing is held on a server; it needs a spool file")
        parts: Dict[int, Tuple[List[Acknowledgement], List[Burial]]] = {}
        for one in acknowledged:
            parts.setdefault(one.place.sequence % self._count, ([], []))[0].append(one)
        for other in buried:
            parts.setdefault(other.place.sequence % self._count, ([], []))[1].append(other)
        failed: Optional[SpoolError] = None
        for number, some in parts.items():
            try:
                self._ask(number, functools.partial(self.engines[number].settle, *some))
            except SpoolError as error:
                failed = error
        if failed is not None:
            raise failed

    def requeue(self, ids: Sequence[int]) -> int:
        parts: Dict[int, List[int]] = {}
        for id_ in ids:
            parts.setdefault(id_ % self._count, []).append(id_ // self._count)
        return sum(self.engines[number].requeue(some) for number, some in parts.items())

    # -- reading -------------------------------------------------------------------------------------------------

    def parts(self) -> List[Partition]:
        """What is folded apart."""
        return [Partition(self, number) for number in range(self._count)]

    def part_of(self, envelope_id: str) -> Engine:
        """Where the events of an envelope are."""
        return self.engines[partition_of(envelope_id, self._count)]

    def recorded_in(self, number: int, after: int, limit: int) -> List[RecordedBatch]:
        """What is to be folded of one partition, if this process is to."""
        engine = self.engines[number]
        if not self._share.may_fold(engine):
            return []
        return self._ask(number, functools.partial(engine.recorded, after, limit))

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        """Each partition in its turn, until there are so many.

        Raises:
            SpoolError: none of them answers.
        """
        found: List[SealedBatch] = []
        first = self._next
        for step in range(self._count):
            if len(found) >= limit:
                break
            number = (first + step) % self._count
            self._next = (number + 1) % self._count
            # What one was asked for in vain is not passed over because another one has given more since.
            start, most = min(after, self._given[number]), limit - len(found)
            try:
                some = self._ask(number, functools.partial(self.engines[number].oldest_sealed, start, most))
            except RefusedError:
                raise
            except SpoolError:
                if len(self._trouble) == self._count:
                    raise
                continue
            self._trouble.pop(number, None)
            if some:
                self._given[number] = some[-1].sequence
                found += some
        return found

    def _ask(self, number: int, question: Callable[[], _Result]) -> _Result:
        """What the partition answers, unless it is left alone because it did not.

        Raises:
            SpoolError: it does not.
        """
        began = self._clock()
        if number in self._trouble and began < self._ask_at[number]:
            raise SpoolError(self._trouble[number][1])
        try:
            return question()
        except ChangedError:
            raise
        except SpoolError as error:
            now = self._clock()
            wait = min(max(_LEFT_ALONE * (now - began), _LEFT_ALONE_AT_LEAST), _LEFT_ALONE_AT_MOST)
            self._ask_at[number] = now + wait
            self._trouble.setdefault(number, (now, str(error)))
            raise

    def _tell(self) -> None:
        """Says when some do not answer and others do, and when that is over."""
        if self._has_told and not self._trouble:
            self._has_told = False
            self.notices.append(f"{self.path}: all partitions answer again")
        lasting = [why for since, why in self._trouble.values() if self._clock() - since >= _TOLD_AFTER]
        if lasting and not self._has_told and len(self._trouble) < self._count:
            self._has_told = True
            numbers = ", ".join(map(str, sorted(self._trouble)))
            self.notices.append(f"{lasting[0]}; partitions that wait: {numbers}; the others are delivered")

    # -- looking -------------------------------------------------------------------------------------------------

    def last_recorded(self) -> int:
        return max(engine.last_recorded() for engine in self.engines)

    def first_recorded(self) -> Optional[int]:
        return _least(engine.first_recorded() for engine in self.engines)

    def last_sequence(self) -> int:
        return max(engine.last_sequence() for engine in self.engines)

    def first_sequence(self) -> Optional[int]:
        return _least(engine.first_sequence() for engine in self.engines)

    # Only of a part of it, see `parts` and `part_of`.

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:  # noqa: ARG002 - never called, see above
        raise AssertionError(_OF_A_PART)

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:  # noqa: ARG002 - likewise
        raise AssertionError(_OF_A_PART)

    def pending_posts(self, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:  # noqa: ARG002 - likewise
        raise AssertionError(_OF_A_PART)

    pending_events = pending_posts

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        letters = [
            dataclasses.replace(letter, id=letter.id * self._count + number)
            for number, engine in enumerate(self.engines)
            for letter in engine.dead_letters((after - number) // self._count, limit)
        ]
        return sorted(letters, key=lambda letter: letter.id)[:limit]

    def counts(self) -> Counts:
        each = [engine.counts() for engine in self.engines]
        return Counts(
            recorded=_sum(counts.recorded for counts in each),
            delivered=_sum(counts.delivered for counts in each),
            pending=_sum(counts.pending for counts in each),
            dead=_sum(counts.dead for counts in each),
            dropped=_sum(counts.dropped for counts in each),
            oldest_pending_at=_least(counts.oldest_pending_at for counts in each),
            size=sum(counts.size for counts in each),
        )

    def deliverers(self) -> Dict[str, float]:
        """See `Engine.deliverers`: the last sign that one gave in any partition."""
        found: Dict[str, float] = {}
        for engine in self.engines:
            for name, idle in engine.deliverers().items():
                found[name] = min(idle, found.get(name, idle))
        return found

    # -- who delivers ----------------------------------------------------------------------------------------------

    def claim(self) -> bool:
        """Always true, see `Engine.claim`.

        Raises:
            SpoolError: none of the partitions answers.
        """
        for number, engine in enumerate(self.engines):
            try:
                self._ask(number, engine.claim)
            except RefusedError:
                raise
            except SpoolError:
                if len(self._trouble) == self._count:
                    raise
        self.has_claim = True
        self._tell()
        return True

    def release(self) -> None:
        self.has_claim = False
        try:
            self._share.leave()
            for engine in self.engines:
                engine.let_go()
        except SpoolError:
            pass  # whoever takes it over waits for the end of the lease

    def look(self) -> None:
        """Whether the servers are there, about once a second: one partition after the other.

        Raises:
            SpoolError: one is not, or the namespace is split otherwise by now.
        """
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_EVERY
            self._entrance.enter()
            self._entrance.keep_partitions()
            self._looked = (self._looked + 1) % self._count
            self.engines[self._looked].look()


def engine_of(store: RedisStore, *, max_bytes: int) -> Union[Engine, Partitions]:
    """The store on a server, in as many partitions as it is to have."""
    if store.partitions == 1:
        return Engine(store, max_bytes=max_bytes)
    return Partitions(store, max_bytes=max_bytes)


def _numbers(rising: Iterator[int], partitions: int, number: int) -> Callable[[], int]:
    return lambda: next(rising) * partitions + number


def _least(values: Iterable[Optional[_Number]]) -> Optional[_Number]:
    return min((value for value in values if value is not None), default=None)


def _sum(tallies: Iterable[Tally]) -> Tally:
    return functools.reduce(Tally.plus, tallies, Tally())
