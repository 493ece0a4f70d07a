"""The test suite in two parts: most tests several at a time, then one by one those that measure short times.

`suite.py [--figures PREFIX] [--part together|alone] [--workers N] [pytest arguments]`, with the interpreter of the
environment to test. Leaves pytest's figures in PREFIX-together.xml and PREFIX-alone.xml. Exits with the status of the
first part that failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from typing import List, Optional

# Most tests wait for a process or a socket, so more of them than there are cores keep the cores busy.
WORKERS = 3 * (os.cpu_count() or 1)

# pytest's own status for a selection that leaves nothing to run, which is no failure of one of the two parts.
NOTHING_SELECTED = 5


def run(part: str, selection: str, figures: Optional[str], arguments: List[str], workers: int = WORKERS) -> int:
    """The status of one part."""
    command = [sys.executable, "-m", "pytest", "-m", selection]
    if part == "together":
        # By file: what a file sets up once, an emulator for example, is set up once.
        command += ["--numprocesses", str(workers), "--dist", "loadfile"]
    if figures:
        command.append(f"--junitxml={figures}-{part}.xml")
    print(f"{part}: {selection}", flush=True)
    return subprocess.run([*command, *arguments], check=False).returncode


def main() -> int:
    """The exit status of the whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--figures", metavar="PREFIX", help="where pytest's figures go")
    parser.add_argument("--without", metavar="MARK", action="append", default=["proof"], help="leave these out")
    parser.add_argument("--part", choices=("together", "alone"), help="one part of the two")
    parser.add_argument("--workers", type=int, default=WORKERS, help="tests at a time (default %(default)s)")
    parser.add_argument("--only", metavar="MARK", help="run these alone, one by one")
    options, arguments = parser.parse_known_args()
    # Ignored where this was started in the background, and then by every program of the tests, which Ctrl-C is to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    if options.only:
        return run("alone", options.only, options.figures, arguments)
    rest = "".join(f" and not {mark}" for mark in options.without)
    selections = {"together": f"not alone{rest}", "alone": f"alone{rest}"}
    parts = [options.part] if options.part else list(selections)
    statuses = [run(part, selections[part], options.figures, arguments, options.workers) for part in parts]
    if set(statuses) == {NOTHING_SELECTED}:
        return NOTHING_SELECTED
    return next((status for status in statuses if status not in (0, NOTHING_SELECTED)), 0)


if __name__ == "__main__":
    sys.exit(main())
