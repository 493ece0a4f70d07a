"""Several folders as one: one of them seals in a turn, each in turn, and one that fails stops none of the others."""

from __future__ import annotations

from typing import Dict, List, Sequence

import pytest

from tests.buffer.helpers import FakeClock
from x402tools._batch import EncodedBatch
from x402tools._fold import one_by_one
from x402tools._folder import Folder
from x402tools._folders import Folders
from x402tools._store import RecordedBatch
from x402tools.errors import SpoolError


class Part:
    """Has a batch to be sealed, again and again; notes who seals when."""

    def __init__(self, name: str, sealed: List[str]) -> None:
        self.name = name
        self.fails = False
        self._sealed = sealed
        self._next = 1

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        assert limit > 0
        if self.fails:
            raise SpoolError(f"{self.name} is away")
        if after >= self._next:
            return []
        return [RecordedBatch(self._next, 0.0, self.name, [(self._next, "env", 1, None, 1000)])]

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        assert (up_to, len(batches)) == (self._next, 1)
        self._sealed.append(self.name)
        self._next += 1

    def sweep(self) -> bool:
        return False

    def sync(self) -> None:
        assert self._sealed


@pytest.fixture
def sealed() -> List[str]:
    return []


@pytest.fixture
def parts(sealed: List[str]) -> Dict[str, Part]:
    return {name: Part(name, sealed) for name in ("a", "b", "c")}


@pytest.fixture
def folders(parts: Dict[str, Part]) -> Folders:
    clock = FakeClock()
    return Folders([Folder(part, one_by_one, window=0.0, look_every=0.0, clock=clock) for part in parts.values()])


def test_one_seals_in_a_turn_and_each_in_turn(folders: Folders, sealed: List[str]) -> None:
    """What was sealed is to be sent before more is; and nobody has to wait for ever."""
    after_each = []
    for _ in range(6):
        assert folders.turn(may_seal=True)
        after_each.append(len(sealed))

    assert after_each == [1, 2, 3, 4, 5, 6]
    assert sealed == ["a", "b", "c", "a", "b", "c"]
    assert not folders.is_idle


def test_nothing_is_sealed_that_could_not_be_sent(folders: Folders, sealed: List[str]) -> None:
    """Then the groups get larger instead."""
    assert not folders.turn(may_seal=False)

    assert sealed == []


def test_one_that_fails_stops_no_other(folders: Folders, parts: Dict[str, Part], sealed: List[str]) -> None:
    """It is told of when there was nothing else to do."""
    parts["a"].fails = True

    assert [folders.turn(may_seal=True) for _ in range(4)] == [True] * 4
    with pytest.raises(SpoolError, match="a is away"):
        folders.turn(may_seal=False)

    assert sealed == ["b", "c", "b", "c"]


def test_hurrying_is_over_when_all_have_done_it(folders: Folders, parts: Dict[str, Part]) -> None:
    """One that cannot be read keeps it from being over."""
    parts["b"].fails = True

    folders.hurry()
    for _ in range(5):
        folders.turn(may_seal=True)

    assert folders.is_hurried
    folders.reset()
    folders.look_now()
