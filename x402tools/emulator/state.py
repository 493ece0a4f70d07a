"""The emulator's books: envelopes, usage, keys, the idempotency memory and the ledger, kept in SQLite.

Every change is committed before the answer that tells of it is sent, so a SIGKILL takes nothing that was answered.
Sums that every request needs are kept beside the database, in memory, and are counted again from it when the books are
opened. One thread uses the books: the one that runs the event loop.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from x402tools.emulator.choices import Choices
from x402tools.emulator.periods import period_end, period_start
from x402tools.emulator.refusal import Refusal

SCHEMA = """
CREATE TABLE IF NOT EXISTS envelopes (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, usage_limit INTEGER NOT NULL, period TEXT NOT NULL,
    reset_day INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS usage (
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL, envelope_id TEXT NOT NULL, amount INTEGER NOT NULL,
    at INTEGER NOT NULL, metadata TEXT, idempotency_key TEXT);
CREATE INDEX IF NOT EXISTS usage_by_envelope ON usage (envelope_id);
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created_at INTEGER NOT NULL, last_used INTEGER);
CREATE TABLE IF NOT EXISTS answers (
    idempotency_key TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
TABLES = ("envelopes", "usage", "api_keys", "answers", "counters")

# WAL with NORMAL: a commit is in the kernel's hands before we answer, which a SIGKILL cannot undo; only a power cut
# could. EXCLUSIVE: a second emulator on the same file would not know of our sums, so it is kept out.
SETTINGS = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"

ADD_USAGE = "INSERT INTO usage (id, envelope_id, amount, at, metadata, idempotency_key) VALUES (?, ?, ?, ?, ?, ?)"
ADD_ANSWER = "INSERT INTO answers (idempotency_key, fingerprint, status, body) VALUES (?, ?, ?, ?)"
FIND_ANSWER = "SELECT fingerprint, status, body FROM answers WHERE idempotency_key = ?"
# Two halves, because SQLite's sum() refuses a total above 2**63, which a thousand greatest amounts exceed.
HALVES = "count(*), coalesce(sum(amount >> 32), 0), coalesce(sum(amount & 4294967295), 0)"
LAST_SEQUENCE = "SELECT coalesce(max(sequence), 0) FROM usage"
LATER_USAGE = "SELECT * FROM usage WHERE sequence > ? ORDER BY sequence LIMIT ?"

PAGE_ROWS = 1000  # Rows read at a time when listing usage: enough to be quick, few enough to be nothing in memory.
LAST_USED_WRITE_SECONDS = 1.0  # lastUsed is exact in memory; writing it with every request would double the writes.
BUSY_SECONDS = 2.0  # Long enough for a killed predecessor's lock on the file to be gone.
ORGANIZATION_ID = "org_emulator"


class Envelope(NamedTuple):
    """An envelope. Times are milliseconds since 1970."""

    id: str
    name: str
    limit: int
    period: str
    reset_day: Optional[int]
    created_at: int
    updated_at: int


class ApiKey(NamedTuple):
    """A key that opens the API. Times are milliseconds since 1970."""

    id: str
    key: str
    name: str
    created_at: int
    last_used: Optional[int]


class UsageRow(NamedTuple):
    """A booked record, as it stands in the database; ``sequence`` is the order of booking."""

    sequence: int
    id: str
    envelope_id: str
    amount: int
    at: int
    metadata: Optional[str]
    idempotency_key: Optional[str]


class Answer(NamedTuple):
    """What a request with an idempotency key was answered the first time."""

    fingerprint: bytes
    status: int
    body: bytes


class Tally(NamedTuple):
    """A number of booked records and the sum of their amounts."""

    events: int
    units: int


class BooksUnavailable(Exception):
    """The database file cannot be opened; the message says why and what to do."""


class Books:
    """All that the emulator knows. Open until :meth:`close`."""

    def __init__(
        self,
        path: Optional[str] = None,
        *,
        choices: Optional[Choices] = None,
        api_key: str = "sk_emulator",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the books, and make them if they are not there.

        Args:
            path: the SQLite file; None keeps the books in memory.
            choices: what to do where the description is silent.
            api_key: a key that works from the start, whatever was deleted before.
            clock: the time in seconds since 1970.

        Raises:
            BooksUnavailable: the file cannot be opened, or another emulator has it open.
        """
        self.choices = choices or Choices()
        self.clock_offset = 0.0
        """Seconds by which the emulator's time is ahead of the clock; a test moves it to see a period end."""
        self._clock = clock
        self._default_key = api_key
        self._path = path
        try:
            self._connection = _connect(path)
            self._load()
        except sqlite3.Error as error:
            raise BooksUnavailable(
                f"cannot open {path!r}: {error}. Is it a database of the emulator, and no other emulator using it?"
            ) from error

    def __repr__(self) -> str:
        return f"<Books {self._path or 'in memory'} envelopes={len(self._envelopes)} events={self.total().events}>"

    def close(self) -> None:
        """Close the database. Idempotent; the books can be opened again from their file."""
        self._connection.close()

    def now(self) -> int:
        """The emulator's time, in milliseconds since 1970."""
        return int((self._clock() + self.clock_offset) * 1000)

    # --- transactions ---

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Do everything inside or nothing of it; it is committed when the block is left."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except Refusal:
            # Refusals come before the first write, so the sums in memory are right as they are.
            self._connection.execute("ROLLBACK")
            raise
        except BaseException:
            # A full disk, for one. Count again: the sums in memory may already have what was not booked.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._load()
            raise

    def reset(self) -> None:
        """Empty the books. Only the key given at the start is there afterwards, and the clock is right again."""
        with self.transaction():
            for table in TABLES:
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - the names are the constants above
        self.clock_offset = 0.0
        self._load()

    def _load(self) -> None:
        query = self._connection.execute
        self._envelopes = {row[0]: Envelope(*row) for row in query("SELECT * FROM envelopes ORDER BY rowid")}
        self._keys = {row[1]: ApiKey(*row) for row in query("SELECT * FROM api_keys ORDER BY rowid")}
        self._tallies = {
            row[0]: _tally(*row[1:])
            for row in query(f"SELECT envelope_id, {HALVES} FROM usage GROUP BY envelope_id")  # noqa: S608 - constants
        }
        self._counters: Dict[str, int] = dict(query("SELECT name, value FROM counters"))
        self._used: Dict[str, Tuple[int, int]] = {}
        self._last_used_written: Dict[str, float] = {}
        if self._default_key not in self._keys:
            self.add_key("Default key", self._default_key)

    # --- keys ---

    def api_keys(self) -> List[ApiKey]:
        """Every key, the oldest first."""
        return list(self._keys.values())

    def opens(self, key: str) -> bool:
        """Whether the key is a known one, which counts as a use of it."""
        known = self._keys.get(key)
        if known is None:
            return False
        now = self.now()
        self._keys[key] = known._replace(last_used=now)
        if time.monotonic() - self._last_used_written.get(key, -1e9) >= LAST_USED_WRITE_SECONDS:
            self._connection.execute("UPDATE api_keys SET last_used = ? WHERE id = ?", (now, known.id))
            self._last_used_written[key] = time.monotonic()
        return True

    def add_key(self, name: str, key: Optional[str] = None) -> ApiKey:
        """Make a key, of which the text is drawn unless given, and return it; it works at once."""
        made = ApiKey(_new_id("key"), key or "sk_" + secrets.token_hex(24), name, self.now(), None)
        self._connection.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?)", made)
        self._keys[made.key] = made
        return made

    def delete_key(self, key_id: str) -> bool:
        """Delete the key, which stops working at once; False when there is none."""
        for key in self._keys.values():
            if key.id == key_id:
                self._connection.execute("DELETE FROM api_keys WHERE id = ?", (key_id,))
                del self._keys[key.key]
                return True
        return False

    # --- envelopes ---

    def envelopes(self) -> List[Envelope]:
        """Every envelope, the oldest first."""
        return list(self._envelopes.values())

    def envelope(self, envelope_id: str) -> Optional[Envelope]:
        """The envelope, or None."""
        return self._envelopes.get(envelope_id)

    def add_envelope(
        self, name: str, limit: int, period: str, reset_day: Optional[int], *, envelope_id: Optional[str] = None
    ) -> Envelope:
        """Make an envelope, under an id of its own unless one is given, and return it."""
        now = self.now()
        made = Envelope(envelope_id or _new_id("env"), name, limit, period, reset_day, now, now)
        self._connection.execute("INSERT INTO envelopes VALUES (?, ?, ?, ?, ?, ?, ?)", made)
        self._envelopes[made.id] = made
        return made

    def change_envelope(self, envelope: Envelope, changes: Dict[str, Any]) -> Envelope:
        """Give the envelope these values in place of its own, and return it as it is now."""
        changed = envelope._replace(updated_at=self.now(), **changes)
        self._connection.execute(
            "UPDATE envelopes SET name = ?, usage_limit = ?, period = ?, reset_day = ?, updated_at = ? WHERE id = ?",
            (changed.name, changed.limit, changed.period, changed.reset_day, changed.updated_at, changed.id),
        )
        self._envelopes[changed.id] = changed
        self._used.pop(changed.id, None)  # Another period or reset day: what is used in it is counted again.
        return changed

    def delete_envelope(self, envelope_id: str) -> bool:
        """Delete the envelope; its usage stays booked. False when there is none."""
        if envelope_id not in self._envelopes:
            return False
        self._connection.execute("DELETE FROM envelopes WHERE id = ?", (envelope_id,))
        del self._envelopes[envelope_id]
        self._used.pop(envelope_id, None)
        return True

    # --- usage ---

    def add_usage(self, envelope: Envelope, amount: int, metadata: Optional[str], key: Optional[str]) -> UsageRow:
        """Book a record and return it. Call it inside :meth:`transaction`.

        Raises:
            Refusal: it does not fit into what is left of the envelope's limit.
        """
        now = self.now()
        start, used = self.used(envelope)
        if self.choices.enforce_limits and used + amount > envelope.limit:
            message = f"Usage limit exceeded for envelope {envelope.id}: {used} of {envelope.limit} used"
            raise Refusal(self.choices.limit_exceeded_status, message)
        values = (_new_id("usage"), envelope.id, amount, now, metadata, key)
        sequence = self._connection.execute(ADD_USAGE, values).lastrowid
        tally = self._tallies.get(envelope.id, _EMPTY)
        self._tallies[envelope.id] = Tally(tally.events + 1, tally.units + amount)
        self._used[envelope.id] = (start, used + amount)
        return UsageRow(sequence or 0, *values)

    def used(self, envelope: Envelope) -> Tuple[int, int]:
        """When the envelope's current period began, in milliseconds since 1970, and the units used in it."""
        start = _start(envelope.period, envelope.reset_day, self.now() // 1000)
        known = self._used.get(envelope.id)
        if known is None or known[0] != start:
            row = self._connection.execute(
                f"SELECT {HALVES} FROM usage WHERE envelope_id = ? AND at >= ?",  # noqa: S608 - constants
                (envelope.id, start),
            ).fetchone()
            known = self._used[envelope.id] = (start, _tally(*row).units)
        return known

    def resets_at(self, envelope: Envelope) -> int:
        """When the envelope's current period ends and the next begins, in milliseconds since 1970."""
        return _end(envelope.period, envelope.reset_day, self.now() // 1000)

    def usage_pages(self, envelope_id: Optional[str] = None) -> Iterator[List[UsageRow]]:
        """Yield what is listed, a page at a time, in the order that was chosen; later bookings are left out.

        No cursor stays open between two pages, so the books may change while a slow client reads.
        """
        newest = self.last_sequence()
        is_descending = self.choices.newest_usage_first
        conditions = "sequence < ?" if is_descending else "sequence > ? AND sequence <= ?"
        if envelope_id is not None:
            conditions += " AND envelope_id = ?"
        if not self.choices.keep_usage_of_deleted_envelopes:
            conditions += " AND envelope_id IN (SELECT id FROM envelopes)"
        order = "DESC" if is_descending else "ASC"
        query = f"SELECT * FROM usage WHERE {conditions} ORDER BY sequence {order} LIMIT {PAGE_ROWS}"  # noqa: S608 - constants
        position = newest + 1 if is_descending else 0
        while True:
            values = [position] if is_descending else [position, newest]
            rows = self._connection.execute(query, values + ([envelope_id] if envelope_id is not None else []))
            page = [UsageRow(*row) for row in rows]
            if not page:
                return
            yield page
            position = page[-1].sequence

    def last_sequence(self) -> int:
        """The sequence number of the newest record, 0 when there is none."""
        return int(self._connection.execute(LAST_SEQUENCE).fetchone()[0])

    def usage_after(self, sequence: int, limit: int) -> List[UsageRow]:
        """The records booked after that one, in order, at most ``limit``."""
        return [UsageRow(*row) for row in self._connection.execute(LATER_USAGE, (sequence, limit))]

    # --- the ledger ---

    def tallies(self) -> Dict[str, Tally]:
        """What was booked, by envelope, deleted ones included."""
        return dict(self._tallies)

    def total(self) -> Tally:
        """What was booked in all."""
        return _sum(self._tallies.values())

    def listed_total(self) -> Tally:
        """What the API counts: all, or without the usage of deleted envelopes (a choice)."""
        if self.choices.keep_usage_of_deleted_envelopes:
            return self.total()
        return _sum(tally for envelope_id, tally in self._tallies.items() if envelope_id in self._envelopes)

    def counter(self, name: str) -> int:
        """How often :meth:`count` was called with that name since the books were made or reset."""
        return self._counters.get(name, 0)

    def count(self, name: str) -> None:
        """Count one more, durably."""
        value = self.counter(name) + 1
        self._connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))
        self._counters[name] = value

    # --- the idempotency memory ---

    def recall(self, idempotency_key: str) -> Optional[Answer]:
        """What the first request with this key was answered, or None."""
        row = self._connection.execute(FIND_ANSWER, (idempotency_key,)).fetchone()
        return Answer(*row) if row else None

    def remember(self, idempotency_key: str, answer: Answer) -> None:
        """Keep the answer for the next request with this key. Call it in the transaction that booked."""
        self._connection.execute(ADD_ANSWER, (idempotency_key, *answer))


_EMPTY = Tally(0, 0)


def _connect(path: Optional[str]) -> sqlite3.Connection:
    # Autocommit, with transactions begun by hand; and opened in one thread to be used in another.
    connection = sqlite3.connect(
        path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.executescript(SETTINGS + SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _tally(events: int, high: int, low: int) -> Tally:
    return Tally(events, (high << 32) + low)


def _sum(tallies: Any) -> Tally:
    pairs = list(tallies)
    return Tally(sum(pair.events for pair in pairs), sum(pair.units for pair in pairs))


@lru_cache(maxsize=4096)  # The same second and the same envelopes come again with nearly every request.
def _start(period: str, reset_day: Optional[int], second: int) -> int:
    now = datetime.fromtimestamp(second, timezone.utc)
    return int(period_start(period, reset_day, now).timestamp()) * 1000


@lru_cache(maxsize=4096)  # as above
def _end(period: str, reset_day: Optional[int], second: int) -> int:
    now = datetime.fromtimestamp(second, timezone.utc)
    return int(period_end(period, reset_day, now).timestamp()) * 1000
