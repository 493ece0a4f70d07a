"""The command `x402tools`.

    x402tools emulator    a local emulator of the API, for trying out and for tests
    x402tools demo        a metered service under load, with faults, and the bill checked against its access log

Each command imports what it needs when it runs, so that one whose extra is missing does not keep the others away.
"""

from __future__ import annotations

import argparse
import sys
from typing import List, Optional

import x402tools

# Exit codes: 0 done, 1 the command says why it failed, 2 wrong arguments (argparse), 3 a package is not installed.
_NOT_INSTALLED = 3


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="x402tools", description="Tools of the x402 Usage-Based Billing API.")
    parser.add_argument("--version", action="version", version=f"x402tools {x402tools.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    emulator = commands.add_parser("emulator", help="a local emulator of the API")
    demo = commands.add_parser("demo", help="a metered service under load, with faults, and its bill checked")
    try:
        # Only the command that is asked for adds its arguments: that is what needs its extra.
        if words[:1] == ["emulator"]:
            from x402tools.emulator import server

            server.add_arguments(emulator)
            return server.run(parser.parse_args(words))
        if words[:1] == ["demo"]:
            from x402tools.demo import run as demonstration

            demonstration.add_arguments(demo)
            return demonstration.run(parser.parse_args(words))
    except ImportError as error:  # MissingExtraError, and what the emulator raises: both name the extra
        print(f"x402tools: {error}", file=sys.stderr)
        return _NOT_INSTALLED
    parser.parse_args(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
