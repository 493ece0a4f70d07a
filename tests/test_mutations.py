"""The table of the mutation check is whole: `python -m tests.mutations --write` made it, and takes half an hour."""

from __future__ import annotations

import pathlib

import pytest

from tests.guards import GUARDS, Guard
from tests.mutations import ROOT, rows


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_guard_is_where_it_is_taken_away(guard: Guard) -> None:
    """Its text stands exactly once in its file, and the tests that are to notice are there."""
    source = (ROOT / "x402tools" / guard.file).read_text(encoding="utf-8")

    assert source.count(guard.there) == 1
    assert guard.there != guard.instead
    assert [test for test in guard.tests.split() if not pathlib.Path(ROOT, test.split("::")[0]).exists()] == []


def test_table_has_every_guard_and_no_survivor() -> None:
    """tests/MUTATIONS.md names for each guard the test that noticed that it was gone."""
    table = rows()

    assert sorted(table) == sorted(guard.name for guard in GUARDS)
    assert [name for name, noticed in table.items() if "**" in noticed] == []
    assert len(table) >= 25
