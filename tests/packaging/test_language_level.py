"""What the oldest promised Python cannot do, and no import error would tell."""

from __future__ import annotations

import ast
import pathlib
from typing import List

import pytest

import x402tools

PACKAGE = pathlib.Path(x402tools.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

OLDEST = (3, 8)


def names(paths: List[pathlib.Path]) -> List[str]:
    """Paths within the package, as test ids."""
    return [str(path.relative_to(PACKAGE)) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_source_is_of_the_oldest_python(path: pathlib.Path) -> None:
    """The file has no newer syntax, and reads no time with `fromisoformat`, which knows no `Z` before Python 3.11."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)

    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert "fromisoformat" not in attributes, "use x402tools.models.parse_time"
