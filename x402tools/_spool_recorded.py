"""What the spool has of events that are recorded and not sealed yet: the table `recorded`, and how far it is folded.

Sealing writes one number, `folded` in `meta`, in the transaction that stores the sealed POSTs: every batch up to it is
gone from that moment on. Deleting thousands of batches there would keep other processes from storing for as long as it
takes; `sweep` does it afterwards, some at a time.
"""

from __future__ import annotations

from typing import List, Optional, Sequence

from x402tools import _batch
from x402tools._batch import EncodedBatch
from x402tools._connection import Connection, DamagedError
from x402tools._spool_rows import VALUE_IF_IT_FITS, add_again
from x402tools._store import RecordedBatch, Tally
from x402tools._transaction import Row, Transaction

FOLDED = "coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'folded'), 0)"
WAITING = f"FROM recorded WHERE sequence > {FOLDED}"
FIRST = f"SELECT min(sequence) {WAITING}"
LAST = "SELECT seq FROM sqlite_sequence WHERE name = 'recorded'"
OLDEST = f"SELECT stored_at {WAITING} ORDER BY sequence LIMIT 1"
NEXT = (
    f"SELECT sequence, stored_at, events, units, {VALUE_IF_IT_FITS} {WAITING} AND sequence > ?"
    " ORDER BY sequence LIMIT ?"
)
_ROWS_AT_ONCE = 100
_SWEEP = (
    f"WITH old AS (SELECT sequence FROM recorded WHERE sequence <= {FOLDED} ORDER BY sequence LIMIT ?)"
    " DELETE FROM recorded WHERE sequence IN old"
)
_SWEPT = f"SELECT count(*) FROM (SELECT 1 FROM recorded WHERE sequence <= {FOLDED} LIMIT 1)"


def read(row: Row) -> RecordedBatch:
    """The batch of a row of NEXT.

    Raises:
        CorruptBatchError: it is damaged.
        DamagedError: so is its size.
    """
    sequence, stored_at, _, _, value = row
    if value is None:
        raise DamagedError("malformed: holds a batch of a size that is never written")
    recorder, rows = _batch.recorded_rows(value)
    return RecordedBatch(sequence, stored_at if isinstance(stored_at, float) else 0.0, recorder, rows)


def counted(batch: RecordedBatch) -> Tally:
    """What it really holds."""
    return Tally(len(batch.rows), sum(row[2] for row in batch.rows))


def set_right(transaction: Transaction, sequence: int, truth: Tally) -> None:
    """The content of a batch has a checksum, its counts have none."""
    transaction.run("UPDATE recorded SET events = ?, units = ? WHERE sequence = ?", (*truth, sequence))


def forget(transaction: Transaction, sequence: int) -> None:
    transaction.run("DELETE FROM recorded WHERE sequence = ?", (sequence,))


def seal(transaction: Transaction, up_to: int, batches: Sequence[EncodedBatch]) -> None:
    """All that is recorded up to there becomes these POSTs; nothing happens if it was done before."""
    if transaction.rows(f"SELECT {FOLDED} >= ?", (up_to,)) == [(1,)]:
        return
    for batch in batches:
        add_again(transaction, batch)
    transaction.run("REPLACE INTO meta VALUES ('folded', ?)", (up_to,))


def sweep(connection: Connection) -> bool:
    """Deletes some of what is folded; whether there is more."""
    if connection.rows(_SWEPT) == [(0,)]:
        return False
    connection.run_alone(_SWEEP, (_ROWS_AT_ONCE,))
    return True


def number(rows: List[Row]) -> Optional[int]:
    """The number in the only row of FIRST or LAST, if there is one."""
    return int(rows[0][0]) if rows and rows[0][0] is not None else None
