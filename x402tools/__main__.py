"""`python -m x402tools`: the command line, where the command `x402tools` is not on the path."""

from __future__ import annotations

import sys

from x402tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
