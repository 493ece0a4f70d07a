"""Adds up pytest's own figures: `figures.py FILE.xml …` prints one line, `N passed, N failed`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from typing import List, Tuple


def figures(path: str) -> Tuple[int, int]:
    """(passed, failed) of one junit file; a test that failed while it was set up or torn down counts as failed."""
    passed = failed = 0
    # Written by the pytest that ran a moment ago, so it is nobody's attack.
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):  # noqa: S314 - written by pytest a moment ago
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        failed += bad
        passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
    return passed, failed


def main(paths: List[str]) -> None:
    """Prints the sum."""
    totals = [figures(path) for path in paths]
    print(f"{sum(passed for passed, _ in totals)} passed, {sum(failed for _, failed in totals)} failed")


if __name__ == "__main__":
    main(sys.argv[1:])
