"""The store on one SQLite file, shared by any number of processes of one machine; see `_store` for what it promises.

    sealed    a row is a batch of frozen POSTs, written once
    settled   for a batch that is partly done: a bit for each POST that is not pending any more
    dead      a row is one POST set aside, or a batch that turned out to be damaged
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
from itertools import chain
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from x402tools import _batch, _spool_rows
from x402tools._batch import CorruptBatchError, EncodedBatch, Post
from x402tools._connection import Connection, DamagedError, Row, Transaction, transaction_here
from x402tools._open_file import OpenFile
from x402tools._process import FileLock
from x402tools._spool_rows import BURY, Progress, add_batch, count, count_if_added, dead_row
from x402tools._spool_setup import FORMAT
from x402tools._store import Acknowledgement, Burial, Counts, DeadLetter, Place, SealedBatch, Tally
from x402tools.errors import SpoolError

__all__ = ["FORMAT", "Deposit", "Spool"]

_OLDEST = (
    f"SELECT sealed.sequence, sealed.events, sealed.units, {_spool_rows.VALUE_IF_IT_FITS},"
    " settled.bits, settled.events, settled.units FROM sealed LEFT JOIN settled ON settled.sequence = sealed.sequence"
    " WHERE sealed.sequence > ? ORDER BY sealed.sequence LIMIT ?"
)
_DEAD_LETTERS = (
    "SELECT id, CAST(key AS BLOB), events, units, readable, CAST(details AS BLOB),"
    f" {_spool_rows.VALUE_IF_IT_FITS} FROM dead WHERE id > ? ORDER BY id LIMIT ?"
)
_REQUEUED = f"SELECT id, {_spool_rows.VALUE} FROM dead WHERE readable AND {_spool_rows.FITS}"
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"

# Above this many bytes an empty spool file is rebuilt small. Rebuilding an empty one takes about 10 ms.
_WORTH_SHRINKING = 1024 * 1024

_FORGET_EVERY = 50  # deposits; the rows of recorders that are gone wait for it without harm

_SIZE_CHECK_EVERY = 0.1  # seconds; at 100 MB/s the limit is passed by 10 MB at the most


class Deposit(NamedTuple):
    """What goes into the spool in one transaction; its number tells later whether it did."""

    number: int
    batches: Sequence[EncodedBatch] = ()
    delivered: Tally = Tally()  # recorded and delivered without ever being stored
    dropped: Tally = Tally()
    buried: Sequence[Burial] = ()  # recorded and refused without ever being stored


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
        self._next_size_check = 0.0
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
            waiting = transaction.rows("SELECT 1 FROM sealed UNION ALL SELECT 1 FROM dead LIMIT 1")
            if known and known[0][0] != fingerprint.encode() and waiting:
                raise SpoolError(
                    f"{self.path}: holds usage for another base_url; deliver it there first, or use another path"
                )
            transaction.run("REPLACE INTO meta VALUES ('destination', ?)", (fingerprint,))
        self._destination = fingerprint

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self.deposit(Deposit(0, batches, dropped=dropped))

    def deposit(self, deposit: Deposit) -> None:
        """Stores all of it or nothing. When it raises, ask `has_deposit` before making another of the same things."""
        with self._file.use() as connection:
            if deposit.batches:
                self._check_room(connection)
            with connection.transaction() as transaction:
                for batch in deposit.batches:
                    add_batch(transaction, batch)
                    count_if_added(transaction, batch.events, batch.units)
                for burial in deposit.buried:
                    place = f"{self._name} {burial.place.sequence}/{burial.place.position}"
                    transaction.run(BURY, dead_row(burial, place))
                    count(transaction, "recorded", Tally(burial.post.events, burial.post.amount))
                for name, tally in (("delivered", deposit.delivered), ("dropped", deposit.dropped)):
                    count(transaction, name, tally)
                    count(transaction, "recorded", tally)
                numbers = self._last_numbers(deposit)
                rows = [(_spool_rows.stored_key(recorder), number) for recorder, number in numbers.items()]
                transaction.run(_spool_rows.REMEMBER + ", (?, ?)" * (len(rows) - 1), list(chain.from_iterable(rows)))
                if deposit.number % _FORGET_EVERY == 0:
                    transaction.run(_spool_rows.FORGET_RECORDERS)

    def has_deposit(self, number: int) -> bool:
        """Whether the last deposit that was stored is the one of this number."""
        key = _spool_rows.stored_key(self._name)
        with self._file.use() as connection:
            return connection.rows("SELECT value FROM meta WHERE key = ?", (key,)) == [(number,)]

    def append_alone(self, batch: EncodedBatch) -> None:
        """Stores a batch in the calling thread, by a connection of its own and without a lock: at the end of the
        interpreter neither the thread of the other one nor the holder of a lock may run any more. Not limited by
        `max_bytes`."""
        if not self._file.is_at_the_path():
            raise SpoolError(f"{self.path}: was deleted or replaced while it is in use")
        with transaction_here(self.path) as transaction:
            add_batch(transaction, batch)
            count_if_added(transaction, batch.events, batch.units)

    def settle(self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial]) -> None:
        if not self.has_claim:
            raise SpoolError(f"{self.path}: only the process that holds the claim settles")
        with self._file.use() as connection:
            if self._unsure is not None and self._turned_out_stored(connection, *self._unsure):
                acknowledged = [one for one in acknowledged if self._is_pending(one.place)]
                buried = [one for one in buried if self._is_pending(one.place)]
            self._unsure = None
            if self._reread_from is not None:
                acknowledged = [one for one in acknowledged if self._still_has(one.place, one.post)]
                buried = [one for one in buried if self._still_has(one.place, one.post)]
            posts = [done.post for done in acknowledged]
            settlement = uuid.uuid4().hex
            progress = self._after([*acknowledged, *buried])
            try:
                with connection.transaction() as transaction:
                    for sequence, state in progress.items():
                        _spool_rows.write_progress(transaction, sequence, state)
                    for burial in buried:
                        transaction.run(BURY, dead_row(burial, f"{burial.place.sequence}/{burial.place.position}"))
                    delivered = Tally(sum(post.events for post in posts), sum(post.amount for post in posts))
                    count(transaction, "delivered", delivered)
                    transaction.run("REPLACE INTO meta VALUES ('settlement', ?)", (settlement,))
            except SpoolError:
                # A sync that fails reports an error for what may be stored all the same. Counted again it would put
                # the ledger wrong, so the next call looks first.
                self._unsure = settlement, progress
                raise
            self._advance(progress)

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
                add_batch(transaction, _batch.encode_posts(f"requeue-{uuid.uuid4().hex}/0", list(posts.values())))
                transaction.run(f"DELETE FROM dead WHERE id IN ({','.join('?' * len(posts))})", list(posts))
                total += len(posts)
        return total

    def sync(self) -> None:
        with self._file.use() as connection:
            connection.sync()

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

    def adopt(self, sequence: int, posts: List[Post]) -> None:
        """Takes a batch for handed out whose POSTs the flusher has from elsewhere."""
        with self._file.use():
            self._progress[sequence] = Progress(posts, 0, 0, 0)
            if self._reread_from is None:
                self._reread_from = 0

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        with self._file.use() as connection:
            return [_spool_rows.dead_letter(*row) for row in connection.rows(_DEAD_LETTERS, (after, limit))]

    def counts(self) -> Counts:
        sums = _spool_rows.SUMS
        with self._file.use() as connection, connection.transaction("DEFERRED") as transaction:  # one moment for all
            ledger = _spool_rows.ledger(transaction.rows(_spool_rows.LEDGER))
            sealed = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM sealed")[0])
            settled = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM settled")[0])
            dead = _spool_rows.tally(transaction.rows(f"SELECT {sums} FROM dead")[0])
            oldest = transaction.rows("SELECT sealed_at FROM sealed ORDER BY sequence LIMIT 1")
            return Counts(
                recorded=ledger["recorded"],
                delivered=ledger["delivered"],
                pending=Tally(sealed.events - settled.events, sealed.units - settled.units),
                dead=dead,
                dropped=ledger["dropped"],
                oldest_pending_at=float(oldest[0][0]) if oldest else None,
                size=_size(transaction),
            )

    # -- who delivers, and housekeeping --------------------------------------------------------------------------

    @property
    def has_claim(self) -> bool:
        return self._claim.held

    def claim(self) -> bool:
        if self._claim.held:
            return True
        self._progress.clear()  # whoever delivered in between has settled some of it
        self._reread_from = None
        try:
            return self._claim.acquire()
        except OSError as error:
            raise SpoolError(f"{self.path}.lock: {error.strerror}") from error

    def release(self) -> None:
        self._claim.release()

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
            connection.rows(_EMPTY_LOG)
            if self.first_sequence() is None and os.path.getsize(self.path) > _WORTH_SHRINKING:
                connection.rows("VACUUM")
                connection.rows(_EMPTY_LOG)

    def give_up_at(self, moment: Optional[float]) -> None:
        """From that moment of `time.monotonic()` on, no call waits for the disk: it raises SpoolError; None: never."""
        self._file.give_up_at(moment)

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

    def _last_numbers(self, deposit: Deposit) -> Dict[str, int]:
        """The numbers by which it will be known that this was stored; those of one recorder ascend."""
        return {self._name: deposit.number, **dict(_spool_rows.numbered(batch.id) for batch in deposit.batches)}

    def _check_room(self, connection: Connection) -> None:
        """Looks at the size now and then only: it costs as much as half a commit."""
        if time.monotonic() >= self._next_size_check:
            with connection.transaction("DEFERRED") as transaction:
                size = _size(transaction)
            if size >= self._max_bytes:
                raise SpoolError(f"{self.path}: has reached max_disk_bytes; events wait in memory until there is room")
            self._next_size_check = time.monotonic() + _SIZE_CHECK_EVERY

    def _hand_out_all(self, connection: Connection, rows: Sequence[Row]) -> List[SealedBatch]:
        before = set(self._progress)
        try:
            return [batch for batch in (self._hand_out(connection, *row) for row in rows) if batch is not None]
        except BaseException:  # the flusher gets none of them
            for sequence in set(self._progress) - before:
                del self._progress[sequence]
            raise

    def _hand_out(
        self, connection: Connection, sequence: int, events: int, units: int, value: Optional[bytes], *settled: Any
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
            self.notices.append(f"the counts of a batch in {self.path} were damaged: {truth.events} events set right")
            with connection.transaction() as transaction:
                transaction.run("UPDATE sealed SET events = ?, units = ? WHERE sequence = ?", (*truth, sequence))
        state = self._progress[sequence] = _spool_rows.progress(posts, *settled)
        left = [(Place(sequence, at), post) for at, post in enumerate(posts) if not state.bits >> at & 1]
        return SealedBatch(sequence, left)

    def _turned_out_stored(self, connection: Connection, settlement: str, progress: Dict[int, Progress]) -> bool:
        known = connection.rows("SELECT value FROM meta WHERE key = 'settlement'")
        if known != [(settlement,)]:
            return False
        self._advance(progress)
        return True

    def _advance(self, progress: Dict[int, Progress]) -> None:
        for sequence, state in progress.items():
            if state.is_done:
                self._progress.pop(sequence, None)
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

    def _quarantine(self, connection: Connection, row: Tuple[Any, ...], settled: Tuple[Any, ...], reason: str) -> None:
        """Sets a damaged batch aside as it is: it stays for people to look at, and the others go on."""
        sequence, events, units, value = row
        if not _spool_rows.are_counts(events, units):
            raise DamagedError(f"{self.path}: malformed: the counts of a damaged batch are damaged too")
        if _spool_rows.are_counts(*settled[1:]):
            events, units = events - settled[1], units - settled[2]
        self.notices.append(
            f"a batch of {events} events in {self.path} is damaged ({reason}): set aside as a dead letter"
        )
        with connection.transaction() as transaction:
            details = json.dumps({"reason": f"damaged in the spool: {reason}", "died_at": time.time()})
            place = f"{sequence}/damaged"
            transaction.run(BURY, (place, f"damaged batch {sequence}", events, units, 0, details, value))
            _spool_rows.forget_batch(transaction, sequence)


def _size(transaction: Transaction) -> int:
    sql = (
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
    )
    return int(transaction.rows(sql)[0][0])
