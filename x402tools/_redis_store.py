"""The store on a Redis or Valkey server, shared by any number of processes on any number of hosts; see `_store` for
what it promises, and `_redis_scripts` for what lies there and how it moves.

One of those that deliver folds, for all: a group that each of them folded its part of would become a POST for each.

On a server of one partition an engine is the whole store; otherwise it is one of several (`_redis_partitions`).

It stands behind the reserve like the spool on a file: while the server is away, events wait in memory. Unlike there,
all processes that deliver do so at the same time, each what it has leased (`_redis_leases`), so nothing is sent from
memory: another process might have it too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import secrets
import socket
import time
from base64 import b64decode
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from x402tools import _batch, _redis_scripts, _redis_values
from x402tools._batch import CorruptBatchError, EncodedBatch, Post
from x402tools._redis_fleet import RedisFleet
from x402tools._redis_leases import HALF, Entry, Leases
from x402tools._redis_limits import OnServer
from x402tools._redis_link import Link, RefusedError
from x402tools._redis_start import Entrance
from x402tools._spool import Deposit
from x402tools._spool_rows import numbered
from x402tools._store import (
    Acknowledgement,
    Burial,
    ChangedError,
    Counts,
    DeadLetter,
    Holding,
    Place,
    RecordedBatch,
    SealedBatch,
    Tally,
)
from x402tools.errors import SpoolError
from x402tools.redis_store import RedisStore

log = logging.getLogger("x402tools")


_KEPT_RECORDERS = 30 * 86400.0  # seconds for which what a recorder stored last is known
_LOOK_EVERY = 1.0  # seconds between looks whether the server is there, while there is nothing to store
_REPLICAS_WAIT = 1.0  # seconds


class _HandedOut:
    """A batch of POSTs that the flusher has."""

    def __init__(self, id_: str, posts: int, left: Set[int]) -> None:
        self.id = id_
        self.posts = posts
        self.left = left  # positions that this process has not settled


class Ground(NamedTuple):
    """What an engine stands on, and shares with the others when it is one partition of several.

    Attributes:
        link: to where its keys are.
        entrance: what was asked of the servers.
        prefix: of its keys; with a hash tag, so that all of them are in one slot.
        next_number: for what is handed out; rises, and is unique among the partitions.
        name: this process's.
    """

    link: Link
    entrance: Entrance
    prefix: str
    next_number: Callable[[], int]
    name: str


def prefix_of(store: RedisStore, number: int = 0) -> str:
    """With what the keys of a partition begin."""
    return f"{{x402:{store.namespace}}}" if store.partitions == 1 else f"{{x402:{store.namespace}:{number}}}"


def _alone(store: RedisStore) -> Ground:
    link = Link(store)
    prefix = prefix_of(store)
    return Ground(link.at(prefix), Entrance(link, store), prefix, itertools.count(1).__next__, new_name())


def new_name() -> str:
    """A name for this process that no other one has, with its host and its number."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(12)}"


class Engine(OnServer):
    """A store on a server.

    Args:
        store: which one.
        max_bytes: how large the content may become.
        ground: for one partition of several; else the engine is the whole store.

    Raises:
        SpoolError: the server is one that would lose usage, or too old. One that is away is no error.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(
        self,
        store: RedisStore,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        ground: Optional[Ground] = None,
    ) -> None:
        self.path = store.place
        self.notices: List[str] = []
        self._store = store
        self._max_bytes = max_bytes
        self._clock = clock
        self._link, self._entrance, self._prefix, next_number, consumer = ground or _alone(store)
        self._fleet = RedisFleet(self._link.run, store.namespace, store.rate, clock=clock)
        self._name = consumer.rpartition("-")[2]  # as the recorder of deposits
        self._consumer = consumer
        self._recorded = Leases(self._link, self._key("in"), "fold", consumer, store.lease, clock, next_number)
        self._sealed = Leases(self._link, self._key("out"), "post", consumer, store.lease, clock, next_number)
        self._handed_out: Dict[int, _HandedOut] = {}
        self._sealed_last: List[str] = []  # ids of the batches
        self.folds = False  # this process is the one that folds
        self._ask_who_folds_at = 0.0
        self._is_ready = False
        self._look_at = 0.0
        self._size: Tuple[float, int] = (-math.inf, 0)
        self.has_claim = False
        self._destination: Optional[str] = None
        if ground is None:
            self._try_to_make_ready()

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _keys(self, *names: str) -> List[str]:
        return [self._key(name) for name in names]

    def _try_to_make_ready(self) -> None:
        try:
            self.make_ready()
        except RefusedError:
            raise
        except SpoolError:
            pass  # it is away, or full: the events wait in memory

    def make_ready(self) -> None:
        """Checks the server and makes what is missing there, once; before anything else is asked of it."""
        if self._is_ready:
            return
        self._entrance.enter()
        for lease in (self._recorded, self._sealed):
            lease.make_group()
        oldest = int((time.time() - _KEPT_RECORDERS) * 1000)
        self._link.run(_redis_scripts.PRUNE, self._keys("recorders", "seen"), [oldest])
        self._bind()
        self._is_ready = True

    def bind(self, destination: str) -> None:
        """See `Spool.bind`. Of a server that is away it is asked when it is back, before anything is stored there."""
        self.bind_later(destination)
        self._try_to_make_ready()

    def bind_later(self, destination: str) -> None:
        """The same, before the next thing that is asked of the server."""
        self._destination = hashlib.sha256(destination.encode("utf-8")).hexdigest()
        self._is_ready = False

    def _bind(self) -> None:
        if self._destination is None:
            return
        keys = self._keys("meta", "in", "out", "dead")
        if not self._link.run(_redis_scripts.BIND, keys, [self._destination]):
            raise RefusedError(
                f"{self.path}: holds usage for another base_url; deliver it there first, or use another namespace"
            )

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self.deposit(Deposit(0, batches, dropped=dropped))

    def deposit(self, deposit: Deposit) -> None:
        """Stores all of it or nothing; what was stored before is not stored again."""
        self.make_ready()
        if deposit.batches and self.size() >= self._max_bytes:
            raise SpoolError(f"{self.path}: max_disk_bytes ({self._max_bytes}) is reached; the store is full")
        milliseconds = int(time.time() * 1000)
        arguments: List[Any] = [f"={self._name}", deposit.number, milliseconds, *_redis_values.numbers(deposit.dropped)]
        for batch in deposit.batches:
            recorder, number = numbered(batch.id)
            tally = Tally(batch.events, batch.units)
            arguments += [recorder, number, int(batch.is_sealed), *_redis_values.numbers(tally), batch.value]
        self._write(_redis_scripts.DEPOSIT, self._keys("in", "out", "recorders", "seen", "ledger"), arguments)

    def has_deposit(self, number: int) -> bool:
        """See `Spool.has_deposit`; with replicas, whether they have it too."""
        return bool(self._write(_redis_scripts.HAS_DEPOSIT, self._keys("recorders"), [f"={self._name}", number]))

    def append_alone(self, batch: EncodedBatch) -> None:
        """Stores a batch in the calling thread, also beyond `max_bytes`."""
        self.deposit(Deposit(0, [batch]))

    def _write(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        if not self._store.replicas:
            return self._link.run(script, keys, arguments)
        return self._link.run_and_wait(script, keys, arguments, self._store.replicas, _REPLICAS_WAIT)

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        if held:
            raise SpoolError(f"{self.path}: nothing is held on a server; it needs a spool file")
        by_batch: Dict[int, List[Union[Acknowledgement, Burial]]] = {}
        settled: List[Union[Acknowledgement, Burial]] = [*acknowledged, *buried]
        for one in settled:
            if one.place.sequence in self._handed_out:
                by_batch.setdefault(one.place.sequence, []).append(one)
        keys, arguments = self._keys("out", "ledger", "dead", "dead-ids", "dead-next"), []
        for number, some in by_batch.items():
            batch = self._handed_out[number]
            keys.append(self._key(f"bits:{batch.id}"))
            arguments += [batch.id, batch.posts, len(some)]
            for one in some:
                letter = _redis_values.letter(one) if isinstance(one, Burial) else ""
                arguments += [one.place.position, *_redis_values.numbers(_redis_values.tally_of(one.post)), letter]
        if arguments:
            self._write(_redis_scripts.SETTLE, keys, arguments)
        for number, some in by_batch.items():
            left = self._handed_out[number].left  # by position: what is settled twice is one less all the same
            left.difference_update(one.place.position for one in some)
            if not left:
                del self._handed_out[number]
                self._sealed.done(number)

    def requeue(self, ids: Sequence[int]) -> int:
        total = 0
        for start in range(0, len(ids), _batch.MOST_EVENTS):
            arguments: List[Any] = []
            for letter, document in self._letters(ids[start : start + _batch.MOST_EVENTS]):
                if letter.readable:
                    value = b64decode(document["batch"])
                    arguments += [letter.id, *_redis_values.numbers(Tally(letter.events, letter.amount)), value]
            if arguments:
                keys = self._keys("dead", "dead-ids", "out", "ledger")
                total += int(self._write(_redis_scripts.REQUEUE, keys, arguments))
        return total

    def parts(self) -> List[Engine]:
        """What is folded apart."""
        return [self]

    @property
    def engines(self) -> List[Engine]:
        """See `Partitions`."""
        return [self]

    def part_of(self, envelope_id: str) -> Engine:  # noqa: ARG002 - there is the one
        """Where the events of an envelope are."""
        return self

    # -- reading -------------------------------------------------------------------------------------------------

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        self.make_ready()
        if not self._may_fold():
            return []
        entries = self._recorded.again(after)
        return self._rows(entries or self._recorded.read(limit))

    def _may_fold(self) -> bool:
        """Asked a few times a lease, by the one that folds and by those that would take its place."""
        if self._clock() >= self._ask_who_folds_at:
            words = [self._consumer, int(self._store.lease * 1000)]
            self.folds = bool(self._link.run(_redis_scripts.FOLD_HERE, self._keys("folder"), words))
            self._ask_who_folds_at = self._clock() + min(self._store.lease / 4, _LOOK_EVERY)
        return self.folds

    @property
    def is_folding(self) -> bool:
        """Whether something was read that is not sealed."""
        return bool(self._recorded.ids)

    def fold_elsewhere(self) -> None:
        """Lets another process fold; not while `is_folding`: what was read would be read there too."""
        self._link.run(_redis_scripts.FOLD_ELSEWHERE, self._keys("folder"), [self._consumer])
        self.folds, self._ask_who_folds_at = False, 0.0

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        names = [batch.id for batch in batches]
        if names == self._sealed_last:
            return  # for one who could not know
        ids = [id_ for number, id_ in self._recorded.ids.items() if number <= up_to]
        if not ids or up_to > self._recorded.last:
            raise ChangedError(f"{self.path}: that was not read, or is sealed")
        arguments: List[Any] = [self._consumer, len(ids), *ids]
        for batch in batches:
            arguments += [batch.value, _redis_values.text_of(Tally(batch.events, batch.units))]
        if not self._write(_redis_scripts.SEAL, self._keys("in", "out"), arguments):
            raise ChangedError(f"{self.path}: another process has taken over some of it")
        self._sealed_last = names
        for number in [number for number in self._recorded.ids if number <= up_to]:
            self._recorded.done(number)

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        self.make_ready()
        entries = self._sealed.again(after)[:limit]
        if len(entries) < limit:
            entries += self._sealed.read(limit - len(entries))
        if entries and self._store.replicas:
            # Before any of it is sent: a replica that takes over without the seal of another process would have the
            # same events folded once more, under another key. It has all that was written before this, and if it has
            # taken over since it was read, this finds it gone.
            entries = self._sealed.still_held(entries, self._write)
        batches = map(self._hand_out, entries)
        return [batch for batch in batches if batch is not None]

    def _rows(self, entries: Sequence[Entry]) -> List[RecordedBatch]:
        batches = []
        for entry in entries:
            try:
                recorder, rows = _batch.recorded_rows(entry.value)
            except CorruptBatchError as error:
                self._bury_batch("in", "fold", self._recorded, entry, str(error))
                continue
            batches.append(RecordedBatch(entry.number, entry.stored_at, recorder, rows))
        return batches

    def _hand_out(self, entry: Entry) -> Optional[SealedBatch]:
        try:
            posts = _batch.decode(entry.value)
        except CorruptBatchError as error:
            self._bury_batch("out", "post", self._sealed, entry, str(error))
            return None
        settled = b""
        if entry.taken_over:
            settled = self._link.command("GET", self._key(f"bits:{entry.id}")) or b""
        left = [at for at in range(len(posts)) if not _redis_values.is_set(settled, at)]
        self._handed_out[entry.number] = _HandedOut(entry.id, len(posts), set(left))
        return SealedBatch(entry.number, [(Place(entry.number, at), posts[at]) for at in left])

    def _bury_batch(self, stream: str, group: str, leases: Leases, entry: Entry, why: str) -> None:
        keys = self._keys(stream, "ledger", "dead", "dead-ids", "dead-next")
        letter = _redis_values.document(None, f"the batch is damaged: {why}", None, 0, entry.value)
        self._write(_redis_scripts.BURY_BATCH, keys, [group, entry.id, *_redis_values.numbers(entry.tally), letter])
        leases.done(entry.number)
        log.error("%s: a damaged batch of %d events is set aside as a dead letter", self.path, entry.tally.events)

    # -- looking -------------------------------------------------------------------------------------------------

    def last_recorded(self) -> int:
        return self._ends("in")[1]

    def first_recorded(self) -> Optional[int]:
        return self._ends("in")[0]

    def last_sequence(self) -> int:
        return self._ends("out")[1]

    def first_sequence(self) -> Optional[int]:
        return self._ends("out")[0]

    def _ends(self, stream: str) -> Tuple[Optional[int], int]:
        oldest, newest = self._link.run(_redis_scripts.ENDS, self._keys(stream))
        return (_redis_values.as_number(oldest) if oldest else None), _redis_values.as_number(newest or b"0-0")

    def pending_posts(self, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:
        """See `Spool.pending_posts`."""
        return self._page("out", after, up_to, limit)

    def pending_events(self, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:
        """See `Spool.pending_events`."""
        return self._page("in", after, up_to, limit)

    def _page(self, stream: str, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:
        start, end = f"({_redis_values.as_id(after)}", _redis_values.as_id(up_to)
        posts: List[Post] = []
        last = 0
        for id_, fields in self._link.command("XRANGE", self._key(stream), start, end, "COUNT", limit):
            last = _redis_values.as_number(id_)
            try:
                some = _batch.decode(fields[b"batch"])
            except CorruptBatchError:
                continue
            settled = self._link.command("GET", self._key(f"bits:{id_.decode()}")) or b""
            posts += [post for at, post in enumerate(some) if not _redis_values.is_set(settled, at)]
        return last, posts

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        words = ("ZRANGEBYSCORE", self._key("dead-ids"), f"({after}", "+inf", "LIMIT", 0, limit)
        return [letter for letter, _ in self._letters([int(id_) for id_ in self._link.command(*words)])]

    def _letters(self, ids: Sequence[int]) -> List[Tuple[DeadLetter, Dict[str, Any]]]:
        if not ids:
            return []
        found = zip(ids, self._link.command("HMGET", self._key("dead"), *ids))
        documents = [(number, json.loads(text)) for number, text in found if text is not None]
        return [(_redis_values.dead_letter(number, document), document) for number, document in documents]

    def counts(self) -> Counts:
        answer = self._link.command("HGETALL", self._key("ledger"))
        ledger = {name.decode(): int(value) for name, value in answer.items()}

        def tally(name: str) -> Tally:
            units = ledger.get(f"{name} high", 0) * HALF + ledger.get(f"{name} low", 0)
            return Tally(ledger.get(f"{name} events", 0), units)

        firsts = [first for first in (self.first_recorded(), self.first_sequence()) if first is not None]
        oldest = (min(firsts) >> _redis_values.COUNT_BITS) / 1000 if firsts else None
        return Counts(
            recorded=tally("recorded"),
            delivered=tally("delivered"),
            pending=tally("pending"),
            dead=tally("dead"),
            dropped=tally("dropped"),
            oldest_pending_at=oldest,
            size=self._memory(),
        )

    def deliverers(self) -> Dict[str, float]:
        """The processes that deliver, or did: seconds since the last sign of each, by name, and none before the first.

        A name has the host and the process id.
        """
        try:
            answer = self._link.command("XINFO", "CONSUMERS", self._key("out"), "post")
        except SpoolError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            return {}
        told = [dict(zip(one[::2], one[1::2])) for one in answer]
        return {one[b"name"].decode(): int(one[b"idle"]) / 1000 for one in told}

    def _memory(self) -> int:
        """Bytes in the server's memory, as it estimates them."""
        return sum(int(self._link.command("MEMORY", "USAGE", key) or 0) for key in self._keys("in", "out", "dead"))

    def size(self, age: float = _LOOK_EVERY) -> int:
        """Bytes in the server's memory, so many seconds ago at the most."""
        if self._clock() - self._size[0] >= age:
            self._size = self._clock(), self._memory()
        return self._size[1]

    @property
    def known_size(self) -> int:
        """The same, when it was last looked up."""
        return self._size[1]

    # -- who delivers ----------------------------------------------------------------------------------------------

    def claim(self) -> bool:
        """Always true: everybody delivers what it has leased. Gives signs of life."""
        self.make_ready()
        self._recorded.give_sign()
        self._sealed.give_sign()
        self.has_claim = True
        return True

    def release(self) -> None:
        try:
            self.let_go()
        except SpoolError:
            pass  # whoever takes it over waits for the end of the lease

    def let_go(self) -> None:
        """The same; raises SpoolError."""
        if self.has_claim:
            self.has_claim = False
            self._recorded.release()
            self._sealed.release()
            self.fold_elsewhere()

    def look(self) -> None:
        """Whether the server is there, about once a second.

        Raises:
            SpoolError: it is not.
        """
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_EVERY
            self.make_ready()
            self._link.command("PING")
