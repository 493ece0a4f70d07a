"""No row of the fault catalogue and no box of the security checklist is silently missing."""

from __future__ import annotations

import pathlib
import re

import pytest

from tests.faults.catalogue import CATALOGUE, FOLDER, SECURITY, Row, all_tests, named_by_row, rows

# How many there are of each kind; a row is not dropped by dropping its line.
COUNTS = {"P": 14, "F": 10, "D": 18, "N": 24, "I": 9, "C": 2, "L": 7, "T": 5}
BOXES = 22


def test_catalogue_is_whole() -> None:
    """Every row is there, once, in its order."""
    ids = [row.id for row in rows(CATALOGUE)]

    assert len(ids) == len(set(ids))
    assert {kind: sum(one.startswith(kind) for one in ids) for kind in COUNTS} == COUNTS
    assert ids == sorted(ids, key=lambda one: (list(COUNTS).index(one[0]), one))


@pytest.mark.parametrize("row", rows(CATALOGUE), ids=lambda row: row.id)
def test_row_has_a_test_or_a_reason(row: Row) -> None:
    """Its tests exist, those whose names have its id and those that it names; without any it says why."""
    tests = [*named_by_row().get(row.id, []), *row.tests]

    assert tests or len(row.reason.split()) > 5, f"{row.id} has neither a test nor a reason"
    assert [name for name in row.tests if name not in all_tests()] == []
    assert len(row.cells) == 5


def test_no_test_is_of_a_row_that_does_not_exist() -> None:
    """An id in the name of a test is one of the catalogue."""
    assert set(named_by_row()) - {row.id for row in rows(CATALOGUE)} == set()


def test_checklist_is_whole() -> None:
    """Every box is there, once."""
    ids = [row.id for row in rows(SECURITY)]

    assert len(ids) == len(set(ids)) == BOXES


@pytest.mark.parametrize("row", rows(SECURITY), ids=lambda row: row.id)
def test_box_is_ticked_by_a_test_or_answered(row: Row) -> None:
    """Its tests exist; what no test can tick has an answer."""
    assert row.tests or len(row.reason.split()) > 5, f"{row.id} has neither a test nor an answer"
    assert [name for name in row.tests if name not in all_tests()] == []


def test_readme_has_a_security_section() -> None:
    """Where answers are sent to the README, there is a section for them."""
    readme = pathlib.Path(FOLDER.parents[1], "README.md").read_text(encoding="utf-8")

    assert re.search(r"^## Security$", readme, re.MULTILINE)
