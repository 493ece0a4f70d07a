"""The store on one SQLite file, shared by any number of processes of one machine; see `_store` for what it promises.

    sealed    a row is a batch of frozen POSTs, written once
    settled   for a batch that is partly done: a bit for each POST that is not pending any more
    dead      a row is one POST set aside, or a batch that turned out to be damaged
    ledger    counters that are never recomputed: recorded, delivered, dropped
    meta      sqlitedict's own table: the destination, the last settlement

Settling a POST changes one small row of `settled`; a batch is deleted when its last POST is settled. Rewriting the
batch without the POST would cost as much as storing it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from x402tools import _batch, _spool_file
from x402tools._batch import CorruptBatchError, EncodedBatch, Post
from x402tools._connection import Connection, DatabaseError, Row, Transaction, plain, prepare
from x402tools._process import FileLock
from x402tools._store import Acknowledgement, Burial, Counts, DeadLetter, Place, SealedBatch, Tally
from x402tools.errors import SpoolError

log = logging.getLogger("x402tools")

FORMAT = 1  # of the tables; in PRAGMA user_version
_APPLICATION = 0x78343032  # "x402", in PRAGMA application_id, so that another program's database is not taken for ours

# Sums of units may pass what SQLite can add (2**63): they are kept as high * 2**26 + low, or high * 2**53 + low.
_HALF = 26
_BASE = 2**53

_SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS sealed (sequence INTEGER PRIMARY KEY AUTOINCREMENT, batch TEXT UNIQUE NOT NULL,"
        " sealed_at REAL NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, value BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS settled (sequence INTEGER PRIMARY KEY, events INTEGER NOT NULL,"
        " units INTEGER NOT NULL, bits BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS dead (id INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT UNIQUE NOT NULL,"
        " key TEXT NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, readable INTEGER NOT NULL,"
        " details TEXT NOT NULL, value BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, events INTEGER NOT NULL, high INTEGER NOT NULL,"
        " low INTEGER NOT NULL)"
    ),
    "INSERT OR IGNORE INTO ledger VALUES ('recorded', 0, 0, 0), ('delivered', 0, 0, 0), ('dropped', 0, 0, 0)",
    f"PRAGMA application_id={_APPLICATION}",
    f"PRAGMA user_version={FORMAT}",
)

# Each recorder numbers its batches; one with a number that was stored before is the same one again, even if it has
# been delivered and is gone since.
_ADD_BATCH = (
    "INSERT OR IGNORE INTO sealed (batch, sealed_at, events, units, value) SELECT ?, ?, ?, ?, ?"
    " WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = ? AND value >= ?)"
)
# What the last thousand recorders stored is remembered: a process that repeats a batch does so within seconds.
_FORGET_RECORDERS = "DELETE FROM meta WHERE key GLOB 'stored *' AND rowid < (SELECT max(rowid) FROM meta) - 1000"
_COUNT = (
    f"UPDATE ledger SET events = events + ?, high = high + (low + ?) / {_BASE}, low = (low + ?) % {_BASE}"
    " WHERE name = ?"
)
_COUNT_IF_ADDED = _COUNT + " AND changes() = 1"  # the batch before may have been stored already
_OLDEST = (
    "SELECT sealed.sequence, sealed.events, sealed.units, sealed.value, settled.bits, settled.events,"
    " settled.units FROM sealed"
    " LEFT JOIN settled ON settled.sequence = sealed.sequence"
    " WHERE sealed.sequence > ? ORDER BY sealed.sequence LIMIT ?"
)
_BURY = "INSERT OR IGNORE INTO dead (place, key, events, units, readable, details, value) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SUMS = f"count(*), total(events), coalesce(sum(units >> {_HALF}), 0), coalesce(sum(units & {2**_HALF - 1}), 0)"

# Above this many bytes an empty spool file is rebuilt small. Rebuilding an empty one takes about 10 ms.
_WORTH_SHRINKING = 1024 * 1024

_LONGEST_SET_UP = 5.0  # seconds to wait for another process that is just making the file, or has locked it
_SIZE_CHECK_EVERY = 0.1  # seconds; at 100 MB/s the limit is passed by 10 MB at the most


class _Progress(NamedTuple):
    """How far a batch is settled: `bits` has a 1 for each of its `posts` that is not pending any more."""

    posts: int
    events: int
    units: int
    bits: int


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
        _spool_file.ensure(path, make_folder=make_folder)
        _make_ready(path)
        self._identity = _spool_file.identity(path)
        self._connection = Connection(path, sync)
        self._lock = FileLock(path + ".lock")
        # How far the batches are settled that were handed out and are not done; only the holder of the claim has any.
        self._progress: Dict[int, _Progress] = {}
        self._unsure: Optional[Tuple[str, Dict[int, _Progress]]] = None  # the last settlement, if it may be stored
        self._next_size_check = 0.0
        self._connection.rows("SELECT 1")

    # -- destination ---------------------------------------------------------------------------------------------

    def bind(self, destination: str) -> None:
        """Remembers for which base URL these events are, as a hash; refuses to mix two.

        Raises:
            SpoolError: events for another base URL are still waiting.
        """
        fingerprint = hashlib.sha256(destination.encode("utf-8")).hexdigest()
        with self._connection.transaction() as transaction:
            known = transaction.rows("SELECT value FROM meta WHERE key = 'destination'")
            waiting = transaction.rows("SELECT 1 FROM sealed UNION ALL SELECT 1 FROM dead LIMIT 1")
            if known and known[0][0] != fingerprint and waiting:
                raise SpoolError(
                    f"{self.path}: holds usage for another base_url; deliver it there first, or use another path"
                )
            transaction.run("REPLACE INTO meta VALUES ('destination', ?)", (fingerprint,))

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self._check_file()
        self._check_room()
        with self._connection.transaction() as transaction:
            for batch in batches:
                transaction.run(_ADD_BATCH, _batch_row(batch))
                transaction.run(_COUNT_IF_ADDED, (batch.events, batch.units, batch.units, "recorded"))
            for recorder, number in _last_numbers(batches).items():
                transaction.run("REPLACE INTO meta VALUES (?, ?)", (f"stored {recorder}", number))
            transaction.run(_FORGET_RECORDERS)
            if dropped.events:
                _count(transaction, "recorded", dropped)
                _count(transaction, "dropped", dropped)

    def settle(self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial]) -> None:
        if not self._lock.held:
            raise SpoolError(f"{self.path}: only the process that holds the claim settles")
        if self._unsure is not None and self._turned_out_stored(*self._unsure):
            acknowledged = [one for one in acknowledged if self._is_pending(one.place)]
            buried = [one for one in buried if self._is_pending(one.place)]
        self._unsure = None
        posts = [done.post for done in acknowledged]
        delivered = Tally(sum(post.events for post in posts), sum(post.amount for post in posts))
        settlement = uuid.uuid4().hex
        progress = self._after([*acknowledged, *buried])
        try:
            with self._connection.transaction() as transaction:
                for sequence, state in progress.items():
                    _write_progress(transaction, sequence, state)
                for burial in buried:
                    transaction.run(_BURY, _dead_row(burial))
                _count(transaction, "delivered", delivered)
                transaction.run("REPLACE INTO meta VALUES ('settlement', ?)", (settlement,))
        except SpoolError:
            # A sync that fails reports an error for what may be stored all the same. Counted again it would put the
            # ledger wrong, so the next call looks first.
            self._unsure = settlement, progress
            raise
        self._advance(progress)

    def requeue(self, ids: Sequence[int]) -> int:
        count = 0
        with self._connection.transaction() as transaction:
            for start in range(0, len(ids), _batch.MOST_EVENTS):
                some = list(ids[start : start + _batch.MOST_EVENTS])
                marks = ",".join("?" * len(some))
                rows = transaction.rows(f"SELECT id, value FROM dead WHERE readable AND id IN ({marks})", some)
                posts = {number: post for number, post in ((row[0], _post_or_none(row[1])) for row in rows) if post}
                if not posts:
                    continue
                batch = _batch.encode_posts(f"requeue-{uuid.uuid4().hex}/0", list(posts.values()))
                transaction.run(_ADD_BATCH, _batch_row(batch))
                transaction.run(f"DELETE FROM dead WHERE id IN ({','.join('?' * len(posts))})", list(posts))
                count += len(posts)
        return count

    def is_entered(self) -> bool:
        return self._connection.is_entered

    def sync(self) -> None:
        self._connection.sync()

    # -- reading -------------------------------------------------------------------------------------------------

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        batches = []
        self._check_file()
        for sequence, events, units, value, bits, done_events, done_units in self._connection.rows(
            _OLDEST, (after, limit)
        ):
            try:
                posts = _batch.decode(value)
            except CorruptBatchError as error:
                self._quarantine(sequence, events - (done_events or 0), units - (done_units or 0), value, str(error))
                continue
            batches.append(self._hand_out(sequence, posts, int.from_bytes(bits or b"", "little")))
        return batches

    def last_sequence(self) -> int:
        rows = self._connection.rows("SELECT seq FROM sqlite_sequence WHERE name = 'sealed'")
        return int(rows[0][0]) if rows else 0

    def first_sequence(self) -> Optional[int]:
        first = self._connection.rows("SELECT min(sequence) FROM sealed")[0][0]
        return None if first is None else int(first)

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        sql = "SELECT id, key, events, units, readable, details, value FROM dead WHERE id > ? ORDER BY id LIMIT ?"
        return [_dead_letter(*row) for row in self._connection.rows(sql, (after, limit))]

    def counts(self) -> Counts:
        with self._connection.transaction("DEFERRED") as transaction:  # one moment for all of them
            ledger = {
                name: Tally(events, high * _BASE + low)
                for name, events, high, low in transaction.rows("SELECT * FROM ledger LIMIT 10")
            }
            sealed = _tally(transaction.rows(f"SELECT {_SUMS} FROM sealed")[0])
            settled = _tally(transaction.rows(f"SELECT {_SUMS} FROM settled")[0])
            dead = _tally(transaction.rows(f"SELECT {_SUMS} FROM dead")[0])
            oldest = transaction.rows("SELECT sealed_at FROM sealed ORDER BY sequence LIMIT 1")
        return Counts(
            recorded=ledger["recorded"],
            delivered=ledger["delivered"],
            pending=Tally(sealed.events - settled.events, sealed.units - settled.units),
            dead=dead,
            dropped=ledger["dropped"],
            oldest_pending_at=float(oldest[0][0]) if oldest else None,
            size=self._size(),
        )

    # -- who delivers, and housekeeping --------------------------------------------------------------------------

    def claim(self) -> bool:
        if self._lock.held:
            return True
        self._progress.clear()  # whoever delivered in between has settled some of it
        try:
            return self._lock.acquire()
        except OSError as error:
            raise SpoolError(f"{self.path}.lock: {error.strerror}") from error

    def release(self) -> None:
        self._lock.release()

    def tidy(self) -> None:
        self._connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        if self.first_sequence() is None and os.path.getsize(self.path) > _WORTH_SHRINKING:
            self._connection.rows("VACUUM")
            self._connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.release()
        self._connection.close()

    def _check_file(self) -> None:
        """SQLite goes on writing into a file that was deleted or renamed, where nobody would ever find it."""
        try:
            same = _spool_file.identity(self.path) == self._identity
        except OSError:
            same = False
        if not same:
            raise SpoolError(f"{self.path}: was deleted or replaced while it is in use; restart with the right file")

    def _check_room(self) -> None:
        """Looks at the size now and then only: it costs as much as half a commit."""
        if time.monotonic() >= self._next_size_check:
            if self._size() >= self._max_bytes:
                raise SpoolError(f"{self.path}: has reached max_disk_bytes; events wait in memory until there is room")
            self._next_size_check = time.monotonic() + _SIZE_CHECK_EVERY

    def _size(self) -> int:
        sql = (
            "SELECT (page_count - freelist_count) * page_size"
            " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
        )
        return int(self._connection.rows(sql)[0][0])

    def _hand_out(self, sequence: int, posts: List[Post], bits: int) -> SealedBatch:
        done = [post for position, post in enumerate(posts) if bits >> position & 1]
        self._progress[sequence] = _Progress(
            len(posts), sum(post.events for post in done), sum(post.amount for post in done), bits
        )
        left = [(Place(sequence, at), post) for at, post in enumerate(posts) if not bits >> at & 1]
        return SealedBatch(sequence, left)

    def _turned_out_stored(self, settlement: str, progress: Dict[int, _Progress]) -> bool:
        known = self._connection.rows("SELECT value FROM meta WHERE key = 'settlement'")
        if known != [(settlement,)]:
            return False
        self._advance(progress)
        return True

    def _advance(self, progress: Dict[int, _Progress]) -> None:
        for sequence, state in progress.items():
            if _is_done(state):
                self._progress.pop(sequence, None)
            else:
                self._progress[sequence] = state

    def _is_pending(self, place: Place) -> bool:
        state = self._progress.get(place.sequence)
        return state is not None and not state.bits >> place.position & 1

    def _after(self, settled: Iterable[Any]) -> Dict[int, _Progress]:
        """The progress of every batch concerned once these POSTs are settled."""
        changed: Dict[int, _Progress] = {}
        for place, post, *_ in settled:
            state = changed.get(place.sequence) or self._progress[place.sequence]
            bit = 1 << place.position
            if state.bits & bit:
                raise AssertionError(f"settled twice: {place}")  # a fault of the flusher: it may not be counted
            changed[place.sequence] = state._replace(
                events=state.events + post.events, units=state.units + post.amount, bits=state.bits | bit
            )
        return changed

    def _quarantine(self, sequence: int, events: int, units: int, value: Any, reason: str) -> None:
        """Sets a damaged batch aside as it is: it stays for people to look at, and the others go on."""
        raw = value if isinstance(value, bytes) else repr(value).encode()
        log.error("a batch of %d events in %s is damaged (%s): set aside as a dead letter", events, self.path, reason)
        with self._connection.transaction() as transaction:
            details = json.dumps({"reason": f"damaged in the spool: {reason}", "died_at": time.time()})
            transaction.run(_BURY, (str(sequence), f"damaged batch {sequence}", events, units, 0, details, raw))
            transaction.run("DELETE FROM sealed WHERE sequence = ?", (sequence,))
            transaction.run("DELETE FROM settled WHERE sequence = ?", (sequence,))


def _make_ready(path: str) -> None:
    """Makes the tables, unless they are there. Of several processes SQLite lets one do it; the others wait."""
    give_up, pause = time.monotonic() + _LONGEST_SET_UP, threading.Event()  # the event is never set: only waited on
    while True:
        try:
            if not _is_prepared(path):
                prepare(path, _SCHEMA)
            return
        except DatabaseError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up:
                message = f"{path}: cannot be used as a spool ({error}): move it away or choose another"
                raise SpoolError(message) from error
        pause.wait(0.02)


def _is_prepared(path: str) -> bool:
    """Whether the tables are there. Refuses a database of another program, and one of a later format."""
    connection = plain(path)
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        connection.close()
    if tables and application != _APPLICATION:
        raise SpoolError(f"{path}: is the database of another program; choose another path")
    if version > FORMAT:
        raise SpoolError(f"{path}: was written by a later version of x402tools (format {version}); upgrade this one")
    return bool(tables)


def _batch_row(batch: EncodedBatch) -> Tuple[Any, ...]:
    recorder, _, number = batch.id.rpartition("/")
    return batch.id, time.time(), batch.events, batch.units, batch.value, f"stored {recorder}", int(number or 0)


def _last_numbers(batches: Sequence[EncodedBatch]) -> Dict[str, int]:
    split = (batch.id.rpartition("/") for batch in batches)
    return {recorder: int(number) for recorder, _, number in split}  # ascending, so the last one stays


def _post_or_none(value: Any) -> Optional[Post]:
    try:
        return _batch.decode(value)[0]
    except CorruptBatchError:
        return None


def _count(transaction: Transaction, name: str, tally: Tally) -> None:
    low = tally.units % _BASE
    transaction.run(_COUNT, (tally.events, low, low, name))
    if tally.units >= _BASE:
        transaction.run("UPDATE ledger SET high = high + ? WHERE name = ?", (tally.units // _BASE, name))


def _tally(row: Row) -> Tally:
    _, events, high, low = row
    return Tally(int(events), (int(high) << _HALF) + int(low))


def _is_done(state: _Progress) -> bool:
    return state.bits == (1 << state.posts) - 1


def _write_progress(transaction: Transaction, sequence: int, state: _Progress) -> None:
    if _is_done(state):
        transaction.run("DELETE FROM sealed WHERE sequence = ?", (sequence,))
        transaction.run("DELETE FROM settled WHERE sequence = ?", (sequence,))
    else:
        bits = state.bits.to_bytes((state.posts + 7) // 8, "little")
        transaction.run("REPLACE INTO settled VALUES (?, ?, ?, ?)", (sequence, state.events, state.units, bits))


def _dead_row(burial: Burial) -> Tuple[Any, ...]:
    post = burial.post
    details = {
        "reason": burial.reason,
        "status_code": burial.status_code,
        "attempts": burial.attempts,
        "died_at": time.time(),
    }
    value = _batch.encode_posts("", [post]).value
    place = f"{burial.place.sequence}/{burial.place.position}"
    return place, post.key, post.events, post.amount, 1, json.dumps(details), value


def _dead_letter(
    number: int, key: str, events: int, units: int, readable: int, details: str, value: bytes
) -> DeadLetter:
    about = json.loads(details)
    common = {
        "id": number,
        "key": key,
        "amount": units,
        "events": events,
        "reason": about["reason"],
        "status_code": about.get("status_code"),
        "attempts": about.get("attempts", 0),
        "died_at": about["died_at"],
    }
    post = _post_or_none(value) if readable else None
    if post is None:
        return DeadLetter(envelope_id="", metadata=None, recorded_at=0.0, readable=False, **common)
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    return DeadLetter(envelope_id=post.envelope_id, metadata=metadata, recorded_at=post.recorded_at, **common)
