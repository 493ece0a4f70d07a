"""Carries what can be read of a spool file that was lost or damaged over into the one that takes its place.

Rows keep their sequence numbers where those are free, so that a POST under way can still be settled by its place. The
new file remembers, by device and inode of the old one, how far it was carried over: when several processes had the
old file open, each carries over what the ones before it did not find, and nothing twice.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from x402tools import _spool_held, _spool_rows
from x402tools._connection import Connection, DatabaseError
from x402tools._spool_recorded import WAITING
from x402tools._spool_rows import FITS, VALUE, are_counts
from x402tools._store import Tally
from x402tools._transaction import Row, Transaction
from x402tools.errors import SpoolError

Reader = Callable[[str, Sequence[Any]], List[Row]]  # statement and parameters to rows

_Unreadable = (SpoolError, DatabaseError)

_SEALED = (
    f"SELECT sequence, CAST(batch AS BLOB), sealed_at, events, units, {VALUE} FROM sealed"
    f" WHERE {FITS} AND sequence %s ORDER BY sequence LIMIT ?"
)
_RECORDED = (
    f"SELECT sequence, CAST(batch AS BLOB), stored_at, events, units, {VALUE} {WAITING} AND {FITS} AND sequence %s"
    " ORDER BY sequence LIMIT ?"
)
_ADD_RECORDED = "INSERT OR IGNORE INTO recorded (batch, stored_at, events, units, value) VALUES (?, ?, ?, ?, ?)"
_DEAD = (
    "SELECT id, CAST(place AS BLOB), CAST(key AS BLOB), events, units, readable, CAST(details AS BLOB),"
    f" {VALUE} FROM dead WHERE {FITS} AND id %s ORDER BY id LIMIT ?"
)
_HELD = (
    f"SELECT id, CAST(place AS BLOB), held_at, events, units, CAST(reason AS BLOB), {VALUE} FROM held"
    f" WHERE {FITS} AND id %s ORDER BY id LIMIT ?"
)
_NOTES = "SELECT position, since FROM sending WHERE sequence = ? LIMIT 1000"
_SETTLED = "SELECT events, units, bits FROM settled WHERE sequence = ? LIMIT 1"
_ADD = "INSERT OR IGNORE INTO sealed (sequence, batch, sealed_at, events, units, value) VALUES (?, ?, ?, ?, ?, ?)"

_NUMBERS = (
    "SELECT key, value FROM meta WHERE key GLOB 'stored *' OR key GLOB 'journal *' OR key GLOB 'ended *'"
    " ORDER BY rowid DESC LIMIT 10000"
)

_ROWS_AT_ONCE = 20
_MOST_PROBES = 10_000  # rows looked for one by one behind a damaged page
_PROBING_SECONDS = 0.25  # for all damaged pages of a table together; a start may take a second in all
_HOPELESS = ("not a database", "no such table")  # no row will be found by asking for another


def carry_over(read: Reader, target: Connection, origin: str) -> Tally:
    """Copies pending batches, dead letters and what is held; how many events of them there were.

    Args:
        read: runs a statement on the old file; may fail at any row.
        target: the new file.
        origin: names the old file for as long as any process has it open.
    """
    marks = _marks(target, origin)
    with target.transaction() as transaction:
        if not marks:
            _carry_totals(read, transaction)
            _remember(transaction, origin, marks)
        _carry_numbers(read, transaction)
    carried = Tally()
    tables: Dict[str, Tuple[str, Callable[[Transaction, Row], Tally]]] = {
        "sealed": (_SEALED, partial(_write_batch, read)),
        "recorded": (_RECORDED, _write_recorded),
        "dead": (_DEAD, partial(_write_dead, origin)),
        "held": (_HELD, partial(_write_held, origin)),
    }
    for table, (sql, write) in tables.items():
        for rows in _chunks(read, sql, marks.get(table, 0)):
            with target.transaction() as transaction:
                for row in rows:
                    carried = carried.plus(write(transaction, row))
                marks[table] = rows[-1][0]
                _remember(transaction, origin, marks)
    return carried


def _marks(target: Connection, origin: str) -> Dict[str, int]:
    known = target.rows("SELECT value FROM meta WHERE key = ?", (f"moved {origin}",))
    return dict(json.loads(known[0][0])) if known else {}


def _remember(transaction: Transaction, origin: str, marks: Dict[str, int]) -> None:
    transaction.run("REPLACE INTO meta VALUES (?, ?)", (f"moved {origin}", json.dumps({"sealed": 0, **marks})))


def _carry_totals(read: Reader, transaction: Transaction) -> None:
    """The counters go on where they were; recorded is counted anew, from what is there."""
    try:
        counters = _spool_rows.ledger(read(_spool_rows.LEDGER, ()))
    except _Unreadable:
        return
    for name in ("delivered", "dropped"):
        _spool_rows.count(transaction, name, counters[name])
        _spool_rows.count(transaction, "recorded", counters[name])


def _carry_numbers(read: Reader, transaction: Transaction) -> None:
    """What each recorder stored last, so that what one repeats is known."""
    try:
        stored = read(_NUMBERS, ())
    except _Unreadable:
        return
    for key, number in reversed(stored):  # the newest is the last to be forgotten
        # The file that is there now may have been written to by the same recorder meanwhile.
        transaction.run(_spool_rows.REMEMBER_AT_LEAST, (key, number, key, number))


def _chunks(read: Reader, sql: str, position: int) -> Iterator[List[Row]]:
    """The rows above a position, in order, without those that cannot be read."""
    probing_until = 0.0
    while True:
        try:
            rows = read(sql % "> ?", (position, _ROWS_AT_ONCE))
        except _Unreadable as error:
            if any(sign in str(error) for sign in _HOPELESS):
                return
            probing_until = probing_until or time.monotonic() + _PROBING_SECONDS
            rows = _probe(read, sql, position, probing_until)
        if not rows:
            return
        yield rows
        position = rows[-1][0]


def _probe(read: Reader, sql: str, position: int, until: float) -> List[Row]:
    """The next row that can be read when asked for by its number."""
    for number in range(position + 1, position + _MOST_PROBES):
        if time.monotonic() >= until:
            break
        try:
            rows = read(sql % "= ?", (number, 1))
        except _Unreadable:
            continue
        if rows:
            return rows
    return []


def _write_batch(read: Reader, transaction: Transaction, row: Row) -> Tally:
    sequence, raw_batch, sealed_at, events, units, value = row
    if not are_counts(events, units):
        return Tally()  # stays in the old file
    batch = _text(raw_batch)
    taken = transaction.rows("SELECT batch = ? FROM sealed WHERE sequence = ? OR batch = ?", (batch, sequence, batch))
    if any(same_batch for (same_batch,) in taken):
        return Tally()
    number = None if taken else sequence
    transaction.run(_ADD, (number, batch, sealed_at, events, units, value))
    _carry_notes(read, transaction, sequence, batch)
    try:
        settled = read(_SETTLED, (sequence,))
    except _Unreadable:
        settled = []  # what was settled is sent again, under its old key
    left = Tally(events, units)
    if settled and are_counts(*settled[0][:2]):
        done_events, done_units, bits = settled[0]
        transaction.run(
            "REPLACE INTO settled SELECT sequence, ?, ?, ? FROM sealed WHERE batch = ?",
            (done_events, done_units, bits, batch),
        )
        left = Tally(events - done_events, units - done_units)
    _spool_rows.count(transaction, "recorded", left)
    return left


def _carry_notes(read: Reader, transaction: Transaction, sequence: int, batch: str) -> None:
    """What was noted about the POSTs of a batch before they were sent."""
    try:
        notes = read(_NOTES, (sequence,))
    except _Unreadable:
        return  # lost, or a file of a format without notes
    for position, since in notes:
        if isinstance(position, int) and isinstance(since, (int, float)):
            _spool_held.note_in_batch(transaction, batch, position, since)


def _write_held(origin: str, transaction: Transaction, row: Row) -> Tally:
    _, place, held_at, events, units, reason, value = row
    if not are_counts(events, units) or not isinstance(held_at, (int, float)):
        return Tally()
    columns = (f"{origin} {_text(place)}", held_at, events, units, _text(reason), value)
    transaction.run(_spool_held.HOLD, columns)
    _spool_rows.count(transaction, "recorded", Tally(events, units))
    return Tally(events, units)


def _write_recorded(transaction: Transaction, row: Row) -> Tally:
    _, raw_batch, stored_at, events, units, value = row
    batch = _text(raw_batch)
    is_there = transaction.rows("SELECT 1 FROM recorded WHERE batch = ?", (batch,))
    if is_there or not are_counts(events, units):
        return Tally()
    transaction.run(_ADD_RECORDED, (batch, stored_at, events, units, value))
    _spool_rows.count(transaction, "recorded", Tally(events, units))
    return Tally(events, units)


def _write_dead(origin: str, transaction: Transaction, row: Row) -> Tally:
    _, place, key, events, units, readable, details, value = row
    if not are_counts(events, units):
        return Tally()
    # Two files may both have buried at "7/3": the origin keeps them apart.
    columns = (f"{origin} {_text(place)}", _text(key), events, units, readable, _text(details), value)
    transaction.run(_spool_rows.BURY, columns)
    _spool_rows.count(transaction, "recorded", Tally(events, units))
    return Tally(events, units)


def _text(raw: Any) -> str:
    return bytes(raw or b"").decode("utf-8", "backslashreplace")
