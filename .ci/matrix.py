"""The test suite on every CPython from 3.8 on that this machine has, and once with the oldest dependencies.

Each run has its own virtual environment, log and figures under .matrix/. Exits 1 when a run failed, and also when a
Python 3.8 is there and did not run: the oldest version promised is the one most easily broken.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import List, NamedTuple, Optional, Tuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".matrix"
FIGURES = FOLDER / "figures"
SUITE = ROOT / ".ci" / "suite.py"
AT_ONCE = 2  # runs: most tests wait, so that one of them does not keep the cores busy
# Minutes of processes that are killed, and of programs that are started: on the oldest Python and on the newest.
SLOW = (
    *("tests/faults", "tests/demo", "tests/cli", "tests/stores", "tests/benchmarks", "tests/test_readme.py"),
    *("tests/emulator", "tests/testing"),
)
CONSTRAINTS = ROOT / "tests" / "constraints-oldest.txt"
# What meets a dependency; the rest has run on this Python with the newest ones.
OF_DEPENDENCIES = (
    *("tests/client", "tests/aio", "tests/emulator", "tests/testing", "tests/observability", "tests/packaging"),
    *("tests/cli/test_output.py", "tests/cli/test_buffer.py"),
    *("tests/stores/test_redis_store.py", "tests/stores/test_partitions.py"),
    *(f"tests/buffer/test_{name}.py" for name in ("connection", "spool", "durability", "processes", "exit", "stores")),
    "tests/buffer/test_flush_and_close.py",
)

OLDEST = "3.8"
# As in the classifiers of pyproject.toml; one that the machine lacks is named at the end, not failed.
PROMISED = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")

# Seconds for one whole run. Single tests have their own deadline; this one is for what is outside of tests.
RUN_TIMEOUT = 900


class Run(NamedTuple):
    """One run of the suite: on which interpreter, and with which set of dependencies."""

    name: str
    version: str
    python: str
    constraints: Optional[pathlib.Path] = None

    @property
    def extras(self) -> str:
        """The frameworks that metering is tested in come with the oldest Python; `make test` has them on the newest."""
        return "test,test-web" if self.name == OLDEST else "test"


class Outcome(NamedTuple):
    """How a part of a run ended; `summary` is pytest's own last line, or what kept it from running."""

    run: Run
    part: str
    passed: bool
    summary: str
    seconds: float
    log: pathlib.Path


def pythons() -> List[Tuple[str, str]]:
    """(minor version, path) of each interpreter found, newest first."""
    lines = subprocess.run([str(ROOT / ".ci" / "find-python")], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [(line.split(" ", 2)[0], line.split(" ", 2)[2]) for line in lines.splitlines()]


def planned(found: List[Tuple[str, str]], skip: List[str]) -> List[Run]:
    """What is to run, oldest first: the old versions are the ones that break."""
    runs = [Run(version, version, python) for version, python in reversed(found) if version not in skip]
    oldest = [Run(f"{version}-oldest", version, python, CONSTRAINTS) for version, python in found if version == OLDEST]
    return oldest + runs


def chosen(run: Run) -> List[str]:
    """Which tests to run, in pytest's words; none for all."""
    if run.name == OLDEST:
        return []
    return list(OF_DEPENDENCIES) if run.constraints else [f"--ignore={path}" for path in SLOW]


def prepare(run: Run, log_path: pathlib.Path) -> pathlib.Path:
    """The interpreter of the run's environment, made anew when pyproject.toml or the constraints changed."""
    environment = FOLDER / run.name
    python = environment / "bin" / "python"
    wanted = hashlib.sha256((run.python + run.extras).encode() + (ROOT / "pyproject.toml").read_bytes())
    wanted.update(run.constraints.read_bytes() if run.constraints else b"")
    stamp = environment / "installed"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return python

    shutil.rmtree(environment, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "-qq"]
    constrained = ["--constraint", str(run.constraints)] if run.constraints else []
    with log_path.open("a") as log:
        for command in (
            [run.python, "-m", "venv", str(environment)],
            [*pip, "--upgrade", "pip"],
            [*pip, "--editable", f".[{run.extras}]", *constrained],
            [str(python), "-m", "pip", "freeze", "--exclude-editable"],
        ):
            subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stamp.write_text(wanted.hexdigest())
    return python


def prepare_all(runs: List[Run]) -> None:
    """Installing mostly waits, so all at once. What fails here fails again in its run, and is reported there."""
    with concurrent.futures.ThreadPoolExecutor(len(runs) or 1) as pool:
        concurrent.futures.wait([pool.submit(prepare, run, FOLDER / f"{run.name}.install.log") for run in runs])


def execute(run: Run, part: str, arguments: List[str]) -> Outcome:
    """One part of the suite in the environment of the run; never raises for a failure of it."""
    started = time.monotonic()
    log_path = FOLDER / f"{run.name}-{part}.log"
    log_path.write_text("")
    summary = ""
    passed = False
    try:
        python = prepare(run, log_path)
        # Each Python would find the other's last failures in the cache.
        command = [str(python), str(SUITE), "--part", part, "--figures", str(FIGURES / run.name)]
        with log_path.open("a") as log:
            status = subprocess.run(
                [*command, "-p", "no:cacheprovider", *arguments],
                cwd=ROOT,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=RUN_TIMEOUT,
            )
        passed = status.returncode == 0
        closing = re.findall(
            r"^=* ?(\d+ (?:passed|failed|error).*? in [\d.]+s).*$", log_path.read_text(errors="replace"), re.MULTILINE
        )
        summary = "; ".join(closing) or f"status {status.returncode}, and no figures"
    except subprocess.CalledProcessError as error:
        summary = f"could not be installed: {' '.join(map(str, error.cmd))} ended with status {error.returncode}"
    except subprocess.TimeoutExpired:
        summary = f"not done after {RUN_TIMEOUT} s, stopped"
    return Outcome(run, part, passed, summary, time.monotonic() - started, log_path)


def report(outcome: Outcome) -> None:
    """The run's summary on one line, and the whole log when it failed."""
    verdict = "ok  " if outcome.passed else "FAIL"
    print(f"{verdict} {outcome.run.name:<11} {outcome.part:<8} {outcome.seconds:5.0f} s  {outcome.summary}", flush=True)
    if not outcome.passed:
        print(f"---- {outcome.log.relative_to(ROOT)} ----")
        print(outcome.log.read_text(errors="replace"))
        print(f"---- end of {outcome.log.relative_to(ROOT)} ----", flush=True)


def main() -> int:
    """The exit status: 0 when everything that could run ran and passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--skip", action="append", default=[], metavar="X.Y", help="a version that ran already")
    parser.add_argument("--full", action="store_true", help="run the tests marked `full` too")
    parser.add_argument("pytest_args", nargs="*", help="handed on to the suite, after --")
    options = parser.parse_args()

    found = pythons()
    runs = planned(found, options.skip)
    FIGURES.mkdir(parents=True, exist_ok=True)
    arguments = ["--quiet", "--reruns=1", "-rR", *options.pytest_args]
    if not options.full:
        arguments += ["--without", "full"]
        print(
            "Without the tests marked `full`: their size, not the Python, is what they test; `make test` ran them.\n"
            f"On the oldest Python here, and on the newest in `make test`, but not on the others: {', '.join(SLOW)}, "
            "and the tests marked `alone`; with the oldest dependencies, what meets one"
        )
    print(f"To run: {', '.join(run.name for run in runs)}", flush=True)

    prepare_all(runs)
    less = {run: [] if options.full else chosen(run) for run in runs}
    workers = ["--workers", str(2 * (os.cpu_count() or 1))]
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for outcome in pool.map(lambda run: execute(run, "together", arguments + workers + less[run]), runs):
            outcomes.append(outcome)
            report(outcome)
    # What measures short times runs by itself.
    for run in [run for run in runs if not less[run]]:
        outcomes.append(execute(run, "alone", arguments + less[run]))
        report(outcomes[-1])

    here = [version for version, _ in found]
    print(f"Pythons that ran here: {', '.join(run.name for run in runs) or 'none'}")
    print(f"Pythons that ran before: {', '.join(v for v in options.skip if v in here) or 'none'}")
    print(f"Pythons promised, but not on this machine: {', '.join(v for v in PROMISED if v not in here) or 'none'}")
    # As the only Python here it is also the newest, which the caller may have run already.
    oldest_ran = OLDEST not in here or here == [OLDEST] or any(outcome.run.name == OLDEST for outcome in outcomes)
    if not oldest_ran:
        print(f"FAIL Python {OLDEST} is here and did not run")
    return 0 if oldest_ran and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
