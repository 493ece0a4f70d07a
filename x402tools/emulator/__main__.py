"""``python -m x402tools.emulator``: the emulator from the command line."""

from __future__ import annotations

import sys

from x402tools.emulator.server import main

if __name__ == "__main__":
    sys.exit(main())
