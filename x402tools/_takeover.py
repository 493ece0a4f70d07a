"""Stores what a process that was killed had noted in its journal and not stored yet; see `_journal`.

Whoever has the spool open looks for journals whose process is gone, when it opens it and about once a second. The lock
on a journal says both: that its process lives, or that somebody is at it already. Events go into the spool in their
order, in batches numbered like those of the process itself, so it does no harm to be killed in the middle of this, or
to find a file that was stored and not deleted.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Iterator, List, Set, Tuple

from x402tools import _batch, _journal_file
from x402tools._batch import MOST_EVENTS, EncodedBatch
from x402tools._columns import Row
from x402tools._journal_file import Reading
from x402tools._process import FileLock
from x402tools._spool_rows import numbered
from x402tools.errors import SpoolError

if TYPE_CHECKING:
    from x402tools._spool import Spool

_BATCHES_AT_ONCE = 20  # in one transaction
_LATELY = 10.0  # seconds


class Takeover:
    """Looks for them, for one spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.RLock()  # guards a look for them: who waits for it finds that what there was is stored
        self._told: Set[str] = set()  # recorders whose journals could not be read, which was logged

    def run(self, patience: float = -1) -> None:
        """Takes over what there is. What cannot be stored or read now stays for the next time.

        Args:
            patience: seconds to wait for another thread that is at it; below zero, without end.
        """
        if not self._lock.acquire(timeout=patience):
            return
        try:
            for recorder in _journal_file.recorders(self._spool.path):
                self._try(recorder)
        except (OSError, SpoolError):
            pass  # the spool tells why
        finally:
            self._lock.release()

    def _try(self, recorder: str) -> None:
        try:
            self._take_over(recorder)
        except OSError as error:
            if recorder not in self._told:
                self._told.add(recorder)
                self._spool.notices.append(f"a journal of {self._spool.path} cannot be read: {error}")

    def _take_over(self, recorder: str) -> None:
        path = _journal_file.lock_path(self._spool.path, recorder)
        if not os.path.exists(path) and self._was_written_lately(recorder):
            return  # somebody deleted it, and its process may live and make another
        lock = FileLock(path)
        if not lock.acquire():
            return  # its process lives, or another one is at it
        try:
            if lock.is_at_its_path():
                self._store_all(recorder, _journal_file.marked(lock))
        finally:
            lock.release()

    def _was_written_lately(self, recorder: str) -> bool:
        moments = [os.stat(path).st_mtime for path in _journal_file.files_of(self._spool.path, recorder)]
        return any(time.time() - moment < _LATELY for moment in moments)

    def _store_all(self, recorder: str, marked: int) -> None:
        """Call with the lock on it held."""
        paths = _journal_file.files_of(self._spool.path, recorder)
        readings = [Reading(path) for path in paths]
        known = max(marked, self._spool.stored_up_to(recorder))
        waiting: List[EncodedBatch] = []
        for batch in _batches(readings, recorder, known):
            waiting.append(batch)
            if len(waiting) == _BATCHES_AT_ONCE:
                known, waiting = self._take_in(recorder, known, waiting), []
        if waiting:
            self._take_in(recorder, known, waiting)
        for path, reading in zip(paths, readings):
            if reading.is_damaged:
                self._set_aside(path)
            else:
                os.unlink(path)
        self._spool.forget_recorder(recorder)
        os.unlink(_journal_file.lock_path(self._spool.path, recorder))

    def _take_in(self, recorder: str, known: int, batches: List[EncodedBatch]) -> int:
        self._spool.take_in(recorder, known, batches)
        return numbered(batches[-1].id)[1]

    def _set_aside(self, path: str) -> None:
        aside = f"{self._spool.path}.corrupt-{path[len(self._spool.path) + 1 :]}"
        os.rename(path, aside)
        self._spool.notices.append(
            f"a journal of {self._spool.path} is damaged: what could be read of it is stored; it is kept as {aside}"
        )


def _batches(readings: List[Reading], recorder: str, stored: int) -> Iterator[EncodedBatch]:
    """What lies behind the place `stored`, in batches whose number is the place of their last event."""
    rows: List[Row] = []
    is_sealed, last = True, stored
    for place, sealed, row in _events(readings):
        if place <= last:
            continue
        if rows and (len(rows) == MOST_EVENTS or sealed != is_sealed):
            yield _batch.encode_rows(recorder, last, rows, is_sealed=is_sealed)
            rows = []
        rows.append(row)
        is_sealed, last = sealed, place
    if rows:
        yield _batch.encode_rows(recorder, last, rows, is_sealed=is_sealed)


def _events(readings: List[Reading]) -> Iterator[Tuple[int, bool, Row]]:
    """The place of each event, whether it is sealed, and its row."""
    for reading in readings:
        for frame in reading:
            for place, row in enumerate(frame.rows, frame.first):
                yield place, frame.is_sealed, row
