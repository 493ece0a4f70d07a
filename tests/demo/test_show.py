"""The whole show, short: a metered service under load, faults and kills, and its bill."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple, Set

import pytest

DEADLINE = 100.0  # seconds


class Run(NamedTuple):
    """A run that has ended."""

    code: int
    output: str
    folder: pathlib.Path


def command(*arguments: object) -> List[str]:
    return [sys.executable, "-m", "x402tools.demo", *map(str, arguments)]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of a few seconds, its output in a pipe."""
    folder = tmp_path_factory.mktemp("show") / "kept"
    words = command("--seconds", 8, "--rate", 120, "--keep", folder)
    ended = subprocess.run(
        words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE
    )
    return Run(ended.returncode, ended.stdout, folder)


def finished_requests(folder: pathlib.Path) -> Dict[str, List[str]]:
    """Envelope and amount by request id, of the requests of which the access log says that they were recorded."""
    lines = [line.split() for line in (folder / "access.log").read_text().splitlines()]
    done = {words[3] for words in lines if words[2] == "done"}
    return {words[3]: words[4:] for words in lines if words[2] == "begin" and words[3] in done}


def left_over(folder: pathlib.Path, output: str) -> Set[int]:
    """Processes of the run that still live."""
    log = (folder / "gunicorn.log").read_text()
    pids = {int(pid) for pid in re.findall(r"\[(\d+)\] \[INFO\]", log) + re.findall(r"\(process (\d+)\)", output)}
    assert pids
    return {pid for pid in pids if is_alive(pid)}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.full
def test_the_bill_is_right(short_run: Run) -> None:
    """A run with faults and kills ends with figures that agree and with exit code 0."""
    assert short_run.code == 0, short_run.output
    assert "Proved: " in short_run.output
    assert re.search(r"Missing +0; allowed: 0", short_run.output)


@pytest.mark.full
def test_every_request_is_booked_once(short_run: Run) -> None:
    """The emulator's own database has each request of the access log once, with its envelope and amount."""
    requests = finished_requests(short_run.folder)

    with sqlite3.connect(short_run.folder / "emulator.db") as books:
        rows = books.execute("SELECT json_extract(metadata, '$.request_id'), envelope_id, amount FROM usage").fetchall()
    books.close()

    assert len(requests) > 100
    times = Counter(row[0] for row in rows)
    assert set(times.values()) == {1}
    booked = {row[0]: [row[1], str(row[2])] for row in rows}
    assert {request_id: booked.get(request_id) for request_id in requests} == requests


@pytest.mark.full
def test_everything_was_killed_that_should_be(short_run: Run) -> None:
    """The run kills a worker that delivers, another one and the emulator, and each is replaced."""
    notes = [line for line in short_run.output.splitlines() if "**" in line]

    assert len(notes) == 4, short_run.output
    assert len(re.findall(r"worker \d+: replaced by \d+", short_run.output)) == 2
    assert re.search(r"; \d+ delivers, \d+\.\d s later", short_run.output)


@pytest.mark.full
def test_a_pipe_gets_plain_lines(short_run: Run) -> None:
    """In a pipe there are no escape codes, no carriage returns and no line beyond 80 columns."""
    assert "\x1b" not in short_run.output
    assert "\r" not in short_run.output
    assert max(map(len, short_run.output.splitlines())) <= 80


@pytest.mark.full
def test_nothing_is_left_running(short_run: Run) -> None:
    """When the command has ended, so have gunicorn, all its workers and the emulator."""
    assert left_over(short_run.folder, short_run.output) == set()


@pytest.fixture
def running(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen]:
    """A run that has just begun; its folder is `kept`."""
    words = command("--seconds", 60, "--rate", 50, "--keep", tmp_path / "kept")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as popen:
        yield popen
        popen.kill()


def test_an_interrupted_run_leaves_nothing_running(running: subprocess.Popen, tmp_path: pathlib.Path) -> None:
    """Ctrl-C in the middle ends gunicorn, its workers and the emulator, says so, and exits with 130."""
    served = (line for line in running.stdout if re.match(r" +[1-9]\d* s +[1-9]", line))
    assert next(served)

    running.send_signal(signal.SIGINT)
    rest = running.stdout.read()
    code = running.wait(DEADLINE)

    assert code == 130, rest
    assert "Interrupted" in rest
    assert left_over(tmp_path / "kept", rest) == set()
    # Exclusive while an emulator has it open, so this would fail.
    with sqlite3.connect(tmp_path / "kept" / "emulator.db", timeout=0) as books:
        assert books.execute("SELECT count(*) FROM envelopes").fetchone() == (5,)
    books.close()
