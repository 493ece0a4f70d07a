"""What is pending is counted from the rows, and yet not all of them are read every time."""

from __future__ import annotations

import pathlib
import random
import sqlite3
from contextlib import closing
from typing import Iterator, List, Tuple

import pytest

from tests.buffer.helpers import assert_adds_up, make_batch
from x402tools._batch import Post
from x402tools._spool import Spool
from x402tools._store import Acknowledgement, Burial, Place, Tally


def open_spool(path: pathlib.Path) -> Spool:
    return Spool(str(path), sync="NORMAL", max_bytes=2**40)


def change(path: pathlib.Path, sql: str) -> None:
    """Something else writes into the file."""
    with closing(sqlite3.connect(str(path))) as connection, connection:
        connection.execute(sql)


@pytest.fixture
def spools(tmp_path: pathlib.Path) -> Iterator[Tuple[Spool, Spool]]:
    """Two processes' worth on one file; the first may deliver."""
    delivering, other = open_spool(tmp_path / "usage.db"), open_spool(tmp_path / "usage.db")
    assert delivering.claim()
    yield delivering, other
    delivering.close()
    other.close()


@pytest.mark.parametrize("seed", range(5))
def test_both_always_count_what_a_new_one_counts(
    tmp_path: pathlib.Path, spools: Tuple[Spool, Spool], seed: int
) -> None:
    """However recording, settling, burying and requeueing come one after the other, and whoever looks when."""
    chance, number = random.Random(seed), 0
    delivering, other = spools
    left: List[Tuple[Place, Post]] = []
    after = 0
    for _ in range(120):
        action = chance.choice(["append", "append", "settle", "settle", "bury", "requeue", "look", "look at other"])
        if action == "append":
            number += 1
            chance.choice(spools).append([make_batch(number, [chance.randint(1, 2**50)] * chance.randint(1, 3))], Tally())
        elif action == "requeue":
            delivering.requeue([letter.id for letter in delivering.dead_letters(0, 2)])
        elif action == "look":
            assert_adds_up(delivering.counts())
        elif action == "look at other":
            assert_adds_up(other.counts())
        else:
            batches = delivering.oldest_sealed(after, 2)
            after = batches[-1].sequence if batches else after
            left += [one for batch in batches for one in batch.posts]
            chance.shuffle(left)
            some, left = left[:4], left[4:]
            if action == "settle":
                delivering.settle([Acknowledgement(*one) for one in some], [])
            else:
                delivering.settle([], [Burial(*one, "no", 404, 1) for one in some])

    with closing(open_spool(tmp_path / "usage.db")) as new:
        truth = new.counts()

    assert delivering.counts() == other.counts() == truth
    assert_adds_up(truth)


def test_what_was_added_up_is_not_added_up_again(tmp_path: pathlib.Path, spools: Tuple[Spool, Spool]) -> None:
    """Neither while more comes nor while this process settles: a count changed in its row by somebody is not read."""
    delivering, _ = spools
    delivering.append([make_batch(number, [1]) for number in range(1, 11)], Tally())
    delivering.counts()
    change(tmp_path / "usage.db", "UPDATE sealed SET units = 1000 WHERE sequence = 5")

    delivering.append([make_batch(11, [7])], Tally())
    (batch,) = delivering.oldest_sealed(0, 1)
    delivering.settle([Acknowledgement(*one) for one in batch.posts], [])

    assert delivering.counts().pending == Tally(10, 16)
    with closing(open_spool(tmp_path / "usage.db")) as new:
        assert new.counts().pending == Tally(10, 1015)


@pytest.mark.parametrize("also", ["", "INSERT INTO sealed SELECT 99, 'new/1', 0, 1, 1, value FROM sealed LIMIT 1"])
def test_a_batch_that_went_missing_is_noticed(tmp_path: pathlib.Path, spools: Tuple[Spool, Spool], also: str) -> None:
    """The ledger does not add up then, and says so, even if there are as many batches as before."""
    delivering, _ = spools
    delivering.append([make_batch(number, [number]) for number in range(1, 11)], Tally())
    assert_adds_up(delivering.counts())

    change(tmp_path / "usage.db", "DELETE FROM sealed WHERE sequence = 4")
    if also:
        change(tmp_path / "usage.db", also)
    counts = delivering.counts()

    assert counts.pending == (Tally(10, 52) if also else Tally(9, 51))
    with pytest.raises(AssertionError):
        assert_adds_up(counts)
