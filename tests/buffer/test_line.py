"""The callers that wait for a commit, of whom one commits for all."""

from __future__ import annotations

import threading
from typing import List

from tests.buffer.helpers import wait_until
from x402tools._line import Line

_LONG = 20.0  # seconds; nobody here waits for so long


def called(line: Line, numbers: List[int]) -> List[threading.Thread]:
    """A thread for each number of a commit, which stands in line after it and ends when it is called."""
    places = [line.join(number) for number in numbers]
    threads = [threading.Thread(target=place.wait, args=(2 * _LONG,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    return threads


def test_who_is_served_goes_and_one_of_the_others_is_next() -> None:
    """A commit wakes those whose event it has, and one more; the rest sleep on."""
    line = Line(_LONG)
    served, others = called(line, [0, 0, 1]), called(line, [2, 2, 2])

    line.let_go(2)

    for thread in (*served, others[0]):
        thread.join(_LONG)
    assert [thread.is_alive() for thread in (*served, *others)] == [False, False, False, False, True, True]
    line.let_go(3)
    for thread in others:
        thread.join(_LONG)
    assert not any(thread.is_alive() for thread in others)


def test_who_left_is_not_called() -> None:
    """A caller that gave up is not the next one: somebody who still waits is."""
    line = Line(_LONG)
    gone = line.join(5)
    (waiting,) = called(line, [5])

    line.leave(gone)
    line.let_go(3)

    waiting.join(_LONG)
    assert not waiting.is_alive()


def test_a_caller_that_is_alone_waits_for_nobody() -> None:
    """Neither at the first commit nor at those that follow upon commits for one."""
    line = Line(_LONG)

    def commit_alone() -> None:
        for number in range(3):
            place = line.join(number)
            line.gather()
            line.let_go(number + 1)
            line.leave(place)

    committing = threading.Thread(target=commit_alone, daemon=True)
    committing.start()
    committing.join(_LONG / 2)

    assert not committing.is_alive()


def test_who_commits_waits_for_those_who_come_back() -> None:
    """Until as many stand in line as were let go together, and no longer."""
    line = Line(_LONG)
    for _ in range(3):
        line.join(0)
    line.let_go(1)
    line.join(1)
    gathering = threading.Thread(target=line.gather, daemon=True)

    gathering.start()
    wait_until(lambda: line._gathering is not None, "it waits")
    line.join(1)
    early = gathering.is_alive()
    line.join(1)
    gathering.join(_LONG / 2)

    assert early
    assert not gathering.is_alive()


def test_who_does_not_come_back_is_waited_for_no_longer_than_a_moment() -> None:
    """Callers have other things to do."""
    line = Line(0.01)
    for _ in range(3):
        line.join(0)
    line.let_go(1)
    line.join(1)
    gathering = threading.Thread(target=line.gather, daemon=True)

    gathering.start()
    gathering.join(_LONG)

    assert not gathering.is_alive()
