"""Rows of the spool's tables and what they mean; no connection in here."""

from __future__ import annotations

import json
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from x402tools import _batch
from x402tools._batch import CorruptBatchError, EncodedBatch, Post
from x402tools._connection import Connection, DamagedError
from x402tools._journal_file import PREFIX
from x402tools._store import Burial, DeadLetter, Tally
from x402tools._transaction import Row, Transaction

# Sums of units may pass what SQLite can add (2**63): they are kept as high * 2**26 + low, or high * 2**53 + low.
_HALF = 26
_BASE = 2**53

# How a batch arrives, as one statement that SQLite makes a transaction of its own: beside a CPU-bound thread each
# statement has to win back the interpreter lock three times, for up to 5 ms each, and an event waits for all of them.
# A view and a trigger of the connection, not of the file.
#
# Each recorder numbers its batches; one with a number that was stored before is the same one again, even if it has
# been delivered and is gone since. The number that is remembered never falls: a statement that hung may be done after
# later ones. What every recorder stored last is known of those that stored something within the last 100,000 steps: a
# process that repeats a batch does so within seconds. A step is a row that is written anew, which changes one page of
# the file more than to change it in its place; so that is done only when half of those steps have gone by. The plus
# sign keeps SQLite from looking through all of them for the few old ones. What a recorder with a journal stored last is
# known until that journal is gone.
_ARRIVE_IN = f"""CREATE TEMP TRIGGER arrive_in_{{table}} INSTEAD OF INSERT ON arriving
        WHEN NEW.is_sealed = {{sealed}} BEGIN
        INSERT OR IGNORE INTO {{table}} (batch, {{moment}}, events, units, value)
            SELECT NEW.batch, NEW.stored_at, NEW.events, NEW.units, NEW.value
            WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = NEW.recorder AND value >= NEW.number);
        UPDATE ledger SET events = events + NEW.events, high = high + (low + NEW.units) / {_BASE},
            low = (low + NEW.units) % {_BASE}
            WHERE name = 'recorded' AND changes() = 1;
        UPDATE meta SET value = NEW.number WHERE key = NEW.recorder AND value <= NEW.number
            AND rowid > (SELECT max(rowid) FROM meta) - 50000;
        REPLACE INTO meta SELECT NEW.recorder, NEW.number WHERE changes() = 0
            AND NOT EXISTS (SELECT 1 FROM meta WHERE key = NEW.recorder AND value > NEW.number);
        REPLACE INTO meta SELECT NEW.deposits, NEW.deposit WHERE NEW.deposits IS NOT NULL;
        DELETE FROM meta WHERE +key GLOB 'stored *' AND rowid < (SELECT max(rowid) FROM meta) - 100000;
    END"""
ARRIVING = (
    (
        "CREATE TEMP VIEW arriving"
        " (is_sealed, batch, stored_at, events, units, value, recorder, number, deposits, deposit)"
        " AS SELECT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    ),
    _ARRIVE_IN.format(table="sealed", moment="sealed_at", sealed=1),
    _ARRIVE_IN.format(table="recorded", moment="stored_at", sealed=0),
)
ARRIVE = "INSERT INTO arriving VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Alone, and behind a WITH: sqlite3 would begin a transaction before a statement that begins with INSERT.
ARRIVE_ALONE = "WITH one AS (SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) INSERT INTO arriving SELECT * FROM one"

# A batch that is counted already: of dead letters that are pending again.
_ADD_AGAIN = "INSERT INTO sealed (batch, sealed_at, events, units, value) VALUES (?, ?, ?, ?, ?)"
REMEMBER = "REPLACE INTO meta VALUES (?, ?)"
REMEMBER_AT_LEAST = "REPLACE INTO meta SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = ? AND value >= ?)"
BURY = "INSERT OR IGNORE INTO dead (place, key, events, units, readable, details, value) VALUES (?, ?, ?, ?, ?, ?, ?)"
SUMS = f"count(*), total(events), coalesce(sum(units >> {_HALF}), 0), coalesce(sum(units & {2**_HALF - 1}), 0)"
_FORGET_AFTER = 3600.0  # seconds

_SIZE = (
    "SELECT (page_count - freelist_count) * page_size"
    " FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
)
LEDGER = "SELECT CAST(name AS BLOB), events, high, low FROM ledger LIMIT 10"

# False for a value larger than any that is written; asking for the length of a blob does not read it.
FITS = (
    f"CASE typeof(value) WHEN 'blob' THEN length(value) ELSE length(CAST(value AS BLOB)) END <= {_batch.LARGEST_VALUE}"
)
# As bytes whatever it is: text that is no UTF-8 would kill the connection thread.
VALUE = "CAST(value AS BLOB)"
VALUE_IF_IT_FITS = f"CASE WHEN {FITS} THEN {VALUE} END"

# Numbered parameters (?1) are no choice: Python 3.12 warns of a sequence for them, and sqlitedict passes one.
_COUNT = (
    f"UPDATE ledger SET events = events + ?, high = high + (low + ?) / {_BASE}, low = (low + ?) % {_BASE}"
    " WHERE name = ?"
)


class Progress(NamedTuple):
    """How far a batch is settled: `bits` has a 1 for each of its posts that is not pending any more."""

    posts: List[Post]
    events: int
    units: int
    bits: int

    @property
    def is_done(self) -> bool:
        return self.bits == (1 << len(self.posts)) - 1


def numbered(batch_id: str) -> Tuple[str, int]:
    """The recorder of a batch, and the number it gave to it."""
    recorder, _, number = batch_id.rpartition("/")
    return recorder, int(number or 0)


def stored_key(recorder: str) -> str:
    """Where `meta` has the number of what this recorder stored last."""
    return f"{'journal' if recorder.startswith(PREFIX) else 'stored'} {recorder}"


def forgetting(recorder: str) -> List[Tuple[str, Tuple[Any, ...]]]:
    """Statements that have the number of this recorder with a journal forgotten an hour from now, by others."""
    now = time.time()
    ended = "key GLOB 'ended *' AND value < ?"
    numbers = f"SELECT 'journal ' || substr(key, 7) FROM meta WHERE {ended}"
    return [
        (REMEMBER, (f"ended {recorder}", now)),
        (f"DELETE FROM meta WHERE key IN ({numbers})", (now - _FORGET_AFTER,)),
        (f"DELETE FROM meta WHERE {ended}", (now - _FORGET_AFTER,)),
    ]


def arriving(batch: EncodedBatch, deposits: Optional[str] = None, deposit: int = 0) -> Tuple[Any, ...]:
    """The parameters of ARRIVE.

    Args:
        deposits, deposit: who makes the deposit, as a recorder, and its number.
    """
    recorder, number = numbered(batch.id)
    row = (int(batch.is_sealed), *_sealed_row(batch), stored_key(recorder), number)
    return (*row, None if deposits is None else stored_key(deposits), deposit)


def add_again(transaction: Transaction, batch: EncodedBatch) -> None:
    """Inserts a batch whose events are counted as recorded already."""
    transaction.run(_ADD_AGAIN, _sealed_row(batch))


def _sealed_row(batch: EncodedBatch) -> Tuple[Any, ...]:
    return batch.id, time.time(), batch.events, batch.units, batch.value


def count(transaction: Transaction, name: str, tally: Tally) -> None:
    """Adds to a counter of the ledger."""
    if not tally.events:
        return
    low = tally.units % _BASE
    transaction.run(_COUNT, (tally.events, low, low, name))
    if tally.units >= _BASE:
        transaction.run("UPDATE ledger SET high = high + ? WHERE name = ?", (tally.units // _BASE, name))


def size(source: Union[Connection, Transaction]) -> int:
    """Bytes in use."""
    return int(source.rows(_SIZE)[0][0])


def tally(row: Row) -> Tally:
    """A row of SUMS."""
    _, events, high, low = row
    return Tally(int(events), (int(high) << _HALF) + int(low))


def ledger(rows: List[Row]) -> Dict[str, Tally]:
    """The rows of LEDGER.

    Raises:
        DamagedError: they are not what was written.
    """
    try:
        counters = {bytes(name).decode(): Tally(int(events), high * _BASE + low) for name, events, high, low in rows}
        return {name: counters[name] for name in ("recorded", "delivered", "dropped")}
    except (KeyError, TypeError, ValueError):
        raise DamagedError("the ledger of the spool is malformed") from None


def progress(posts: List[Post], bits: Any, events: Any, units: Any) -> Progress:
    """How far a batch is settled, by its row of `settled`.

    A row that does not add up is damaged and not believed: what it says is settled is sent again, under its old key.
    """
    known = int.from_bytes(bits, "little") if isinstance(bits, bytes) else 0
    done = [post for position, post in enumerate(posts) if known >> position & 1]
    sums = sum(post.events for post in done), sum(post.amount for post in done)
    if known >> len(posts) or (known and sums != (events, units)):
        known, sums = 0, (0, 0)
    return Progress(posts, *sums, known)


def write_progress(transaction: Transaction, sequence: int, state: Progress) -> None:
    if state.is_done:
        forget_batch(transaction, sequence)
    else:
        bits = state.bits.to_bytes((len(state.posts) + 7) // 8, "little")
        transaction.run("REPLACE INTO settled VALUES (?, ?, ?, ?)", (sequence, state.events, state.units, bits))


def forget_batch(transaction: Transaction, sequence: int) -> None:
    transaction.run("DELETE FROM sealed WHERE sequence = ?", (sequence,))
    transaction.run("DELETE FROM settled WHERE sequence = ?", (sequence,))


def dead_row(burial: Burial, place: str) -> Tuple[Any, ...]:
    """The parameters of BURY for a POST; `place` makes burying it twice impossible."""
    post = burial.post
    details = {
        "reason": burial.reason,
        "status_code": burial.status_code,
        "attempts": burial.attempts,
        "died_at": time.time(),
    }
    value = _batch.encode_posts("", [post]).value
    return place, post.key, post.events, post.amount, 1, json.dumps(details), value


def dead_letter(
    number: int, key: bytes, events: int, units: int, readable: int, details: bytes, value: Optional[bytes]
) -> DeadLetter:
    """A row of `dead`; damage in it makes the letter unreadable, never an error."""
    about = _details(details)
    common = {
        "id": number,
        "key": key.decode("utf-8", "backslashreplace"),
        "amount": units,
        "events": events,
        "reason": str(about.get("reason")),
        "status_code": about.get("status_code"),
        "attempts": about.get("attempts", 0),
        "died_at": about.get("died_at", 0.0),
    }
    post = first_post(value) if readable and value is not None else None
    if post is None:
        return DeadLetter(envelope_id="", metadata=None, recorded_at=0.0, readable=False, **common)
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    return DeadLetter(envelope_id=post.envelope_id, metadata=metadata, recorded_at=post.recorded_at, **common)


def are_counts(events: Any, units: Any) -> bool:
    """Whether these can be the counts of a batch: a damaged row may hold anything."""
    return isinstance(events, int) and isinstance(units, int) and events > 0 and units >= 0


def _details(raw: bytes) -> Dict[str, Any]:
    try:
        details = json.loads(raw)
    except ValueError:
        details = None
    return details if isinstance(details, dict) else {"reason": "damaged in the spool: its reason cannot be read"}


def first_post(value: bytes) -> Optional[Post]:
    """The POST of a dead letter, or None when it is damaged."""
    try:
        return _batch.decode(value)[0]
    except (CorruptBatchError, IndexError):
        return None
