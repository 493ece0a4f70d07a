"""F3 and F4 of the fault catalogue: gunicorn with its workers, for real, driven over HTTP, judged by the ledger."""

from __future__ import annotations

import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, List, Set, Tuple

import pytest

from tests.faults.process_child import ROOT, SECONDS, check_conservation, deliver_rest, until
from x402tools.testing import Emulator

pytest.importorskip("gunicorn", reason="the servers are in the extra `demo`")
pytestmark = pytest.mark.full  # a minute of starting and ending servers

APPLICATION = """
import os
from x402tools import UsageBuffer, X402Client
client = X402Client("sk_emulator", os.environ["BASE_URL"], buffer=UsageBuffer(os.environ["SPOOL"], exit_timeout=1))
def application(environ, start):
    usage = client.record_usage(os.environ["ENVELOPE"], 1)
    start("200 OK", [("Content-Type", "text/plain")])
    return [usage.id.encode()]
"""


def ask(port: int) -> str:
    """One request; the id of what it recorded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


def is_up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


def drive(port: int, requests: int, answered: Set[str], unsure: List[int]) -> None:
    """So many requests from four threads; one that meets a worker on its way out may or may not have recorded."""

    def some() -> None:
        for _ in range(requests // 4):
            try:
                answered.add(ask(port))
            except (OSError, http.client.HTTPException):
                unsure.append(1)

    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a request hangs"


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_F03_F04_gunicorn(worker: str, preload: Tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """Requests, a reload, more requests, an end: each answered one is delivered once, by whichever worker."""
    if worker == "gevent":
        pytest.importorskip("gevent", reason="gevent has no release for this Python")
    (tmp_path / "metered.py").write_text(APPLICATION, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answered: Set[str] = set()
    unsure: List[int] = []
    with Emulator() as emulator:
        environment = {
            **os.environ, "BASE_URL": emulator.base_url, "SPOOL": str(tmp_path / "usage.db"),
            "ENVELOPE": emulator.create_envelope(), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        }  # fmt: skip
        options = ["-w", "2", "-k", worker, "--threads", "2" if worker == "gthread" else "1", *preload]
        options += [
            "-b",
            f"127.0.0.1:{port}",
            "--max-requests",
            "60",
            "--graceful-timeout",
            "4",
            "--log-level",
            "error",
        ]
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "metered:application"], cwd=tmp_path, env=environment,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            until(lambda: is_up(port), "the server is up")
            drive(port, 200, answered, unsure)
            server.send_signal(signal.SIGHUP)
            drive(port, 100, answered, unsure)
            until(lambda: emulator.ledger().events >= len(answered), "delivered while it runs", 15)
            drive(port, 40, answered, unsure)
            server.send_signal(signal.SIGTERM)
            errors = finish(server)
        finally:
            server.kill()
            server.wait(SECONDS)
        deliver_rest(tmp_path / "usage.db", emulator)

        assert len(answered) > 300, errors
        check_conservation(emulator, answered, unsure=len(unsure))
        assert emulator.ledger().repeats_dropped <= 16  # of deliverers that were ended while they sent


def finish(server: Any) -> str:
    """Its end, in time; what it said on stderr."""
    try:
        _, errors = server.communicate(timeout=12)
    except subprocess.TimeoutExpired:
        raise AssertionError("the server does not end") from None
    return str(errors.decode())
