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


ACTIONS = [
    *("append", "append", "settle", "settle", "bury", "requeue"),
    *("seal", "sweep", "look", "look", "look at other", "look at other"),
]


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
    read_up_to = 0
    left: List[Tuple[Place, Post]] = []
    after = 0
    for _ in range(120):
        action = chance.choice(ACTIONS)
        if action == "append":
            number += 1
            batch = make_batch(number, [chance.randint(1, 2**50)] * chance.randint(1, 3))
            chance.choice(spools).append([batch._replace(is_sealed=chance.random() < 0.7)], Tally())
        elif action == "seal":
            recorded = delivering.recorded(read_up_to, chance.randint(1, 3))
            if recorded:
                read_up_to = recorded[-1].sequence
                number += 1
                amounts = [row[2] for batch in recorded for row in batch.rows]
                delivering.seal(read_up_to, [make_batch(number, amounts)])
        elif action == "sweep":
            delivering.sweep()
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


def test_what_is_not_sealed_yet_is_not_added_up_again_either(
    tmp_path: pathlib.Path, spools: Tuple[Spool, Spool]
) -> None:
    """Until some of it is sealed: then the rest is."""
    delivering, _ = spools
    batches = [make_batch(number, [1])._replace(is_sealed=False) for number in range(1, 11)]
    delivering.append(batches, Tally())
    delivering.counts()
    change(tmp_path / "usage.db", "UPDATE recorded SET units = 1000 WHERE sequence = 5")

    delivering.append([make_batch(11, [7])._replace(is_sealed=False)], Tally())
    before = delivering.counts().pending
    (first,) = delivering.recorded(0, 1)
    delivering.seal(first.sequence, [make_batch(12, [1])])

    assert before == Tally(11, 17)
    assert delivering.counts().pending == Tally(11, 1016)


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
