"""The engine's own benchmark tool: a program in C that does nothing but send the same ready bytes over and over.

It shows what a server takes in when no Python stands before it, one entry an event.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from typing import Any, Dict, List, Optional
from urllib.parse import urlsplit

from benchmarks.peers import events

NAME = "redis-benchmark"
MISSING = "no redis-benchmark on the path (Debian and Ubuntu: apt-get install redis-tools)"
EVENTS = 200_000
_PROGRAMS = (NAME, "valkey-benchmark")
_CONNECTIONS, _PIPELINE = 4, 100
_PATIENCE = 60.0  # seconds until it has to be done: it tries for ever to reach a server that is gone


def program() -> Optional[str]:
    """Where the tool is, or None."""
    return next((found for found in map(shutil.which, _PROGRAMS) if found), None)


class ToolError(Exception):
    """It is not there, failed, or printed something that is not understood; says what."""


class Tool:
    """A contestant. Options: engine, its URL.

    Raises:
        ToolError: there is no such program.
    """

    def __init__(self, options: Dict[str, Any]) -> None:
        found = program()
        if found is None:
            raise ToolError(MISSING)
        at = urlsplit(options["engine"])
        self._command = [found, "-h", str(at.hostname), "-p", str(at.port), "--csv"]
        self._command += ["-P", str(_PIPELINE), "-c", str(_CONNECTIONS)]
        # Of the size that all but the first hundred of the events sent from Python have.
        self._event = events.as_json(100, events.metadata()[100])

    def round(self, count: int = EVENTS) -> Dict[str, Any]:
        """Sends so many events.

        Returns:
            events, CPU seconds of the tool, and wall seconds by its own clock: its start is not among them.

        Raises:
            ToolError: it failed.
        """
        before = _cpu()
        printed = self._run(["-n", str(count), "XADD", "events", "*", "d", self._event])
        return {"events": count, "wall": count / rate(printed), "cpu": _cpu() - before}

    def close(self) -> None:
        """Nothing is left open between two rounds."""

    def _run(self, arguments: List[str]) -> str:
        try:
            done = subprocess.run(
                [*self._command, *arguments], capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"{NAME} was not done after {_PATIENCE:g} s") from error
        if done.returncode != 0:
            raise ToolError(f"{NAME} ended with status {done.returncode}: {done.stderr.strip()}")
        return done.stdout


def rate(printed: str) -> float:
    """Requests a second, from what the tool prints with `--csv`: a line of headings, and one of figures.

    Raises:
        ToolError: it is not there.
    """
    lines = printed.strip().splitlines()
    try:
        headings, figures = lines[-2].split(","), lines[-1]
        # From the end: the first column is the command itself, with the quotes and commas of the event as they are.
        columns = figures.rsplit(",", len(headings) - 1)
        found = float(columns[headings.index('"rps"')].strip('"'))
    except (IndexError, ValueError) as error:
        raise ToolError(f"{NAME} printed no rate: {printed[-500:]!r}") from error
    if found <= 0:
        raise ToolError(f"{NAME} printed a rate of {found:g}")
    return found


def _cpu() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
