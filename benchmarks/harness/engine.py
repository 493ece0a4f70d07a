"""A Redis server of the sections' own: started on a free port, asked for its CPU and memory, and ended.

Nothing but a socket is used to talk to it, so that it can be asked where no client library is installed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from typing import Dict, Optional, Tuple

MISSING = "no redis-server on the path (Debian and Ubuntu: apt-get install redis-server)"
_PROGRAMS = ("redis-server", "valkey-server")
_PATIENCE = 20.0  # seconds until it has to answer


def program() -> Optional[str]:
    """Where a server is, or None."""
    return next((found for found in map(shutil.which, _PROGRAMS) if found), None)


class EngineError(Exception):
    """It did not start, or answered with an error."""


class Engine:
    """A server with an append-only file that is synced once a second, as one would be run for this; a context manager.

    Args:
        folder: for its files; on the disk of the checkout, or syncing would be free.

    Raises:
        EngineError: there is no server, or it does not answer.
    """

    def __init__(self, folder: str) -> None:
        found = program()
        if found is None:
            raise EngineError(MISSING)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
        settings.update(appendfsync="everysec", daemonize="no", loglevel="warning")
        settings["maxmemory-policy"] = "noeviction"
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [found, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self._wait()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cpu(self) -> float:
        """CPU seconds that it has used, without those of processes that rewrite its file."""
        info = self.info()
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def memory(self) -> int:
        """Bytes that its data takes, as it counts them."""
        return int(self.info()["used_memory"])

    def version(self) -> str:
        info = self.info()
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def info(self) -> Dict[str, str]:
        """Everything that INFO tells."""
        lines = self.ask("INFO").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def empty(self) -> None:
        """Removes everything that is in it."""
        self.ask("FLUSHALL")

    def ask(self, command: str) -> bytes:
        """Sends a command without arguments, or with plain ones; returns the answer's text.

        Raises:
            EngineError: it answered with an error.
            OSError: it does not answer.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as answers:
                head = answers.readline().rstrip()
                if head.startswith(b"-"):
                    raise EngineError(head[1:].decode())
                return answers.read(int(head[1:])) if head.startswith(b"$") else head[1:]

    def close(self) -> None:
        """Ends it; nothing is kept."""
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.ask("PING")
                return
            except (OSError, EngineError, ValueError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise EngineError(f"redis-server did not start: {error}") from error
                time.sleep(0.02)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def opened(folder: str) -> Tuple[Optional[Engine], str]:
    """A server, or None and why there is none."""
    try:
        return Engine(folder), ""
    except EngineError as error:
        return None, str(error)


def has_room(needed: int) -> bool:
    """Whether the machine has so many bytes of memory to spare."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") > needed
