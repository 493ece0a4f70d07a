"""Fixtures for the tests of whoever uses this package; pytest finds them by itself where it is installed.

    def test_the_order_is_billed(x402_emulator, x402_client):
        envelope_id = x402_emulator.create_envelope(limit=1000)

        take_an_order(x402_client, envelope_id)

        assert x402_emulator.ledger().units == 5

`pytest -p no:x402tools` leaves them out. Everything is imported when a test first asks for it: a test run that does
not use them pays about a millisecond. A test that does, where the emulator's extra is missing, is told what to install.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from x402tools.buffer import UsageBuffer
    from x402tools.client import X402Client
    from x402tools.testing import Emulator

# Seconds. A test waits for deliveries, and bills nobody by the request.
_FLUSH_INTERVAL = 0.05


@pytest.fixture
def x402_emulator() -> Iterator[Emulator]:
    """A fresh emulator of the API in a thread of this process, on a port of its own, with empty books and no faults."""
    from x402tools.testing import Emulator

    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def x402_client(x402_emulator: Emulator) -> Iterator[X402Client]:
    """A client of that emulator, without a buffer: `record_usage` returns when the usage is booked."""
    from x402tools.client import X402Client

    with X402Client(x402_emulator.api_key, x402_emulator.base_url) as client:
        yield client


@pytest.fixture
def x402_buffer(x402_emulator: Emulator, tmp_path: pathlib.Path) -> Iterator[UsageBuffer]:
    """A buffer with an empty spool that delivers to that emulator.

    Use it as it is (`x402_buffer.record(...)`, `x402_buffer.flush()`), or hand it to a client of your own:
    `X402Client(x402_emulator.api_key, x402_emulator.base_url, buffer=x402_buffer)`. It is closed after the test.
    """
    from x402tools.buffer import UsageBuffer
    from x402tools.client import X402Client

    buffer = UsageBuffer(tmp_path / "x402_usage.db", flush_interval=_FLUSH_INTERVAL)
    with X402Client(x402_emulator.api_key, x402_emulator.base_url, buffer=buffer):
        yield buffer
