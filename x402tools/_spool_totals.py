"""What the batches of a table add up to, without adding up again what was added up before.

A million batches take a third of a second, and whoever stores waits for it. What keeps a sum from before right:

1. A batch never changes, and a new one always gets a higher number than any before it. So of the batches up to some
   number none can come, only go.
2. What this process has settled it takes off itself.
3. SQLite counts all rows twenty times as fast as it reads them. When the count is what it has to be, nothing else has
   gone, by another process or in any other way; when it is not, everything is added up anew.

A count that was damaged in its row shows when the batch is handed out; see `Spool`.
"""

from __future__ import annotations

from x402tools._spool_rows import SUMS, tally
from x402tools._store import Tally
from x402tools._transaction import Transaction


class Totals:
    """Belongs to one open file; for the use of one thread at a time.

    Args:
        table: "sealed" or "recorded".
        floor: SQL for the number up to which batches do not count any more.
    """

    def __init__(self, table: str, floor: str = "0") -> None:
        batches = f"FROM {table} WHERE sequence > max(?, {floor})"
        self._above = f"SELECT (SELECT count(*) FROM {table}), {floor}, coalesce(max(sequence), 0), {SUMS} {batches}"
        self.forget()

    def forget(self) -> None:
        """Of another file, or of one whose batches were changed, nothing is known."""
        self._up_to = self._rows = self._floor = 0
        self._sum = Tally()

    def read(self, transaction: Transaction) -> Tally:
        """The events and units of all batches at the moment of the transaction."""
        everything, floor, newest, new, *sums = transaction.rows(self._above, (self._up_to,))[0]
        is_as_it_was = floor == self._floor and everything == self._rows + new
        if self._up_to and not is_as_it_was:
            self.forget()
            return self.read(transaction)
        self._up_to, self._rows, self._floor = max(self._up_to, newest), everything, floor
        self._sum = self._sum.plus(tally((new, *sums)))
        return self._sum

    def settled(self, sequence: int, batch: Tally) -> None:
        """This process has deleted a batch of so much."""
        if sequence <= self._up_to:
            self._rows -= 1
            self._sum = self._sum.minus(batch)
