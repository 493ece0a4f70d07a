"""Memory behind the spool: what it does with events and settlements while another connection holds the file."""

from __future__ import annotations

import pathlib
from typing import Iterator, List

import pytest

from tests.buffer.helpers import assert_adds_up, held_spool, make_batch, stored_posts
from x402tools._reserve import Reserve
from x402tools._spool import Deposit, Spool
from x402tools._store import Acknowledgement, Burial, Holding, Tally


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


def test_what_is_held_in_memory_is_held_in_the_file_later(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """It counts as held at once, and stands in the file when that is free again, as a part of pending."""
    with held_spool(tmp_spool):
        reserve.append([make_batch(1, (5,))], Tally())
        (one,) = handed_out(reserve)
        reserve.settle([], [], [Holding(one.place, one.post, "reset")])
        counts, known = reserve.counts(), (reserve.has_held(), reserve.known_held)
    reserve.catch_up()

    assert counts.held == counts.pending == counts.recorded == Tally(1, 5)
    assert known == (True, 1)
    assert [held.post.key for held in reserve.held(0, 10)] == ["rec-1-0"]
    assert reserve.counts().held == reserve.counts().pending == reserve.counts().recorded == Tally(1, 5)
    assert not reserve.is_behind


def test_what_is_held_while_the_file_fails_is_owed(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """A POST from the file counts as held at once, and once, before and after that is written down."""
    reserve.append([make_batch(1, (1, 2))], Tally())
    posts = [Acknowledgement(*one) for batch in reserve.oldest_sealed(0, 10) for one in batch.posts]

    with held_spool(tmp_spool):
        reserve.settle(posts[:1], [], [Holding(posts[1].place, posts[1].post, "reset")])
        owed = reserve.counts()
    reserve.catch_up()
    written = reserve.counts()

    for counts in (owed, written):
        assert_adds_up(counts)
        assert (counts.delivered, counts.pending, counts.held) == (Tally(1, 1), Tally(1, 2), Tally(1, 2))


def test_a_note_goes_into_the_file_together_with_the_post(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """Sent from memory and unanswered when it is stored: whoever finds it in the file knows that it may have arrived.

    The others of its batch, of which one was delivered already and lies no longer there, have no note.
    """
    with held_spool(tmp_spool):
        reserve.append([make_batch(1, (1, 2, 4))], Tally())
        posts = handed_out(reserve)
        noted = reserve.note_sending([posts[0].place, posts[2].place])
        reserve.settle(posts[:1], [])
    reserve.catch_up()
    reserve.release()

    other = open_reserve(tmp_spool)
    assert other.claim()
    (batch,) = other.oldest_sealed(0, 10)
    other.close()

    assert noted == [posts[0].place, posts[2].place]
    assert [post.key for _, post in batch.posts] == ["rec-1-1", "rec-1-2"]
    assert list(batch.sent) == [1]


def test_nothing_from_the_file_is_sent_that_it_takes_no_note_of(reserve: Reserve, tmp_spool: pathlib.Path) -> None:
    """While the file fails only what is in memory may be sent; and all of it once it works again."""
    reserve.append([make_batch(1, (1,))], Tally())
    from_file = [Acknowledgement(*one) for batch in reserve.oldest_sealed(0, 10) for one in batch.posts]

    with held_spool(tmp_spool):
        reserve.append([make_batch(2, (2,))], Tally())
        places = [one.place for one in (*from_file, *handed_out(reserve))]
        meanwhile = reserve.note_sending(places)
    reserve.catch_up()

    assert meanwhile == places[1:]
    assert sorted(reserve.note_sending(places)) == sorted(places)


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


def test_an_ordinary_batch_is_a_deposit_of_nothing_else(tmp_path: pathlib.Path) -> None:
    """Only such a deposit is stored by one statement; anything else in it costs a transaction of several."""
    batch = make_batch(1)
    deposits: List[Deposit] = []

    class Noting(Spool):
        def deposit(self, deposit: Deposit) -> None:
            deposits.append(deposit)
            super().deposit(deposit)

    reserve = Reserve(Noting(str(tmp_path / "usage.db"), sync="FULL", max_bytes=2**40))

    reserve.append([batch], Tally())
    reserve.close()

    assert deposits == [Deposit(1, [batch])]
