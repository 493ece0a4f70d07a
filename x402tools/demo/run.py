"""The command: its arguments, and which of the two shows is played."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Callable, Optional

from x402tools._bell import Flag
from x402tools.demo import interruption, replay, show
from x402tools.demo.folder import FolderInUseError, run_folder
from x402tools.demo.interruption import Interrupted
from x402tools.demo.progress import Progress
from x402tools.demo.stage import ShowFailed
from x402tools.errors import MissingExtraError, X402Error
from x402tools.testing import EmulatorError

DESCRIPTION = (
    "A metered service under load, while the billing service fails and processes are killed; then its access log is "
    "set against the bill. With --file: reports your own events instead, and sets the file against the bill."
)

_WRONG = 1
_BAD_ARGUMENTS = 2  # as argparse has it

# Nothing at all may be missing then, whoever is killed, so that the bill can be required to agree to the unit and
# needs no allowance. What the library's own default, "interval", allows is derived from the log and said in numbers.
DEFAULT_DURABILITY = "commit"

# Seconds, requests a second, processes: the least with which the script still means something, and the most that a
# machine with other work should be asked for.
_SECONDS, _RATE, _WORKERS = (5.0, 300.0), (1, 1000), (3, 16)

_PACKAGES = ("starlette", "uvicorn", "gunicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's arguments to the parser; `run` takes what it parses."""
    parser.add_argument(
        "--seconds",
        type=_between(float, *_SECONDS),
        default=40.0,
        help="how long the load lasts, 5 to 300 (default %(default)g)",
    )
    parser.add_argument(
        "--rate", type=_between(int, *_RATE), default=200, help="requests a second, 1 to 1000 (default %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=_between(int, *_WORKERS),
        default=3,
        help="processes of the service, 3 to 16 (default %(default)s)",
    )
    parser.add_argument(
        "--durability",
        choices=("interval", "commit", "fsync"),
        default=DEFAULT_DURABILITY,
        help="of the service's buffer (default %(default)s: a killed worker loses nothing, so nothing may be missing)",
    )
    parser.add_argument(
        "--file", metavar="PATH", help='report these events: a line each, {"envelope_id":…, "amount":…, "metadata":…}'
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="with --file and --keep: bill them for real, at X402TOOLS_BASE_URL with X402TOOLS_API_KEY",
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="leave spool, books and logs in this new folder (default: a temporary one)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Plays what the arguments say.

    Returns:
        0 when the figures agree. With the reason on stderr or stdout: 1 when they differ, a line was bad or the demo
        could not be played; 2 for arguments that do not go together; 130 when it was interrupted. Every process that
        was started has ended by then.

    Raises:
        MissingExtraError: a package the demo needs is not installed.
    """
    complaint = _complaint(arguments)
    if complaint is not None:
        print(f"x402tools demo: {complaint}", file=sys.stderr)
        return _BAD_ARGUMENTS
    if not arguments.live:
        _require_packages()
    try:
        with interruption.noticed() as stop, run_folder(arguments.keep) as folder:
            return _play(arguments, folder, Progress(sys.stdout), stop)
    except BrokenPipeError:  # nobody reads any more: nothing can be said, and Python shall not try to at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (FolderInUseError, OSError, X402Error) as error:
        print(f"x402tools demo: {error}", file=sys.stderr)
    return _WRONG


def _play(arguments: argparse.Namespace, folder: str, progress: Progress, stop: Flag) -> int:
    try:
        if arguments.file is not None:
            return replay.play(arguments.file, arguments.live, folder, progress, stop)
        plan = show.Plan(arguments.seconds, arguments.rate, arguments.workers, arguments.durability)
        return show.play(plan, folder, progress, stop)
    except Interrupted:
        progress.rest()
        progress.say("Interrupted; everything that was started has ended.")
        if arguments.live:
            progress.say("What was recorded and not delivered waits in the spool of the folder kept.")
        return interruption.EXIT_CODE
    except (ShowFailed, EmulatorError) as error:
        progress.rest()
        print(f"x402tools demo: {error}", file=sys.stderr)
        return _WRONG


def _complaint(arguments: argparse.Namespace) -> Optional[str]:
    """Why these arguments do not go together. Live usage costs somebody money, so nothing about it is guessed."""
    if not arguments.live:
        return None
    if arguments.file is None:
        return "--live bills the events of a file: it needs --file PATH"
    if arguments.keep is None:
        return "--live needs --keep DIR: what cannot be delivered now stays there in the spool"
    missing = [name for name in ("X402TOOLS_BASE_URL", "X402TOOLS_API_KEY") if not os.environ.get(name)]
    return f"--live needs {' and '.join(missing)} in the environment" if missing else None


def _require_packages() -> None:
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("the demo", "demo")


def _between(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    """A type for argparse: a number from `least` to `most`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:g} to {most:g}")
        return value

    return number
