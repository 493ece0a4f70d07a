"""Runs the emulator beside a test: in a thread of its process, or in a process of its own.

Both runners are running, and accept connections, once they are made; ``faults`` are rules in their short form.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO, Any, Dict, Mapping, Optional, Sequence

START_SECONDS = 30.0  # Far more than the half second it takes: for a machine that is busy with other tests.
STOP_SECONDS = 10.0
HOST = "127.0.0.1"


class EmulatorError(Exception):
    """The emulator did not start, is not running, or refused what a test asked of it; the message says which."""


class ThreadRunner:
    """The emulator in a daemon thread of this process."""

    def __init__(
        self, *, port: int, db: Optional[str], faults: Sequence[str], choices: Mapping[str, Any], api_key: str
    ) -> None:
        # Imported here: this module shall import without the extra, so that others can say that it is missing.
        from x402tools.emulator import app, serving
        from x402tools.emulator import faults as rules
        from x402tools.emulator.choices import Choices
        from x402tools.emulator.state import Books, BooksUnavailable

        self.pid = os.getpid()
        self._ready = threading.Event()
        try:
            script = rules.FaultScript([rules.Fault.from_text(fault) for fault in faults])
            listener = serving.listen(HOST, port)
        except (OSError, ValueError) as error:
            raise EmulatorError(str(error)) from error
        try:
            self._books = Books(db, choices=Choices().with_settings(choices), api_key=api_key)
        except (BooksUnavailable, ValueError) as error:
            listener.close()
            raise EmulatorError(str(error)) from error
        self.base_url = serving.base_url(listener)
        self._failure: Optional[BaseException] = None
        self._server = serving.Server(app.Emulator(self._books, script), on_ready=self._ready.set)
        self._thread = threading.Thread(
            target=self._serve, args=(serving.serve, listener), name="x402-emulator", daemon=True
        )
        self._thread.start()
        self._await_ready()

    def stop(self) -> None:
        self._server.stop()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            raise EmulatorError(f"the emulator's thread has not ended within {STOP_SECONDS:.0f} s")
        self._books.close()

    def _serve(self, serve: Any, listener: Any) -> None:
        try:
            serve(listener, self._server)
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: start() raises it from there
            self._failure = error
        finally:
            self._ready.set()

    def _await_ready(self) -> None:
        is_ready = self._ready.wait(START_SECONDS)
        if self._failure is not None or not is_ready:
            self._server.stop()
            raise EmulatorError(f"the emulator did not start: {self._failure or 'no answer'}") from self._failure


class ProcessRunner:
    """The emulator in a process of its own, which must be stopped: it outlives a parent that is killed."""

    def __init__(
        self, *, port: int, db: Optional[str], faults: Sequence[str], choices: Mapping[str, Any], api_key: str
    ) -> None:
        command = [sys.executable, "-m", "x402tools.emulator", "--json", "--port", str(port), "--api-key", api_key]
        if db is not None:
            command += ["--db", db]
        for fault in faults:
            command += ["--fault", fault]
        for name, value in choices.items():
            command += ["--choice", f"{name}={value}"]
        # A session of its own: Ctrl+C in a terminal is for the tests, which then stop the emulator themselves.
        self._popen = subprocess.Popen(  # noqa: S603 - this Python, and arguments that the test itself gave
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(), start_new_session=True
        )
        self.pid = self._popen.pid
        try:
            self.base_url = self._await_ready()
        except BaseException:  # Ctrl+C as well: nobody else knows of the process yet
            self._popen.kill()
            self._close()
            raise

    def stop(self) -> None:
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        self._close()

    def kill(self) -> None:
        self._popen.kill()
        self._close()

    def _await_ready(self) -> str:
        # Reading a pipe knows no time-out; killing the process ends it.
        guard = threading.Timer(START_SECONDS, self._popen.kill)
        guard.start()
        try:
            line = self._pipe(self._popen.stdout).readline()
        finally:
            guard.cancel()
        if line:
            return str(json.loads(line)["base_url"])
        reason = self._pipe(self._popen.stderr).read().decode("utf-8", "replace").strip()
        raise EmulatorError(f"the emulator did not start: {reason or 'it ended without a word'}")

    def _close(self) -> None:
        self._popen.wait()
        for pipe in (self._popen.stdout, self._popen.stderr):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: Optional[IO[bytes]]) -> IO[bytes]:
        assert pipe is not None  # Popen was given PIPE
        return pipe


def _environment() -> Dict[str, str]:
    """This process's environment, with this package importable as it is here (also from a checkout)."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
