"""Runs a service of `apps/` under a real server, and drives it over sockets."""

from __future__ import annotations

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any, Callable, List, Tuple
from typing import Counter as CounterOf

from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator

APPS = pathlib.Path(__file__).parent / "apps"
ROOT = APPS.parent.parent.parent
HOST = "127.0.0.1"
SECONDS = 30.0  # for anything to happen on a busy machine

# What is compared: (path, status).
Line = Tuple[str, int]


class Service:
    """A server process on a port of its own. A context manager; leaving it ends the server as an operator would.

    Args:
        command: the server's own arguments, with {fd} for the listening socket.
        folder: for the log and the spool.
        emulator: where the usage goes.
    """

    def __init__(self, command: List[str], folder: pathlib.Path, emulator: Emulator) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.access_log = folder / "access.log"
        self.output = folder / "output.log"
        self.spool = folder / "usage.db"
        environment = {
            **os.environ,
            "BASE_URL": emulator.base_url,
            "SPOOL": str(self.spool),
            "ENVELOPE": emulator.create_envelope(),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(APPS)]),
            "NO_PROXY": HOST,
        }
        words = [word.format(fd=self._listener.fileno(), log=self.access_log) for word in command]
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=folder,
                env=environment,
                pass_fds=[self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def get(self, path: str) -> int:
        """One request on a connection of its own, its answer read to the end (or to where it breaks off)."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            with contextlib.suppress(http.client.HTTPException, OSError):
                response.read()
            return response.status
        finally:
            connection.close()

    def get_and_leave(self, path: str) -> int:
        """One request whose client leaves in the middle of the body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read(2048)
        status = response.status
        response.close()
        connection.close()
        return status


def until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition returns once it is true; fails when it has not become true in time."""
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not in time: {what}")


def booked(emulator: Emulator) -> CounterOf[Line]:
    """How often each (path, status) is on the bill."""
    return Counter((event.metadata["path"], event.metadata["status"]) for event in emulator.events() if event.metadata)


def logged(service: Service, path_and_status: Callable[[str], Any]) -> CounterOf[Line]:
    """How often each (path, status) is in the server's access log."""
    lines = service.access_log.read_text(encoding="utf-8").splitlines() if service.access_log.exists() else []
    return Counter(found for found in map(path_and_status, lines) if found)


def deliver_rest(service: Service, emulator: Emulator) -> None:
    """Delivers what the last processes stored and had no time to deliver."""
    deliver_to(emulator, service.spool)


def deliver_to(emulator: Emulator, spool: pathlib.Path) -> None:
    """Delivers what is left in the spool."""
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(spool)) as client:
        assert client.flush(SECONDS)
