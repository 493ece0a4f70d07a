"""Starts the service under gunicorn, and ends it whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Callable, Dict, Optional

import x402tools
from x402tools.demo import gunicorn_conf

HOST = "127.0.0.1"
STOP_SECONDS = gunicorn_conf.graceful_timeout + 5.0
_LOOK_EVERY = 0.25  # seconds


class Server:
    """gunicorn with a number of workers, in a session of its own: Ctrl-C in a terminal is for the demo, which then
    stops it. A context manager.

    Args:
        settings: the file with the settings of the service.
        folder: where gunicorn runs and logs.
        workers: how many processes serve.
        environment: variables the service gets besides this process's own.
    """

    def __init__(self, settings: str, *, folder: str, workers: int, environment: Dict[str, str]) -> None:
        # Bound here and inherited: a port that was looked up first and bound later may be gone by then.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind((HOST, 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--config", gunicorn_conf.__file__]
        command += ["--workers", str(workers), "--bind", f"fd://{self._listener.fileno()}"]
        command += ["--worker-tmp-dir", folder, "--error-logfile", os.path.join(folder, "gunicorn.log")]
        command += [f"x402tools.demo.service:application_from({settings!r})"]
        self._popen: Optional[subprocess.Popen[bytes]] = subprocess.Popen(  # noqa: S603 - a command of our own
            command,
            cwd=folder,  # away from a gunicorn.conf.py of the user
            env=_environment(environment),
            pass_fds=[self._listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the master process is there."""
        return self._popen is not None and self._popen.poll() is None

    def stop(self, meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Lets requests finish and the workers end (they close their clients); False when they had to be killed.

        Args:
            meanwhile: called a few times a second.
        """
        popen, self._popen = self._popen, None
        if popen is None:
            return True
        self._listener.close()
        popen.terminate()
        try:
            return _has_ended(popen, meanwhile)
        finally:
            # The workers are in the group of the master. Mostly nobody is left and there is no such group any more;
            # its number is not given again while there is.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


def _has_ended(popen: subprocess.Popen[bytes], meanwhile: Callable[[], object]) -> bool:
    give_up = time.monotonic() + STOP_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(_LOOK_EVERY)
            return True
        meanwhile()
    return False


def _environment(more: Dict[str, str]) -> Dict[str, str]:
    """This process's environment without what would reconfigure gunicorn, and with this package importable."""
    kept = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
    here = os.path.dirname(os.path.dirname(os.path.abspath(x402tools.__file__)))
    paths = [here, *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "NO_PROXY": HOST, **more}


def kill(pid: int) -> None:
    """SIGKILL to one process; none when it has gone by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
