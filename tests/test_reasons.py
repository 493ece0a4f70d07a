"""What is switched off says why, beside it: rules of the linter and the type checker, and tests."""

from __future__ import annotations

import pathlib
import re
from functools import lru_cache
from typing import List, Tuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("x402tools", "tests", "benchmarks", ".ci")

# What switches something off, and what has to follow it on its line. Written so that this file does not match itself.
NEEDS_A_REASON = {
    r"# no[q]a": r"# no[q]a: [A-Z]+\d+(, [A-Z]+\d+)* - \S+",
    r"# type: ignor[e]": r"# type: ignor[e]\[[a-z-]+(, [a-z-]+)*\]  # \S+",
    r"pragma: n[o] ": r"pragma: n[o] \S+ - \S+",
    r"mark\.x?skip(if)?\b|mark\.xfai[l]": r"reason=|\($",
    r"importorskip[(]": r"reason=",
    r"\bpytest\.ski[p][(]": r"ski[p][(](f?\".+ .+ |reason=)",
    r"\b(TOD[O]|FIXM[E]|XX[X])\b": r"$^",
}


@lru_cache(maxsize=None)
def lines() -> List[Tuple[str, str]]:
    """Where each line of the project's Python stands, and what it says."""
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


@pytest.mark.parametrize("switch", NEEDS_A_REASON)
def test_what_is_switched_off_says_why(switch: str) -> None:
    """On its own line, in words."""
    without = [
        f"{place}: {line.strip()}"
        for place, line in lines()
        if re.search(switch, line) and not re.search(NEEDS_A_REASON[switch], line)
    ]

    assert without == []
