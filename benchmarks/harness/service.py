"""The sink as the sections hold it: a process of its own, started and asked from here."""

from __future__ import annotations

import http.client
import json
import pathlib
import subprocess
import sys
import time
from typing import Any, Callable, Dict

_PROGRAM = pathlib.Path(__file__).with_name("sink.py")
NOTHING: Dict[str, Any] = {"posts": 0, "events": 0, "units": 0, "repeated": 0, "first": None, "last": None}


class Service:
    """A sink; a context manager.

    Args:
        delay: seconds between a POST and its answer.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), "--delay", str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def url(self, name: str) -> str:
        """Where the contestant of this name sends to."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def report(self) -> Dict[str, Any]:
        """The tallies, and the CPU seconds that the sink has used."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/report")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def tally(self, name: str) -> Dict[str, Any]:
        """What arrived under the name."""
        return self.report()["tallies"].get(name, NOTHING)

    def wait_for(self, name: str, enough: Callable[[Dict[str, Any]], bool], timeout: float) -> Dict[str, Any]:
        """The tally of the name once it is enough, or as it is after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            tally = self.tally(name)
            if enough(tally) or time.monotonic() > deadline:
                return tally
            time.sleep(0.05)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
