"""A web service in processes of its own, stopped (SIGSTOP) while others are measured, and the load that drives it."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional

from benchmarks.harness.cores import group_cpu
from benchmarks.harness.figures import percentile

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LOAD = pathlib.Path(__file__).with_name("load.py")
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


class NotServing(Exception):
    """The service did not answer."""


class WebServer:
    """A service; a context manager.

    Args:
        command: what serves, after the interpreter; "{port}" stands for the port.
        environment: what is added to the environment.
        path: what is asked for.
    """

    def __init__(self, command: List[str], environment: Dict[str, str], path: str) -> None:
        self.path = path
        self.port = _free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, *[part.format(port=self.port) for part in command]],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that master and workers can be stopped together
        )

    def wait(self, seconds: float = 60.0) -> None:
        """Until it answers.

        Raises:
            NotServing: it did not; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", self.path)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(0.1)
        self._log.seek(0)
        raise NotServing(self._log.read().decode(errors="replace")[-500:])

    def cpu(self) -> Optional[float]:
        """CPU seconds that all its processes have used; None where that is not told."""
        return group_cpu(self._process.pid)

    def pause(self) -> None:
        """Stops all its processes where they are."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them run again."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ends them."""
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self._process.pid, signal.SIGCONT)
                os.killpg(self._process.pid, number)
                self._process.wait(patience)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._log.close()

    def __enter__(self) -> WebServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def drive(server: WebServer, seconds: float, connections: int) -> Dict[str, Any]:
    """Asks as fast as it answers, over so many connections.

    Returns:
        requests a second, p50 and p99 in microseconds, answers that were not 2xx, and CPU microseconds of the service
        a request (None where that is not told).
    """
    before, began = server.cpu(), time.monotonic()
    found = _wrk(server, seconds, connections) if has_wrk() else warm_up(server, seconds, connections)
    after, took = server.cpu(), time.monotonic() - began
    used = None if before is None or after is None else after - before
    return {**found, "cpu": None if used is None else used / max(found["rate"] * took, 1) * 1e6}


def warm_up(server: WebServer, seconds: float, connections: int) -> Dict[str, Any]:
    """The same without wrk, which cannot take less than a second."""
    request = f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        command = [sys.executable, str(_LOAD), "127.0.0.1", str(server.port), file.name]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, check=True)
    found = json.loads(done.stdout)
    ordered = sorted(found["latencies"])
    return {
        "rate": found["requests"] / found["seconds"],
        "p50": percentile(ordered, 50),
        "p99": percentile(ordered, 99),
        "errors": found["errors"],
    }


def _wrk(server: WebServer, seconds: float, connections: int) -> Dict[str, Any]:
    # wrk takes whole seconds only.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency", "--timeout", "10s"]
    command.append(f"http://127.0.0.1:{server.port}{server.path}")
    return parse_wrk(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse_wrk(text: str) -> Dict[str, Any]:
    """The figures in what wrk prints."""

    def latency(percent: int) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
        assert found, text
        return float(found.group(1)) * _UNITS[found.group(2)]

    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate, text
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    late = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = (int(bad.group(1)) if bad else 0) + (sum(int(one) for one in late.groups()) if late else 0)
    return {"rate": float(rate.group(1)), "p50": latency(50), "p99": latency(99), "errors": errors}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
