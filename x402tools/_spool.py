"""The store on one SQLite file, shared by any number of processes of one machine; see `_store` for what it promises.

    recorded  a row is a batch of events that are not sealed yet; see `_spool_recorded`
    sealed    a row is a batch of frozen POSTs, written once
    settled   for a batch that is partly done: a bit for each POST that is not pending any more
    dead      a row is one POST set aside, or a batch that turned out to be damaged
    sending   a row is a POST that was noted before it was sent   } only where a POST of unknown outcome
    held      a row is one POST whose outcome is unknown          } may not simply be sent again
    ledger    counters that are never recomputed: recorded, delivered, dropped
    meta      sqlitedict's own table: the destination, the last settlement, what each recorder stored last

Settling a POST changes one small row of `settled`; a batch is deleted when its last POST is settled. Rewriting the
batch without the POST would cost as much as storing it again.

The file may turn out to be damaged, deleted or replaced at any time: `_open_file` mends that.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import uuid
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import x402tools
from x402tools import _batch, _spool_held, _spool_recorded, _spool_rows
from x402tools._batch import CorruptBatchError, EncodedBatch, Post
from x402tools._connection import Connection, DamagedError, transaction_here
from x402tools._open_file import OpenFile
from x402tools._process import FileLock
from x402tools._spool_rows import ARRIVE, ARRIVE_ALONE, BURY, Progress, arriving, count, dead_row
from x402tools._spool_setup import FORMAT
from x402tools._spool_totals import Totals
from x402tools._store import (
    Acknowledgement,
    Allowance,
    Burial,
    ChangedError,
    Counts,
    DeadLetter,
    HeldPost,
    Holding,
    Place,
    RecordedBatch,
    SealedBatch,
    Tally,
)
from x402tools._transaction import Row
from x402tools.errors import SpoolError

__all__ = ["FORMAT", "Deposit", "Spool"]

_OLDEST = (
    f"SELECT sealed.sequence, sealed.events, sealed.units, {_spool_rows.VALUE_IF_IT_FITS}, {_spool_held.NOTES},"
    " settled.bits, settled.events, settled.units FROM sealed LEFT JOIN settled ON settled.sequence = sealed.sequence"
    " WHERE sealed.sequence > ? ORDER BY sealed.sequence LIMIT ?"
)
_DEAD_LETTERS = (
    "SELECT id, CAST(key AS BLOB), events, units, readable, CAST(details AS BLOB),"
    f" {_spool_rows.VALUE_IF_IT_FITS} FROM dead WHERE id > ? ORDER BY id LIMIT ?"
)
_ENCODED = f"SELECT batch, events, units, {_spool_rows.VALUE} FROM sealed WHERE sequence = ?"
_REQUEUED = f"SELECT id, {_spool_rows.VALUE} FROM dead WHERE readable AND {_spool_rows.FITS}"
_STORED = "SELECT value FROM meta WHERE key = ?"
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"

# Above this many bytes an empty spool file is rebuilt small. Rebuilding an empty one takes about 10 ms.
_WORTH_SHRINKING = 1024 * 1024

# The size is looked at again after so many seconds, and when so large a part of the limit was stored meanwhile.
_SIZE_CHECK_EVERY = 0.1
_PARTS_UNCHECKED = 8


class Deposit(NamedTuple):
    """What goes into the spool in one transaction; its number tells later whether it did."""

    number: int
    batches: Sequence[EncodedBatch] = ()
    delivered: Tally = Tally()  # recorded and delivered without ever being stored
    dropped: Tally = Tally()
    buried: Sequence[Burial] = ()  # recorded and refused without ever being stored
    held: Sequence[Holding] = ()  # recorded and of unknown outcome, without ever being stored
    sending: Sequence[Tuple[str, int, float]] = ()  # notes: batch, position in it, seconds since 1970
    up_to: Sequence[Tuple[str, int]] = ()  # recorders, and up to which number this and what was stored is all of theirs


class Spool:
    """A store on the file at `path`.

    Args:
        path: an absolute path; the file is made when it is missing.
        sync: "FULL" or "NORMAL"; see `_connection.Connection`.
        max_bytes: how large the content may become.
        make_folder: make the folder of the file when it is missing.

    Raises:
        SpoolError: the file cannot be made or used; it names the path and what to do.
    """

    is_shared = False  # by several processes that deliver at the same time

    def __init__(self, path: str, *, sync: str, max_bytes: int, make_folder: bool = False) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._claim = FileLock(path + ".lock")
        self._name = secrets.token_hex(12)  # as the recorder of deposits
        self._destination: Optional[str] = None
        # How far the batches are settled that were handed out and are not done; only the holder of the claim has any.
        self._progress: Dict[int, Progress] = {}
        self._unsure: Optional[Tuple[str, Dict[int, Progress]]] = None  # the last settlement, if it may be stored
        self._reread_from: Optional[int] = None  # see `oldest_sealed`
        self._read_up_to: Optional[int] = None  # which recorded batches were handed out; None: none of this file
        self._has_notes = False  # this process has written or seen notes about what is being sent
        self._next_size_check = 0.0
        self._unchecked = 0  # bytes stored since it was looked at
        self._begin_totals()
        self._file = OpenFile(path, sync=sync, make_folder=make_folder, on_change=self._read_again)
        self.notices = self._file.notices

    # -- destination ---------------------------------------------------------------------------------------------

    def bind(self, destination: str) -> None:
        """Remembers for which base URL these events are, as a hash; refuses to mix two.

        Raises:
            SpoolError: events for another base URL are still waiting.
        """
        with self._file.use() as connection:
            self._bind(connection, hashlib.sha256(destination.encode("utf-8")).hexdigest())

    def _bind(self, connection: Connection, fingerprint: str) -> None:
        with connection.transaction() as transaction:
            known = transaction.rows("SELECT CAST(value AS BLOB) FROM meta WHERE key = 'destination'")
            waiting = transaction.rows(
                "SELECT 1 FROM sealed UNION ALL SELECT 1 FROM dead UNION ALL SELECT 1 FROM held"
                f" UNION ALL SELECT 1 {_spool_recorded.WAITING} LIMIT 1"
            )
            if known and known[0][0] != fingerprint.encode() and waiting:
                raise SpoolError(
                    f"{self.path}: holds usage for another base_url; deliver it there first, or use another path"
                )
            transaction.run("REPLACE INTO meta VALUES ('destination', ?)", (fingerprint,))
            transaction.run("REPLACE INTO meta VALUES (?, ?)", (f"version {x402tools.__version__}", time.time()))
        self._destination = fingerprint

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self.deposit(Deposit(0, batches, dropped=dropped))

    def deposit(self, deposit: Deposit) -> None:
        """Stores all of it or nothing. When it raises, ask `has_deposit` before making another of the same things."""
        with self._file.use() as connection:
            if deposit.batches:
                self._check_room(connection, deposit.batches)
            if len(deposit.batches) == 1 and deposit == Deposit(deposit.number, deposit.batches):
                connection.run_alone(ARRIVE_ALONE, arriving(deposit.batches[0], self._name, deposit.number))
                return
            with connection.transaction() as transaction:
                for batch in deposit.batches:
                    transaction.run(ARRIVE, arriving(batch))
                for burial in deposit.buried:
                    place = f"{self._name} {burial.place.sequence}/{burial.place.position}"
                    transaction.run(BURY, dead_row(burial, place))
                    count(transaction, "recorded", Tally(burial.post.events, burial.post.amount))
                _spool_held.hold(transaction, deposit.held, f"{self._name} ")
                count(transaction, "recorded", _spool_held.total([holding.post for holding in deposit.held]))
                for note in deposit.sending:
                    _spool_held.note_in_batch(transaction, *note)
                for name, tally in (("delivered", deposit.delivered), ("dropped", deposit.dropped)):
                    count(transaction, name, tally)
                    count(transaction, "recorded", tally)
                for recorder, number in deposit.up_to:
                    key = _spool_rows.stored_key(recorder)
                    transaction.run(_spool_rows.REMEMBER_AT_LEAST, (key, number, key, number))
                transaction.run(_spool_rows.REMEMBER, (_spool_rows.stored_key(self._name), deposit.number))

    def has_deposit(self, number: int) -> bool:
        """Whether the last deposit that was stored is the one of this number."""
        key = _spool_rows.stored_key(self._name)
        with self._file.use() as connection:
            return connection.rows(_STORED, (key,)) == [(number,)]

    def stored_up_to(self, recorder: str) -> int:
        """The number of the last batch of this recorder that is known to have been stored, or 0."""
        with self._file.use() as connection:
            return _spool_recorded.number(connection.rows(_STORED, (_spool_rows.stored_key(recorder),))) or 0

    def take_in(self, recorder: str, known: int, batches: Sequence[EncodedBatch]) -> None:
        """Stores batches of a recorder that is no more, all or nothing; see `_takeover`.

        Raises:
            SpoolError: nothing was stored; also if what is stored of this recorder goes beyond the number `known`.
        """
        key = _spool_rows.stored_key(recorder)
        with self._file.use() as connection:
            self._check_room(connection, batches)
            with connection.transaction() as transaction:
                if (_spool_recorded.number(transaction.rows(_STORED, (key,))) or 0) > known:
                    raise SpoolError(f"{self.path}: a statement of a process that ended was done late; try again")
                for batch in batches:
                    transaction.run(ARRIVE, arriving(batch))

    def forget_recorder(self, recorder: str) -> None:
        """The journal of this recorder is gone. Its number is forgotten later: a statement of its process that the disk
        did not answer in time may still be done."""
        with self._file.use() as connection, connection.transaction() as transaction:
            for sql, parameters in _spool_rows.forgetting(recorder):
                transaction.run(sql, parameters)

    def append_alone(self, batch: EncodedBatch) -> None:
        """Stores a batch in the calling thread, by a connection of its own and without a lock: at the end of the
        interpreter neither the thread of the other one nor the holder of a lock may run any more. Not limited by
        `max_bytes`."""
        if not self._file.is_at_the_path():
            raise SpoolError(f"{self.path}: was deleted or replaced while it is in use")
        with transaction_here(self.path, _spool_rows.ARRIVING) as transaction:
            transaction.run(ARRIVE, arriving(batch))

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        if not self.has_claim:
            raise SpoolError(f"{self.path}: only the process that holds the claim settles")
        with self._file.use() as connection:
            if self._unsure is not None and self._turned_out_stored(connection, *self._unsure):
                acknowledged = [one for one in acknowledged if self._is_pending(one.place)]
                buried = [one for one in buried if self._is_pending(one.place)]
                held = [one for one in held if self._is_pending(one.place)]
            self._unsure = None
            if self._reread_from is not None:
                acknowledged = [one for one in acknowledged if self._still_has(one.place, one.post)]
                buried = [one for one in buried if self._still_has(one.place, one.post)]
                held = [one for one in held if self._still_has(one.place, one.post)]
            posts = [done.post for done in acknowledged]
            settlement = uuid.uuid4().hex
            settled: List[Any] = [*acknowledged, *buried, *held]
            progress = self._after(settled)
            try:
                with connection.transaction() as transaction:
                    for sequence, state in progress.items():
                        _spool_rows.write_progress(transaction, sequence, state)
                    for burial in buried:
                        transaction.run(BURY, dead_row(burial, f"{burial.place.sequence}/{burial.place.position}"))
                    _spool_held.hold(transaction, held)
                    if self._has_notes:
                        _spool_held.forget_notes(transaction, [one.place for one in settled])
                    delivered = Tally(sum(post.events for post in posts), sum(post.amount for post in posts))
                    count(transaction, "delivered", delivered)
                    transaction.run("REPLACE INTO meta VALUES ('settlement', ?)", (settlement,))
            except SpoolError:
                # A sync that fails reports an error for what may be stored all the same. Counted again it would put
                # the ledger wrong, so the next call looks first.
                self._unsure = settlement, progress
                raise
            self._advance(progress)

    def note_sending(self, begun: Sequence[Place], ended: Sequence[Place] = ()) -> List[Place]:
        if not self.has_claim:
            raise SpoolError(f"{self.path}: who sends has to hold the claim")
        self._has_notes = True
        with self._file.use() as connection, connection.transaction() as transaction:
            _spool_held.write_notes(transaction, begun, ended)
        return list(begun)

    def resolve(self, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:
        with self._file.use() as connection, connection.transaction() as transaction:
            return _spool_held.resolve(transaction, booked, absent)

    def requeue(self, ids: Sequence[int]) -> int:
        total = 0
        with self._file.use() as connection, connection.transaction() as transaction:
            for start in range(0, len(ids), _batch.MOST_EVENTS):
                some = list(ids[start : start + _batch.MOST_EVENTS])
                marks = ",".join("?" * len(some))
                rows = transaction.rows(f"{_REQUEUED} AND id IN ({marks})", some)
                found = ((number, _spool_rows.first_post(value)) for number, value in rows)
                posts = {number: post for number, post in found if post is not None}  # the others are damaged and stay
                if not posts:
                    continue
                _spool_rows.add_again(
                    transaction, _batch.encode_posts(f"requeue-{uuid.uuid4().hex}/0", list(posts.values()))
                )
                transaction.run(f"DELETE FROM dead WHERE id IN ({','.join('?' * len(posts))})", list(posts))
                total += len(posts)
        return total

    def sync(self) -> None:
        with self._file.use() as connection:
            connection.sync()

    # -- what is recorded and not sealed ----------------------------------------------------------------------------

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        with self._file.use() as connection:
            while True:
                rows = connection.rows(_spool_recorded.NEXT, (after, limit))
                batches = [
                    batch for batch in (self._read_recorded(connection, row) for row in rows) if batch is not None
                ]
                if batches or not rows:
                    if batches:
                        self._read_up_to = batches[-1].sequence
                    return batches
                after = rows[-1][0]

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        with self._file.use() as connection:
            if not self.has_claim or self._read_up_to != up_to:
                raise ChangedError(f"{self.path}: another file or another process is in between: read again")
            with connection.transaction() as transaction:
                _spool_recorded.seal(transaction, up_to, batches)

    def sweep(self) -> bool:
        with self._file.use() as connection:
            return _spool_recorded.sweep(connection)

    def last_recorded(self) -> int:
        with self._file.use() as connection:
            return _spool_recorded.number(connection.rows(_spool_recorded.LAST)) or 0

    def first_recorded(self) -> Optional[int]:
        with self._file.use() as connection:
            return _spool_recorded.number(connection.rows(_spool_recorded.FIRST))

    # -- reading -------------------------------------------------------------------------------------------------

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        """See `Store`. After another file has taken the place of this one, all of it is read again, except for what
        is handed out already: its numbers need not go on where those of the old one ended."""
        with self._file.use() as connection:
            while True:
                start = after if self._reread_from is None else self._reread_from
                rows = connection.rows(_OLDEST, (start, limit))
                batches = self._hand_out_all(connection, rows)
                if self._reread_from is not None and rows:
                    self._reread_from = rows[-1][0]
                if batches or not rows:
                    return batches
                after = rows[-1][0]

    def last_sequence(self) -> int:
        with self._file.use() as connection:
            rows = connection.rows("SELECT seq FROM sqlite_sequence WHERE name = 'sealed'")
            return int(rows[0][0]) if rows else 0

    def first_sequence(self) -> Optional[int]:
        with self._file.use() as connection:
            first = connection.rows("SELECT min(sequence) FROM sealed")[0][0]
            return None if first is None else int(first)

    def places_of(self, batch_ids: Sequence[str]) -> Dict[str, int]:
        """The sequence numbers of those of these batches that are stored."""
        with self._file.use() as connection:
            found = {}
            for batch_id in batch_ids:
                for (sequence,) in connection.rows("SELECT sequence FROM sealed WHERE batch = ? LIMIT 1", (batch_id,)):
                    found[batch_id] = int(sequence)
            return found

    def encoded(self, sequences: Sequence[int]) -> List[EncodedBatch]:
        """These batches as they were stored, for another store to take them."""
        with self._file.use() as connection:
            found = [connection.rows(_ENCODED, (sequence,)) for sequence in sequences]
        return [EncodedBatch(name, events, units, bytes(value)) for ((name, events, units, value),) in found]

    def pending_posts(self, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:
        """The POSTs that are pending in up to `limit` batches, oldest first, and the sequence number of the last of
        them (0: there is none). Only looks: nothing is handed out, and a batch that is damaged is passed over."""
        with self._file.use() as connection:
            rows = [row for row in connection.rows(_OLDEST, (after, limit)) if row[0] <= up_to]
        found: List[Post] = []
        for _, _, _, value, _, *settled in rows:
            try:
                posts = _batch.decode(value or b"")
            except CorruptBatchError:
                continue  # the flusher sets it aside
            bits = _spool_rows.progress(posts, *settled).bits
            found += [post for at, post in enumerate(posts) if not bits >> at & 1]
        return (int(rows[-1][0]) if rows else 0), found

    def pending_events(self, after: int, up_to: int, limit: int) -> Tuple[int, List[Post]]:
        """The same for what is recorded and not sealed, each event as a POST."""
        with self._file.use() as connection:
            rows = [row for row in connection.rows(_spool_recorded.NEXT, (after, limit)) if row[0] <= up_to]
        found: List[Post] = []
        for _, _, _, _, value in rows:
            try:
                found += _batch.decode(value or b"")
            except CorruptBatchError:
                continue  # the flusher sets it aside
        return (int(rows[-1][0]) if rows else 0), found

    def adopt(self, sequence: int, posts: List[Post]) -> None:
        """Takes a batch for handed out whose POSTs the flusher has from elsewhere."""
        with self._file.use():
            self._progress[sequence] = Progress(posts, 0, 0, 0)
            if self._reread_from is None:
                self._reread_from = 0

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        with self._file.use() as connection:
            return [_spool_rows.dead_letter(*row) for row in connection.rows(_DEAD_LETTERS, (after, limit))]

    def held(self, after: int, limit: int) -> List[HeldPost]:
        with self._file.use() as connection:
            while True:
                rows = connection.rows(_spool_held.HELD, (after, limit))
                posts, damaged = _spool_held.held_posts(rows)
                if damaged:
                    self.notices.append(
                        f"{len(damaged)} held POSTs in {self.path} are damaged: set aside as dead letters"
                    )
                    with connection.transaction() as transaction:
                        _spool_held.set_aside(transaction, damaged)
                if posts or not rows:
                    return posts
                after = rows[-1][0]

    def has_held(self) -> bool:
        """Whether any POST is held."""
        with self._file.use() as connection:
            return bool(connection.rows(_spool_held.ANY_HELD))

    def counts(self) -> Counts:
        sums = _spool_rows.SUMS
        with self._file.use() as connection, connection.transaction("DEFERRED") as transaction:  # one moment for all
            ledger = _spool_rows.ledger(transaction.rows(_spool_rows.LEDGER))
            recorded = self._recorded.read(transaction)
            sealed = self._sealed.read(transaction)
            settled = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM settled")[0])
            dead = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM dead")[0])
            held = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM held")[0])
            oldest = transaction.rows("SELECT sealed_at FROM sealed ORDER BY sequence LIMIT 1")
            if held.events:
                oldest += transaction.rows(_spool_held.OLDEST_HELD)
            if recorded.events:
                oldest += transaction.rows(_spool_recorded.OLDEST)
            return Counts(
                recorded=ledger["recorded"],
                delivered=ledger["delivered"],
                pending=recorded.plus(sealed).minus(settled).plus(held),
                dead=dead,
                dropped=ledger["dropped"],
                oldest_pending_at=float(min(oldest)[0]) if oldest else None,
                size=_spool_rows.size(transaction),
                held=held,
            )

    # -- who delivers, and housekeeping --------------------------------------------------------------------------

    @property
    def has_claim(self) -> bool:
        return self._claim.held

    def claim(self) -> bool:
        if self._claim.held:
            return True
        self._read_up_to = None
        self._progress.clear()  # whoever delivered in between has settled some of it
        self._reread_from = None
        try:
            return self._claim.acquire()
        except OSError as error:
            raise SpoolError(f"{self.path}.lock: {error.strerror}") from error

    def release(self) -> None:
        self._claim.release()

    def allowance(self, most: int) -> Allowance:
        """See `Store`: the one process that delivers is its own fleet."""
        return Allowance(most)

    def shut(self, reason: str, seconds: float) -> None: ...

    def reopen(self) -> None: ...

    def look(self) -> None:
        """Makes sure that the open file is still the one at the path.

        Raises:
            SpoolError: it is not, and that cannot be mended now.
        """
        with self._file.use():
            pass

    def make_room(self) -> None:
        """On a full disk: gives back what the log holds, up to some megabytes, if that is possible."""
        try:
            with self._file.use() as connection:
                connection.rows(_EMPTY_LOG)
        except SpoolError:
            pass  # it could not; whoever had no room has told

    def tidy(self) -> None:
        with self._file.use() as connection:
            if self._has_notes:  # of batches that are gone, and that were settled by a process that did not look
                with connection.transaction() as transaction:
                    transaction.run(_spool_held.FORGET_LEFTOVERS)
            connection.rows(_EMPTY_LOG)
            if (
                self.first_sequence() is None
                and self.first_recorded() is None
                and os.path.getsize(self.path) > _WORTH_SHRINKING
            ):
                connection.rows("VACUUM")
                connection.rows(_EMPTY_LOG)

    def give_up_at(self, moment: Optional[float]) -> None:
        """From that moment of `time.monotonic()` on, no call waits for the disk: it raises SpoolError; None: never."""
        self._file.give_up_at(moment)

    def go_on(self, seconds: float) -> None:
        """See `Reserve.go_on`."""
        self._file.go_on(seconds)

    def close(self) -> None:
        self.release()
        self._file.close()

    def is_in_use_here(self) -> bool:
        """See `Connection.is_in_use_here`."""
        return self._file.is_in_use_here()

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _read_again(self, connection: Connection) -> None:
        """Another file is in use: forgets which batches are handed out, except for those that it has under the same
        numbers, and rereads it from the start."""
        self._read_up_to = None
        self._forget_totals()
        handed_out, self._progress, self._unsure, self._reread_from = self._progress, {}, None, 0
        try:
            for sequence, state in handed_out.items():
                for row in connection.rows(_OLDEST, (sequence - 1, 1)):
                    batch = self._hand_out(connection, *row) if row[0] == sequence else None
                    if batch is not None and self._progress[sequence].posts != state.posts:
                        del self._progress[sequence]
            if self._destination is not None:
                self._bind(connection, self._destination)
        except BaseException:  # it is called again
            self._progress = handed_out
            raise

    def _check_room(self, connection: Connection, batches: Sequence[EncodedBatch]) -> None:
        """Looks at the size now and then only: it costs as much as half a commit."""
        is_due = self._unchecked >= self._max_bytes // _PARTS_UNCHECKED or time.monotonic() >= self._next_size_check
        self._unchecked += sum(len(batch.value) for batch in batches)
        if is_due:
            if _spool_rows.size(connection) >= self._max_bytes:
                raise SpoolError(f"{self.path}: has reached max_disk_bytes; events wait in memory until there is room")
            self._next_size_check = time.monotonic() + _SIZE_CHECK_EVERY
            self._unchecked = 0

    def _hand_out_all(self, connection: Connection, rows: Sequence[Row]) -> List[SealedBatch]:
        before = set(self._progress)
        try:
            return [batch for batch in (self._hand_out(connection, *row) for row in rows) if batch is not None]
        except BaseException:  # the flusher gets none of them
            for sequence in set(self._progress) - before:
                del self._progress[sequence]
            raise

    def _hand_out(
        self,
        connection: Connection,
        sequence: int,
        events: int,
        units: int,
        value: Optional[bytes],
        notes: Optional[bytes],
        *settled: Any,
    ) -> Optional[SealedBatch]:
        """The POSTs of a row that are pending, or None when it is damaged or handed out already."""
        if sequence in self._progress and self._reread_from is not None:
            return None
        if value is None:
            raise DamagedError(f"{self.path}: malformed: holds a batch of a size that is never written")
        try:
            posts = _batch.decode(value)
        except CorruptBatchError as error:
            self._quarantine(connection, (sequence, events, units, value), settled, str(error))
            return None
        truth = Tally(sum(post.events for post in posts), sum(post.amount for post in posts))
        if (events, units) != truth:  # the content has a checksum, its counts have none
            self._tell_of_counts(truth)
            with connection.transaction() as transaction:
                transaction.run("UPDATE sealed SET events = ?, units = ? WHERE sequence = ?", (*truth, sequence))
            self._forget_totals()
        state = self._progress[sequence] = _spool_rows.progress(posts, *settled)
        left = [(Place(sequence, at), post) for at, post in enumerate(posts) if not state.bits >> at & 1]
        if notes is None:
            return SealedBatch(sequence, left)
        self._has_notes = True
        return SealedBatch(sequence, left, _spool_held.notes(notes))

    def _read_recorded(self, connection: Connection, row: Row) -> Optional[RecordedBatch]:
        """The batch of a row, or None when it is damaged: then it is set aside."""
        sequence, _, events, units, value = row
        try:
            batch = _spool_recorded.read(row)
        except CorruptBatchError as error:
            self._quarantine(connection, (sequence, events, units, value), (), str(error), is_sealed=False)
            return None
        truth = _spool_recorded.counted(batch)
        if (events, units) != truth:
            self._tell_of_counts(truth)
            with connection.transaction() as transaction:
                _spool_recorded.set_right(transaction, sequence, truth)
            self._forget_totals()
        return batch

    def _turned_out_stored(self, connection: Connection, settlement: str, progress: Dict[int, Progress]) -> bool:
        known = connection.rows("SELECT value FROM meta WHERE key = 'settlement'")
        if known != [(settlement,)]:
            return False
        self._advance(progress)
        self._forget_totals()  # they may have been read in between
        return True

    def _advance(self, progress: Dict[int, Progress]) -> None:
        for sequence, state in progress.items():
            if state.is_done:
                self._progress.pop(sequence, None)
                self._sealed.settled(sequence, Tally(state.events, state.units))
            else:
                self._progress[sequence] = state

    def _is_pending(self, place: Place) -> bool:
        state = self._progress.get(place.sequence)
        return state is not None and not state.bits >> place.position & 1

    def _still_has(self, place: Place, post: Post) -> bool:
        """False for a POST that was handed out from a file which is gone, and that this one has elsewhere or not at
        all: what this one has is sent again under the same key, and counted then."""
        if not self._is_pending(place):
            return False
        posts = self._progress[place.sequence].posts
        return place.position < len(posts) and posts[place.position].key == post.key

    def _after(self, settled: Iterable[Any]) -> Dict[int, Progress]:
        """The progress of every batch concerned once these POSTs are settled."""
        changed: Dict[int, Progress] = {}
        for place, post, *_ in settled:
            state = changed.get(place.sequence) or self._progress[place.sequence]
            bit = 1 << place.position
            if state.bits & bit:
                raise AssertionError(f"settled twice: {place}")  # a fault of the flusher: it may not be counted
            changed[place.sequence] = state._replace(
                events=state.events + post.events, units=state.units + post.amount, bits=state.bits | bit
            )
        return changed

    def _begin_totals(self) -> None:
        self._sealed, self._recorded = Totals("sealed"), Totals("recorded", _spool_recorded.FOLDED)

    def _forget_totals(self) -> None:
        self._sealed.forget()
        self._recorded.forget()

    def _tell_of_counts(self, truth: Tally) -> None:
        self.notices.append(f"the counts of a batch in {self.path} were damaged: {truth.events} events set right")

    def _quarantine(
        self,
        connection: Connection,
        row: Tuple[Any, ...],
        settled: Tuple[Any, ...],
        reason: str,
        *,
        is_sealed: bool = True,
    ) -> None:
        """Sets a damaged batch aside as it is: it stays for people to look at, and the others go on."""
        sequence, events, units, value = row
        if not _spool_rows.are_counts(events, units):
            raise DamagedError(f"{self.path}: malformed: the counts of a damaged batch are damaged too")
        if settled and _spool_rows.are_counts(*settled[1:]):
            events, units = events - settled[1], units - settled[2]
        self.notices.append(
            f"a batch of {events} events in {self.path} is damaged ({reason}): set aside as a dead letter"
        )
        with connection.transaction() as transaction:
            details = json.dumps({"reason": f"damaged in the spool: {reason}", "died_at": time.time()})
            place = f"{'' if is_sealed else 'recorded '}{sequence}/damaged"
            transaction.run(BURY, (place, f"damaged batch {sequence}", events, units, 0, details, value))
            forget = _spool_rows.forget_batch if is_sealed else _spool_recorded.forget
            forget(transaction, sequence)
        self._forget_totals()
