"""The commands by name, and what becomes of errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from typing import Any, Iterator, List, Optional

import click

import x402tools
from x402tools._cli import codes
from x402tools._cli.output import say
from x402tools.errors import APIConnectionError, AuthenticationError, MissingExtraError, ValidationError, X402Error

# The module of each command, which has it as `command`: only the one that runs is imported.
_COMMANDS = {
    "buffer": "buffer",
    "demo": "local",
    "emulator": "local",
    "envelopes": "envelopes",
    "keys": "keys",
    "replay": "replay",
    "usage": "usage",
    "worker": "worker",
}
_COMPLETION = "_X402TOOLS_COMPLETE"  # click's: set by the shell that asks how a line may go on


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> List[str]:  # noqa: ARG002 - click's signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"x402tools._cli.{_COMMANDS[cmd_name]}")
        found: click.Command = getattr(module, cmd_name)
        return found


@click.group(cls=_Commands, name="x402tools", epilog=codes.FOR_PEOPLE, context_settings={"max_content_width": 80})
@click.version_option(x402tools.__version__, message="x402tools %(version)s")
def x402tools_command() -> None:
    """Tools of the x402 Usage-Based Billing API.

    The key comes from X402TOOLS_API_KEY, the address of the service from X402TOOLS_BASE_URL. Every command that
    prints facts takes --json. In a pipe there are no colours and no frames, and nothing is cut.
    """


def run(words: List[str]) -> int:
    """Runs the command line; returns the exit code."""
    _make_output_safe()
    if _COMPLETION in os.environ:
        x402tools_command.main(words, prog_name="x402tools")
    try:
        with _log_shown():
            code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Nobody reads any more, `head` for example: nothing can be said, and Python shall not try to at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return codes.NOBODY_READS


def _run(words: List[str]) -> int:
    try:
        with x402tools_command.make_context("x402tools", list(words)) as context:
            result = x402tools_command.invoke(context)
            return result if isinstance(result, int) else codes.DONE
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code
    except click.UsageError as error:
        error.show()
        return codes.WRONG_ARGUMENTS
    except click.ClickException as error:
        say(f"x402tools: {error.format_message()}")
        return codes.FAILED
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return codes.INTERRUPTED
    except MissingExtraError:
        raise  # told by `cli`, as for every command
    except X402Error as error:
        say(f"x402tools: {_advised(error)}")
        is_argument = isinstance(error, ValidationError) and error.status_code is None
        return codes.WRONG_ARGUMENTS if is_argument else codes.FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"x402tools: {error.filename or ''}{': ' if error.filename else ''}{error.strerror or error}")
        return codes.FAILED


def _advised(error: X402Error) -> str:
    """The message, and what to do where it does not say so."""
    if isinstance(error, AuthenticationError):
        return f"{error} (is X402TOOLS_API_KEY the right key for X402TOOLS_BASE_URL?)"
    if isinstance(error, APIConnectionError):
        return f"{error} (is X402TOOLS_BASE_URL right, and the service there?)"
    return str(error)


def _make_output_safe() -> None:
    """Text that the terminal's encoding lacks is shown as an escape."""
    streams: List[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """What the library logs goes to stderr, with its name on it."""
    log, handler = logging.getLogger("x402tools"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("x402tools: %(message)s"))
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
