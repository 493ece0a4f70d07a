"""Rows of the spool about POSTs whose outcome is unknown: `sending` has what was noted before it went out, `held` what
is set aside until it is compared with what the service has. No connection in here.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Dict, List, Optional, Sequence, Tuple

from x402tools import _batch
from x402tools._batch import Post
from x402tools._connection import DamagedError
from x402tools._spool_rows import FITS, VALUE, VALUE_IF_IT_FITS, add_again, count, first_post
from x402tools._store import HeldPost, Holding, Place, Tally
from x402tools._transaction import Row, Transaction

TABLES = (
    (
        "CREATE TABLE IF NOT EXISTS sending (sequence INTEGER NOT NULL, position INTEGER NOT NULL, since REAL NOT NULL,"
        " PRIMARY KEY (sequence, position)) WITHOUT ROWID"
    ),
    (
        "CREATE TABLE IF NOT EXISTS held (id INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT UNIQUE NOT NULL,"
        " held_at REAL NOT NULL, events INTEGER NOT NULL, units INTEGER NOT NULL, reason TEXT NOT NULL,"
        " value BLOB NOT NULL)"
    ),
)

# A column for a row of `sealed`: the notes about its POSTs as text, "position since position since ...", or NULL. As
# a part of the statement that reads the batch, so that none is handed out without them.
NOTES = (
    "(SELECT CAST(group_concat(position || ' ' || since, ' ') AS BLOB) FROM sending"
    " WHERE sending.sequence = sealed.sequence)"
)
HOLD = "INSERT OR IGNORE INTO held (place, held_at, events, units, reason, value) VALUES (?, ?, ?, ?, ?, ?)"
HELD = f"SELECT id, held_at, {VALUE_IF_IT_FITS} FROM held WHERE id > ? ORDER BY id LIMIT ?"
ANY_HELD = "SELECT 1 FROM held LIMIT 1"
OLDEST_HELD = "SELECT held_at FROM held ORDER BY id LIMIT 1"

# The one that is there may be of an earlier attempt, and stays.
_NOTE = "INSERT OR IGNORE INTO sending VALUES (?, ?, ?)"
_NOTE_IN_BATCH = "INSERT OR IGNORE INTO sending SELECT sequence, ?, ? FROM sealed WHERE batch = ?"
_FORGET = "DELETE FROM sending WHERE sequence = ? AND position = ?"
_SET_ASIDE = (
    "INSERT OR IGNORE INTO dead (place, key, events, units, readable, details, value)"
    " SELECT 'held ' || id, 'damaged held POST ' || id, events, units, 0, ?, value FROM held WHERE id = ?"
)
FORGET_LEFTOVERS = "DELETE FROM sending WHERE sequence NOT IN (SELECT sequence FROM sealed)"

_ROWS_AT_ONCE = 500


def notes(raw: Optional[bytes]) -> Dict[int, float]:
    """The positions that NOTES names, and since when.

    Raises:
        DamagedError: they are not what was written.
    """
    if raw is None:
        return {}
    words = raw.split()
    try:
        return {int(position): float(since) for position, since in zip(words[::2], words[1::2])}
    except ValueError:
        raise DamagedError("the notes about what is being sent are malformed") from None


def write_notes(transaction: Transaction, begun: Sequence[Place], ended: Sequence[Place]) -> None:
    forget_notes(transaction, ended)
    now = time.time()
    for place in begun:
        transaction.run(_NOTE, (place.sequence, place.position, now))


def note_in_batch(transaction: Transaction, batch_id: str, position: int, since: float) -> None:
    """For a POST of a batch that is stored in this transaction."""
    transaction.run(_NOTE_IN_BATCH, (position, since, batch_id))


def forget_notes(transaction: Transaction, places: Sequence[Place]) -> None:
    for place in places:
        transaction.run(_FORGET, place)


def hold(transaction: Transaction, held: Sequence[Holding], origin: str = "") -> None:
    """Sets POSTs apart. Their place makes holding one twice impossible; `origin` tells places of memory apart."""
    for (sequence, position), post, reason in held:
        value = _batch.encode_posts("", [post]).value
        row = (f"{origin}{sequence}/{position}", time.time(), post.events, post.amount, reason, value)
        transaction.run(HOLD, row)


def total(posts: Sequence[Post]) -> Tally:
    """What these POSTs count for."""
    return Tally(sum(post.events for post in posts), sum(post.amount for post in posts))


def held_posts(rows: Sequence[Row]) -> Tuple[List[HeldPost], List[int]]:
    """The rows of HELD, and the ids of those that are damaged: nothing of them can be compared, and nothing sent."""
    posts: List[HeldPost] = []
    damaged: List[int] = []
    for number, held_at, value in rows:
        post = first_post(value) if value is not None else None
        if post is None or not isinstance(held_at, (int, float)):
            damaged.append(number)
        else:
            posts.append(HeldPost(number, post, held_at))
    return posts, damaged


def set_aside(transaction: Transaction, damaged: Sequence[int]) -> None:
    """Makes dead letters of damaged rows, as they are."""
    details = json.dumps({"reason": "damaged in the spool, while its outcome was unknown", "died_at": time.time()})
    for number in damaged:
        transaction.run(_SET_ASIDE, (details, number))
        transaction.run("DELETE FROM held WHERE id = ?", (number,))


def resolve(transaction: Transaction, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:
    """See `Store`."""
    delivered, resent = _take(transaction, booked), _take(transaction, absent)
    count(transaction, "delivered", total(delivered))
    for start in range(0, len(resent), _batch.MOST_EVENTS):
        some = resent[start : start + _batch.MOST_EVENTS]
        add_again(transaction, _batch.encode_posts(f"resend-{uuid.uuid4().hex}/0", some))
    return delivered, resent


def _take(transaction: Transaction, ids: Sequence[int]) -> List[Post]:
    """Takes these out of `held`; those that were there."""
    taken: List[Post] = []
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        some = list(ids[start : start + _ROWS_AT_ONCE])
        marks = ",".join("?" * len(some))
        rows = transaction.rows(f"SELECT id, {VALUE} FROM held WHERE {FITS} AND id IN ({marks})", some)
        posts = {number: post for number, post in ((n, first_post(value)) for n, value in rows) if post is not None}
        if posts:
            transaction.run(f"DELETE FROM held WHERE id IN ({','.join('?' * len(posts))})", list(posts))
            taken += posts.values()
    return taken
