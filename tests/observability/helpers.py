"""What the tests of metrics share."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Iterator, Tuple

from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator


@contextlib.contextmanager
def metered(emulator: Emulator, path: pathlib.Path) -> Iterator[Tuple[X402Client, UsageBuffer]]:
    """A client with a buffer that is about to deliver to the emulator."""
    buffer = UsageBuffer(path, flush_interval=0.05, exit_timeout=0.5)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        yield client, buffer
