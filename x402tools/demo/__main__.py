"""`python -m x402tools.demo`: the demo from the command line."""

from __future__ import annotations

import argparse
import sys
from typing import List, Optional

from x402tools.demo import run

_NOT_INSTALLED = 3  # the same exit code as that of `x402tools demo`


def main(words: Optional[List[str]] = None) -> int:
    """Parses the command line and runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m x402tools.demo", description=run.DESCRIPTION)
    run.add_arguments(parser)
    arguments = parser.parse_args(words)
    try:
        return run.run(arguments)
    except ImportError as error:
        print(f"x402tools: {error}", file=sys.stderr)
        return _NOT_INSTALLED


if __name__ == "__main__":
    sys.exit(main())
