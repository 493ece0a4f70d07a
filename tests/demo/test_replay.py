"""The demo with a file of the user's own events."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Dict, List, Optional

import pytest

from x402tools.demo import usage_file
from x402tools.demo.usage_file import BadLine, UsageLine
from x402tools.testing import Emulator

DEADLINE = 60.0  # seconds


def report(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """The command, ended, with these arguments and variables of the environment."""
    words = [sys.executable, "-m", "x402tools.demo", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("X402TOOLS_")}
    return subprocess.run(
        words, check=False, env={**kept, **environment}, capture_output=True, text=True, timeout=DEADLINE
    )


def written(path: pathlib.Path, *events: Any) -> pathlib.Path:
    path.write_text("".join((event if isinstance(event, str) else json.dumps(event)) + "\n" for event in events))
    return path


def event(envelope_id: str, amount: Any, metadata: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    return {"envelope_id": envelope_id, "amount": amount, "metadata": metadata}


def test_a_good_file(tmp_path: pathlib.Path) -> None:
    """Every event of a good file is billed to its envelope, equal lines too, and the exit code is 0."""
    path = written(tmp_path / "usage.ndjson", event("a", 5, {"x": [1]}), event("a", 5, {"x": [1]}), event("b ü", 0), "")

    ended = report("--file", path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = [line.split() for line in ended.stdout.splitlines()]
    assert ["a", "2", "10", "2", "10", "0", "0"] in figures
    assert ["b", "ü", "1", "0", "1", "0", "0", "0"] in figures
    assert ["all", "3", "10", "3", "10", "0", "0"] in figures
    assert "Proved: each of the 3 events" in ended.stdout


def test_bad_lines(tmp_path: pathlib.Path) -> None:
    """Bad lines are told with their number and reason, the good ones are billed, and the exit code is 1."""
    path = written(tmp_path / "usage.ndjson", event("a", 1), event("a", -1), "{", event("b", 1.5), event("a", 1))

    ended = report("--file", path)

    assert ended.returncode == 1
    assert "line 2: amount must be from 0" in ended.stdout
    assert "line 3: is not JSON" in ended.stdout
    assert "line 4: amount must be an int" in ended.stdout
    assert ["a", "2", "2", "2", "2", "0", "0"] in [line.split() for line in ended.stdout.splitlines()]
    assert "3 of 5 lines were bad" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_many_bad_lines_are_counted(tmp_path: pathlib.Path) -> None:
    """Beyond the first ten, bad lines are only counted."""
    path = written(tmp_path / "usage.ndjson", event("a", 1), *["nonsense"] * 500)

    ended = report("--file", path)

    assert ended.stdout.count("is not JSON") == 10
    assert "500 of 501 lines were bad" in ended.stdout


def test_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    """A missing file is one line on stderr and exit code 1, without a traceback."""
    ended = report("--file", tmp_path / "none.ndjson")

    assert ended.returncode == 1
    assert "none.ndjson" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    """A folder to keep that has something in it is left as it is."""
    path = written(tmp_path / "usage.ndjson", event("a", 1))

    ended = report("--file", path, "--keep", tmp_path)

    assert ended.returncode == 1
    assert "is not empty" in ended.stderr
    assert os.listdir(tmp_path) == ["usage.ndjson"]


@pytest.mark.parametrize("arguments", [(), ("--file", "x"), ("--keep", "x"), ("--file", "x", "--keep", "y")])
def test_live_guesses_nothing(tmp_path: pathlib.Path, arguments: List[str]) -> None:
    """--live without a file, a folder, or an address and a key in the environment is refused with exit code 2."""
    ended = report("--live", *arguments, X402TOOLS_API_KEY="sk_key")

    assert ended.returncode == 2
    assert "--live needs" in ended.stderr or "it needs --file" in ended.stderr


def test_live_twice_bills_once(tmp_path: pathlib.Path) -> None:
    """A file reported live twice is billed once by a service that honours keys, and makes no envelopes there."""
    with Emulator() as service:
        envelope = service.create_envelope()
        path = written(tmp_path / "usage.ndjson", event(envelope, 4), event(envelope, 4))
        there = {"X402TOOLS_BASE_URL": service.base_url, "X402TOOLS_API_KEY": service.api_key}

        first = report("--live", "--file", path, "--keep", tmp_path / "one", **there)
        second = report("--live", "--file", path, "--keep", tmp_path / "two", **there)
        ledger = service.ledger()

    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout
    assert (ledger.events, ledger.units, ledger.repeats_dropped) == (2, 8, 2)


def test_live_with_an_unknown_envelope(tmp_path: pathlib.Path) -> None:
    """An envelope that the service does not know is told with its reason, and the exit code is 1."""
    path = written(tmp_path / "usage.ndjson", event("env_nobody", 4))
    with Emulator() as service:
        there = {"X402TOOLS_BASE_URL": service.base_url, "X402TOOLS_API_KEY": service.api_key}

        ended = report("--live", "--file", path, "--keep", tmp_path / "one", **there)

    assert ended.returncode == 1
    assert "refused: env_nobody 4: " in ended.stdout
    assert "- 1 event was refused for good" in ended.stdout


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"envelope_id": "a", "amount": 1, "amount": 2}', "names a field twice"),
        ('{"envelope_id": "a", "amount": 1, "metadata": {"k": 1, "k": 2}}', "names a field twice"),
        ('{"envelope_id": "a", "amount": NaN}', "is not JSON: NaN"),
        ('{"envelope_id": "a", "amount": ' + "9" * 31 + "}", "has a number of more than 30 digits"),
        ('{"envelope_id": "a"}', "has no amount"),
        ('{"amount": 1}', "has no envelope_id"),
        ('{"envelope_id": "a", "amount": 1, "timestamp": 1}', "has an unknown field 'timestamp': put it into metadata"),
        ("[" * 100_000, "is nested too deeply"),
        ("[]", 'is not a JSON object like {"envelope_id": "env_1", "amount": 1}'),
    ],
)
def test_lines_that_are_no_event(tmp_path: pathlib.Path, line: str, reason: str) -> None:
    """What could be read in two ways, or would take for ever, is a bad line with the reason."""
    path = written(tmp_path / "usage.ndjson", line)

    assert list(usage_file.read(str(path))) == [BadLine(1, reason)]


def test_lines_too_long_are_skipped(tmp_path: pathlib.Path) -> None:
    """A line longer than the limit is bad, is never held whole, and the lines after it keep their numbers."""
    path = tmp_path / "usage.ndjson"
    good = b'{"envelope_id": "a", "amount": 1}'
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + b"x" * (3 * usage_file.LONGEST_LINE) + b"\n\n\xff\n" + good)

    lines = list(usage_file.read(str(path)))

    assert lines == [
        UsageLine(1, "a", 1, None),
        BadLine(2, "is longer than 524,288 bytes"),
        BadLine(4, "is not UTF-8"),
        UsageLine(5, "a", 1, None),
    ]
