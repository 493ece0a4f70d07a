"""Runs the command line as people do: a process, its output in a pipe or in a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any, Dict, List, NamedTuple, Optional

from tests.buffer.helpers import PATIENCE
from x402tools.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "x402tools"]
COLUMNS = 80

_DEADLINE = 60.0  # seconds for one command
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Commands in a folder, with an environment of their own."""

    def __init__(self, folder: pathlib.Path, **variables: str) -> None:
        self.folder = folder
        self.spool = str(folder / "usage.db")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("X402TOOLS_", "COV"))}
        path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
        home = folder / "home"
        home.mkdir()
        self.environment = {
            **kept,
            "PYTHONPATH": path,
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "TERM": "xterm-256color",
            "COLUMNS": "",
            "NO_COLOR": "",
            "PYTHONIOENCODING": "utf-8",
            **variables,
        }
        for name in ("COLUMNS", "NO_COLOR"):
            del self.environment[name]
        self._started: List[subprocess.Popen] = []

    def run(self, *words: object, stdin: str = "", **variables: str) -> Ended:
        """The command, ended, its output in pipes."""
        ended = subprocess.run(
            [*COMMAND, *map(str, words)],
            check=False,
            cwd=self.folder,
            env={**self.environment, **variables},
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=_DEADLINE,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def call(self, *words: object) -> Ended:
        """The command in this process, which is quicker."""
        key, url = (self.environment.get(f"X402TOOLS_{name}", "") for name in ("API_KEY", "BASE_URL"))
        asks_service = words[0] != "buffer" or words[1] in ("drain", "doctor")
        service = ["--api-key", key, "--base-url", url] if asks_service else []
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*map(str, words), *service])
        return Ended(code, out.getvalue(), err.getvalue())

    def start(self, *words: object, command: Optional[List[str]] = None, **variables: str) -> subprocess.Popen:
        """The command, running; its stderr goes into its stdout."""
        process = subprocess.Popen(
            [*(COMMAND if command is None else command), *map(str, words)],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._started.append(process)
        return process

    def in_terminal(self, *words: object, **variables: str) -> Ended:
        """The command, ended, in a terminal of 80 columns; `out` has everything that was shown, with its escapes."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self._started.append(process)
        os.close(theirs)
        try:
            shown = _read_all(ours)
        finally:
            os.close(ours)
        return Ended(process.wait(_DEADLINE), shown.decode("utf-8"), "")

    def end(self) -> None:
        """Kills what still runs."""
        for process in self._started:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait(PATIENCE)
            if process.stdout is not None:
                process.stdout.close()


def _read_all(descriptor: int) -> bytes:
    pieces: List[bytes] = []
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.5)[0]:
            continue
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux says so when nobody has the other end open any more
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def lines_on_screen(shown: str) -> List[str]:
    """The lines of what a terminal was sent, without escapes."""
    return re.split(r"[\r\n]+", _ESCAPES.sub("", shown))


def first_line(process: subprocess.Popen) -> str:
    """The first line that a running command prints."""
    assert process.stdout is not None
    return str(process.stdout.readline())


def written(path: pathlib.Path, *events: Any) -> pathlib.Path:
    """A file with a line for each: JSON, or the text as it is."""
    path.write_text("".join((event if isinstance(event, str) else json.dumps(event)) + "\n" for event in events))
    return path


def event(envelope_id: str, amount: Any = 1, **metadata: Any) -> Dict[str, Any]:
    """A line of a file of usage."""
    return {"envelope_id": envelope_id, "amount": amount, **({"metadata": metadata} if metadata else {})}
