"""The tables beside this file, and the tests that they name: `python -m tests.faults.catalogue --write` fills them in.

A test is found by its name, without being imported: what a folder needs may not be installed.
"""

from __future__ import annotations

import argparse
import ast
import functools
import pathlib
import re
from typing import Dict, List, NamedTuple, Set

FOLDER = pathlib.Path(__file__).resolve().parent
CATALOGUE = FOLDER / "CATALOGUE.md"
SECURITY = FOLDER / "SECURITY.md"

_IDS = re.compile(r"^test((?:_[A-Z]\d\d)+)_")


class Row(NamedTuple):
    """A row of a table: its first cell, the tests that it names, and its last cell: the answer where none is."""

    id: str
    cells: List[str]

    @property
    def tests(self) -> List[str]:
        return re.findall(r"`(test_\w+)`", self.cells[-2])

    @property
    def reason(self) -> str:
        return self.cells[-1]


def rows(path: pathlib.Path) -> List[Row]:
    """The rows of the one table in this file; its two last columns are the tests and the reasons."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [Row(row[0], row) for row in cells]


@functools.lru_cache(maxsize=None)
def all_tests() -> Set[str]:
    """The name of every test function of the project."""
    names: Set[str] = set()
    for path in FOLDER.parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                names.add(node.name)
    return names


@functools.lru_cache(maxsize=None)
def named_by_row() -> Dict[str, List[str]]:
    """The tests whose names say of which rows they are."""
    found: Dict[str, List[str]] = {}
    for name in sorted(all_tests()):
        match = _IDS.match(name)
        for row in match[1].strip("_").split("_") if match else ():
            found.setdefault(row, []).append(name)
    return found


def write() -> None:
    """Puts the tests that have an id in their name into the row of the id; other names that stand there stay."""
    named, known = named_by_row(), {row.id: row for row in rows(CATALOGUE)}
    lines = []
    for line in CATALOGUE.read_text(encoding="utf-8").splitlines():
        row = known.get(line.strip("|").split("|")[0].strip())
        if line.startswith("|") and row is not None:
            own = [name for name in row.tests if not _IDS.match(name)]
            tests = ", ".join(f"`{name}`" for name in [*named.get(row.id, []), *own])
            line = "| " + " | ".join([*row.cells[:-2], tests, row.reason]).rstrip() + " |"
        lines.append(line)
    CATALOGUE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", required=True, help="fill in the column of tests")
    parser.parse_args()
    write()
