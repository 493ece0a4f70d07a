"""The command `x402tools`.

    x402tools envelopes list|show|create|update|delete     the API
    x402tools usage record|list|stats
    x402tools keys list|create|delete
    x402tools buffer status|watch|peek|dead|requeue|export|drain|audit|doctor PATH      a spool, also while it is in use
    x402tools replay FILE      reports a file of usage events
    x402tools worker PATH      delivers a spool, or with --store a server, in a process of its own
    x402tools emulator         a local emulator of the API, for trying out and for tests
    x402tools demo             a metered service under load, with faults, and the bill checked against its access log

Exit codes:

    0     done, and nothing is wrong
    1     it could not be done; one line on stderr says why
    2     wrong arguments
    3     a package is not installed; the line on stderr has the command that installs it
    4     done, and something needs a look: lines refused, events left over, a fault found
    130   interrupted (Ctrl-C, SIGTERM); 141 nobody read the output to its end

The emulator and the demo keep their own: 2 also when the emulator cannot start, 1 also when the demo's figures differ.

Each command imports what it needs when it runs, so that one whose extra is missing does not keep the others away:
`emulator` and `demo` need the extra of their name, everything else needs `cli`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import List, Optional

import x402tools
from x402tools.errors import MissingExtraError

_NOT_INSTALLED = 3

_PACKAGES = ("click", "rich")


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["emulator"] or words[:1] == ["demo"]:
            return _run_with_argparse(words)
        if _has_packages():
            from x402tools._cli import app

            return app.run(words)
        return _run_without_packages(words)
    except ImportError as error:  # MissingExtraError, and what the emulator raises: both name the extra
        print(f"x402tools: {error}", file=sys.stderr)
        return _NOT_INSTALLED


def _run_with_argparse(words: List[str]) -> int:
    """The emulator and the demo, which run without the extra `cli`."""
    parser = argparse.ArgumentParser(prog="x402tools", description="Tools of the x402 Usage-Based Billing API.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(words[0])
    if words[0] == "emulator":
        from x402tools.emulator import server

        server.add_arguments(command)
        return server.run(parser.parse_args(words))
    from x402tools.demo import run as demonstration

    demonstration.add_arguments(command)
    return demonstration.run(parser.parse_args(words))


def _has_packages() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES)


def _run_without_packages(words: List[str]) -> int:
    """Says what there is, and what to install for it."""
    missing = MissingExtraError("the command line", "cli")
    if words in (["--help"], ["-h"]):
        print(f"{(__doc__ or '').strip()}\n\n{missing}")
        return 0
    if words == ["--version"]:
        print(f"x402tools {x402tools.__version__}")
        return 0
    raise missing


if __name__ == "__main__":
    sys.exit(main())
