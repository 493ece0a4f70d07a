"""Takes the guards away one by one, and sees that a test notices: `python -m tests.mutations [--only WORD] [--write]`.

Works in a copy. For each guard of `tests.guards` it changes one place of the package and runs the tests that are meant
to notice. The first one that fails is then run with the guard back in its place: only if it passes there has it noticed
anything. A guard that nothing notices has survived, and the exit status is 1. `--write` keeps the table in
tests/MUTATIONS.md; with `--only` the rows of the other guards stay as they were.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Dict, List, NamedTuple

from tests.guards import GUARDS, Guard

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "MUTATIONS.md"
LONGEST = 300  # seconds for the tests of one guard; a hang is noticed too

SURVIVED = "**survived**"
_ROW = re.compile(r"^\| (?P<name>[^|]+) \| `[^|]+` \| (?P<verdict>[^|]+) \|$", re.MULTILINE)
_HEAD = """# Guards taken away, and what noticed

Written by `python -m tests.mutations --write`, which explains how; the guards are in `tests/guards.py`.

| guard | file | noticed by |
|---|---|---|
"""


class Run(NamedTuple):
    """How the tests of a guard ended."""

    status: int
    failed: str  # the first test that failed, or what ended pytest itself


def run(copy: pathlib.Path, tests: List[str]) -> Run:
    """Runs these tests in the copy, up to the first that fails."""
    chosen = "not proof" if any("::" in test for test in tests) else "not full and not proof"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", chosen]
    try:
        done = subprocess.run(
            [*command, "--timeout=60", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Run(1, f"no end within {LONGEST} s")
    found = re.findall(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if not found and done.returncode == 1:
        found = re.findall(r"Timeout.*|Fatal.*", done.stdout + done.stderr)[:1]  # pytest itself was ended
    return Run(done.returncode, found[0] if found else "")


def verdict(guard: Guard, copy: pathlib.Path) -> str:
    """The test that noticed that the guard is gone, or what stands in the table instead of one."""
    path = copy / "x402tools" / guard.file
    whole = path.read_text()
    if whole.count(guard.there) != 1:
        return "**not there any more**"
    path.write_text(whole.replace(guard.there, guard.instead))
    try:
        without = run(copy, guard.tests.split())
    finally:
        path.write_text(whole)
    if without.status == 0:
        return SURVIVED
    if not without.failed:
        return f"**pytest ended with {without.status}**"
    if "::" in without.failed and run(copy, [without.failed]).status != 0:
        return f"**{without.failed} fails with the guard too**"
    return without.failed


def rows() -> Dict[str, str]:
    """What the table says of each guard, by its name."""
    text = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    return {row["name"]: row["verdict"] for row in _ROW.finditer(text) if row["name"] != "guard"}


def write(verdicts: Dict[str, str]) -> None:
    """The table, in the order of the guards."""
    lines = [
        f"| {guard.name} | `{guard.file}` | {verdicts[guard.name]} |" for guard in GUARDS if guard.name in verdicts
    ]
    bad = sum("**" in line for line in lines)
    TABLE.write_text(f"{_HEAD}" + "\n".join(lines) + f"\n\n{len(lines)} guards, {bad} survived.\n", encoding="utf-8")


def main() -> int:
    """The exit status: 0 when every guard was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", metavar="WORD", help="guards whose name has this in it; repeatable")
    parser.add_argument("--write", action="store_true", help="keep the table in tests/MUTATIONS.md")
    parser.add_argument("--again", action="store_true", help="only the guards that the table does not have as noticed")
    options = parser.parse_args()
    # Ignored where this was started in the background, and then by every program of the tests, which Ctrl-C is to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    words = options.only or [""]
    chosen = [guard for guard in GUARDS if any(word in guard.name for word in words)]
    if options.again:
        chosen = [guard for guard in chosen if "**" in rows().get(guard.name, "**")]
    found: Dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="x402tools-mutations-") as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".matrix", "__pycache__", "dist"))
        for guard in chosen:
            began = time.monotonic()
            found[guard.name] = verdict(guard, copy).replace("|", "/")
            print(f"| {guard.name} | `{guard.file}` | {found[guard.name]} |", flush=True)
            print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
            if options.write:
                write({**rows(), **found})
    survivors = [name for name, what in found.items() if "**" in what]
    print(f"\n{len(chosen)} guards, {len(survivors)} survived{': ' + ', '.join(survivors) if survivors else ''}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
