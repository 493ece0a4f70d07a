"""The thread that takes events from the intake to the store."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import List, Sequence

from x402tools._batch import EncodedBatch
from x402tools._desk import Desk
from x402tools._intake import Intake
from x402tools._journal import JournalledIntake
from x402tools._reserve import Reserve
from x402tools._spool import Spool
from x402tools._store import Tally
from x402tools._writer import COMMIT_EVERY, Writer


class BusyStore(Reserve):
    """While it stores, somebody records another event: so it is under steady traffic."""

    def __init__(self, spool: Spool, intake: Intake) -> None:
        super().__init__(spool)
        self.intake = intake
        self.appended = 0

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        super().append(batches, dropped)
        self.appended += 1
        if self.appended < 100:
            self.intake.put((self.intake.next_number(), "env", 1, None, time.time()))


def test_a_commit_ends_at_what_was_recorded_before_it(tmp_spool: pathlib.Path) -> None:
    """Or it would keep the lock, and with it who flushes or asks for the ledger, as long as there is traffic."""
    intake = Intake(1000, attention=False)
    spool = Spool(str(tmp_spool), sync="FULL", max_bytes=2**30)
    store = BusyStore(spool, intake)
    desk = Desk(lambda: False)
    writer = Writer(intake, store, desk, "interval", lambda _: None, lambda _: None, lambda _: None)
    intake.put((intake.next_number(), "env", 1, None, time.time()))

    assert writer.commit()

    assert store.appended == 1
    assert len(intake.events) == 1
    desk.close()
    store.close()


def test_under_traffic_commits_begin_no_more_often_than_every_ten_milliseconds(tmp_spool: pathlib.Path) -> None:
    """Each costs a service nearly as much CPU for three events as for three hundred."""
    intake = Intake(1000, attention=False)
    store = Reserve(Spool(str(tmp_spool), sync="FULL", max_bytes=2**30))
    desk = Desk(lambda: False)
    stored: List[float] = []
    enough = threading.Event()

    def note(_: int) -> None:  # in the middle of a commit, and the next one has something to store
        stored.append(time.monotonic())
        intake.put((intake.next_number(), "env", 1, None, time.time()))
        if len(stored) >= 20:
            enough.set()

    writer = Writer(intake, store, desk, "interval", note, lambda _: None, lambda _: None)
    intake.put((intake.next_number(), "env", 1, None, time.time()))

    writer.start()

    assert enough.wait(30)
    # Measured near the end of commits, of which the first may have taken longer than the last.
    assert stored[19] - stored[0] > 19 * COMMIT_EVERY * 0.8
    writer.stop(time.monotonic() + 10)
    desk.close()
    store.close()


def test_who_commits_tells_that_the_journal_does_not_work(tmp_spool: pathlib.Path) -> None:
    """Once, and not the thread alone: the commit at the end may be the first to find it out."""
    intake = JournalledIntake(1000, str(tmp_spool.with_name("not there") / "usage.db"), lambda *_: b"")
    store = Reserve(Spool(str(tmp_spool), sync="FULL", max_bytes=2**30))
    desk = Desk(lambda: False)
    told: List[str] = []
    writer = Writer(intake, store, desk, "commit", lambda _: None, lambda _: None, told.append)

    writer.commit()
    writer.commit()

    (line,) = told
    assert "the journal beside the spool cannot be written" in line
    intake.end(all_stored=True)
    desk.close()
    store.close()
