"""Memory behind the spool: what it does with events and settlements while another connection holds the file."""

from __future__ import annotations

import pathlib
from typing import Iterator, List

import pytest

from tests.buffer.helpers import assert_adds_up, held_spool, make_batch, stored_posts
from x402tools._reserve import Reserve
from x402tools._spool import Spool
from x402tools._store import Acknowledgement, Burial, Tally


def open_reserve(path: pathlib.Path) -> Reserve:
    return Reserve(Spool(str(path), sync="FULL", max_bytes=2**40))


@pytest.fixture
def reserve(tmp_spool: pathlib.Path) -> Iterator[Reserve]:
    """One that holds the claim."""
    opened = open_reserve(tmp_spool)
    assert opened.claim()
    yield opened
    opened.close()


def handed_out(reserve: Reserve) -> List[Acknowledgement]:
    batches = reserve.oldest_sealed(reserve.last_sequence(), 1000)
    return [Acknowledgement(place, post) for batch in batches for place, post in batch.posts]


def test_what_cannot_be_stored_is_handed_out_once(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """From memory while the file is held; and it is stored, without what was delivered, as soon as it is free."""
    with held_spool(tmp_spool):
        reserve.append([make_batch(1, (1, 2, 4))], Tally())
        first, again = handed_out(reserve), handed_out(reserve)
        reserve.settle(first[:1], [])
        held = reserve.counts()
    reserve.catch_up()
    stored = [post.key for post in stored_posts(tmp_spool)]
    reserve.settle(first[1:], [])

    assert [one.post.key for one in first] == ["rec-1-0", "rec-1-1", "rec-1-2"]
    assert again == []
    assert (held.delivered, held.pending, held.in_memory) == (Tally(1, 1), Tally(2, 6), 2)
    assert stored == ["rec-1-1", "rec-1-2"]
    assert_adds_up(held)
    assert reserve.counts().delivered == reserve.counts().recorded == Tally(3, 7)


def test_a_refusal_in_memory_is_a_dead_letter_later(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """It counts as dead at once, and stands in the file when that is free again."""
    with held_spool(tmp_spool):
        reserve.append([make_batch(1, (5,))], Tally())
        (one,) = handed_out(reserve)
        reserve.settle([], [Burial(one.place, one.post, "unknown envelope", 404, 1)])
        held = reserve.counts()
    reserve.catch_up()

    assert held.dead == Tally(1, 5)
    assert_adds_up(held)
    assert [letter.key for letter in reserve.dead_letters(0, 10)] == ["rec-1-0"]
    assert reserve.counts().dead == reserve.counts().recorded == Tally(1, 5)
    assert not reserve.is_behind


def test_nobody_takes_over_what_is_delivered_and_not_written_down(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """Another process would send it again; so the claim is only given back when it is written down."""
    other = open_reserve(tmp_spool)
    reserve.append([make_batch(1, (1, 2))], Tally())
    posts = [Acknowledgement(*one) for batch in reserve.oldest_sealed(0, 10) for one in batch.posts]

    with held_spool(tmp_spool):
        reserve.settle(posts, [])
        reserve.release()
        while_owed = other.claim()
    reserve.catch_up()
    reserve.release()

    assert not while_owed
    assert other.claim()
    assert other.oldest_sealed(0, 10) == []
    assert other.counts().delivered == Tally(2, 3)
    other.close()


def test_what_is_given_up_counts_as_dropped(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """Without what was delivered from memory; and the ledger adds up, also once it can be written."""
    with held_spool(tmp_spool):
        reserve.append([make_batch(1, (1, 2)), make_batch(2, (4,))], Tally())
        reserve.settle(handed_out(reserve)[:1], [])
        lost = reserve.give_up()
        held = reserve.counts()
    reserve.catch_up()

    assert [post.key for post in lost] == ["rec-1-1", "rec-2-0"]
    assert (held.dropped, held.delivered, held.pending) == (Tally(2, 6), Tally(1, 1), Tally())
    assert reserve.counts().dropped == Tally(2, 6)
    assert_adds_up(held)
    assert_adds_up(reserve.counts())
    assert stored_posts(tmp_spool) == []
