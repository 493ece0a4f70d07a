"""A contestant in a process of its own, called from here: nobody's threads, memory or garbage disturb another's, and
the CPU time of the process is that of all the contestant's threads.

A contestant is a class: made from a dict of options, its methods take and return what JSON can hold.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, Dict, Optional

_PROGRAM = pathlib.Path(__file__).with_name("child.py")


class ContestantError(Exception):
    """A contestant could not be made, or failed; the message is its own."""


class Worker:
    """A contestant's process; a context manager. `made` has to be called before anything else, unless it is entered.

    Args:
        contestant: where its class is, "benchmarks.peers.calling:Caller".
        options: what it is made from.
        python: the interpreter, when it is to be another environment's.
    """

    def __init__(self, contestant: str, options: Dict[str, Any], python: Optional[str] = None) -> None:
        environment = dict(os.environ)
        if python is not None:
            environment.pop("PYTHONPATH", None)  # or it would find this project instead of what is installed there
        self.process = subprocess.Popen(
            [python or sys.executable, str(_PROGRAM), contestant, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def made(self) -> None:
        """Waits until the contestant has been made.

        Raises:
            ContestantError: it cannot be made; says why.
        """
        try:
            self._answer()
        except ContestantError:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """Calls a method and waits for its result."""
        self.send(method, **arguments)
        return self._answer()

    def send(self, method: str, **arguments: Any) -> None:
        """Calls a method without waiting; `receive` gets the result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The result of the method called by `send`."""
        return self._answer()

    def pause(self) -> None:
        """Stops the process where it is (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it run again."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends the process as a program ends: its exit handlers run. Kills it when that takes over a minute."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.resume()  # a stopped process would not notice
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it was killed with a call under way
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ContestantError(f"its process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer["result"]

    def __enter__(self) -> Worker:
        self.made()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
