"""The emulator as a process: its command line, its death, and what outlives it."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any, List
from urllib.parse import urlsplit

import pytest

from tests.emulator.wire import ask, dial, raw_post, record
from x402tools.testing import Emulator, EmulatorError

SECONDS = 20.0
ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_what_was_answered_survives_sigkill(tmp_path: pathlib.Path) -> None:
    """Usage, envelopes, keys, the idempotency memory and its counters are there again, on the same port."""
    with Emulator(process=True, db=tmp_path / "books.db") as emulator:
        address = emulator.base_url
        envelope_id = emulator.create_envelope(limit=100)
        key = ask(emulator, "POST", "/api-keys", {"name": "n"}).json["key"]
        first = record(emulator, envelope_id, 60, key="k")
        record(emulator, envelope_id, 60, key="k")
        before = emulator.ledger()

        emulator.kill()
        emulator.restart()

        after = emulator.ledger()
        assert emulator.base_url == address
        assert after == before._replace(requests=0)
        assert record(emulator, envelope_id, 60, key="k", api_key=key).body == first.body
        assert record(emulator, envelope_id, 41).status == 402
        assert emulator.ledger().repeats_dropped == 2


def test_no_answered_record_is_lost_to_a_kill_under_load(tmp_path: pathlib.Path) -> None:
    """Killed while four clients post: every record that was answered is booked, and at most one each that was not."""
    clients = 4
    with Emulator(process=True, db=tmp_path / "books.db") as emulator:
        envelope_id = emulator.create_envelope()
        answered: List[str] = []
        enough = threading.Event()

        def post() -> None:
            while True:
                try:
                    answered.append(record(emulator, envelope_id).json["id"])
                except (OSError, http.client.HTTPException):  # the kill came before or amid the answer
                    return
                if len(answered) >= 100:
                    enough.set()

        threads = [threading.Thread(target=post) for _ in range(clients)]
        for thread in threads:
            thread.start()
        assert enough.wait(SECONDS)

        emulator.kill()
        for thread in threads:
            thread.join(SECONDS)
        emulator.restart()

        booked = {event.id for event in emulator.events()}
        assert set(answered) <= booked
        assert len(booked) <= len(answered) + clients


def test_it_comes_back_on_its_port_with_connections_left_open(tmp_path: pathlib.Path) -> None:
    """Half-dead connections of the killed one do not keep the next one from the port."""
    with Emulator(process=True, db=tmp_path / "books.db") as emulator:
        envelope_id = emulator.create_envelope()
        with dial(emulator) as connection:
            connection.sendall(raw_post(emulator, envelope_id, "hang;seconds=60"))
            for _ in range(3):
                emulator.kill()
                emulator.restart()

            assert record(emulator, envelope_id).status == 201


def test_a_thread_with_a_file_comes_back_too(tmp_path: pathlib.Path) -> None:
    """stop() and start() again, on the same port, with everything booked."""
    with Emulator(db=tmp_path / "books.db") as emulator:
        address = emulator.base_url
        record(emulator, emulator.create_envelope(), 3)

        emulator.restart()

        assert (emulator.base_url, emulator.ledger().units) == (address, 3)


def test_two_emulators_do_not_share_a_file(tmp_path: pathlib.Path) -> None:
    """The second is refused, for it would not know of the first one's sums."""
    with Emulator(db=tmp_path / "books.db"), pytest.raises(EmulatorError, match="no other emulator using it"):
        Emulator(db=tmp_path / "books.db").start()


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "x402tools.emulator", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _get(base_url: str, path: str, api_key: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=SECONDS)
    connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"})
    document = json.loads(connection.getresponse().read())
    connection.close()
    return document


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    """It prints one line of JSON once it accepts connections, nothing else, and ends with 0."""
    with _start("--json", "--api-key", "sk_mine") as process:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert _get(line["base_url"], "/envelopes", "sk_mine") == []

        process.send_signal(number)
        rest, errors = process.communicate(timeout=SECONDS)

    assert line == {"base_url": line["base_url"], "api_key": "sk_mine", "pid": process.pid}
    assert line["base_url"].startswith("http://127.0.0.1:")
    assert (process.returncode, rest, errors) == (0, b"", b"")


def test_the_demo_has_something_to_look_at() -> None:
    """For people it prints one line with the address and a ready key."""
    with _start("--demo") as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode("utf-8")
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        stats = _get(words["base_url"], "/usage/stats", words["api_key"])
        process.terminate()

    assert stats["envelopeCount"] > stats["activeEnvelopes"] > 1
    assert stats["totalUsage"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fault", "nonsense"], "kind must be one of"),
        (["--choice", "nothing=1"], "no such choice"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--db", "/nowhere/books.db"], "cannot open '/nowhere/books.db'"),
    ],
)
def test_it_says_why_it_cannot_start(arguments: List[str], reason: str) -> None:
    """On stderr, in a line and without a traceback, and ends with 2."""
    with _start(*arguments) as process:
        output, errors = process.communicate(timeout=SECONDS)

    assert (process.returncode, output) == (2, b"")
    assert errors.startswith(b"x402 emulator: ")
    assert reason in errors.decode("utf-8")
    assert b"Traceback" not in errors


def test_without_the_extra_it_says_what_to_install() -> None:
    """Where Starlette is missing the message is the command, also from x402tools.testing."""
    program = """
import sys
sys.modules["starlette"] = None
from x402tools.emulator import server
from x402tools.testing import Emulator
assert server.main(["--port", "0"]) == 2
try:
    Emulator().start()
except ImportError as error:
    assert str(error) == 'pip install "x402tools[emulator]"', error
else:
    raise AssertionError("it started")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, timeout=SECONDS, check=False
    )

    assert finished.returncode == 0, finished.stderr.decode()
    assert finished.stderr.decode().strip() == 'x402 emulator: pip install "x402tools[emulator]"'


def test_it_knows_nothing_of_the_client() -> None:
    """No module of the emulator imports anything of the package but the emulator, nor does what a test hands it. The
    recording client of x402tools.testing is a client, and is imported when somebody asks for it."""
    package = ROOT / "x402tools"
    files = [*(package / "emulator").glob("*.py"), package / "testing.py", package / "_faults.py"]
    allowed = ("from x402tools.emulator", "from x402tools._faults", "from x402tools._recording import RecordingClient")
    imports = [
        line.strip()
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith(("from x402tools", "import x402tools"))
    ]
    code = "import sys, x402tools.testing; print('x402tools.client' in sys.modules or 'requests' in sys.modules)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    assert imports
    assert [line for line in imports if not line.startswith(allowed)] == []
    assert found.stdout.strip() == "False"
