"""A metered client, and its bill."""

from __future__ import annotations

import pathlib
from typing import Any, Callable, Iterator, List

import pytest

from x402tools import UsageBuffer, X402Client
from x402tools.testing import BookedEvent, Emulator

Bill = Callable[[], List[BookedEvent]]


@pytest.fixture
def client(emulator: Emulator, tmp_spool: pathlib.Path) -> Iterator[X402Client]:
    """A client with a buffer."""
    with X402Client(emulator.api_key, emulator.base_url, buffer=UsageBuffer(tmp_spool, flush_interval=0.05)) as made:
        yield made


@pytest.fixture
def plain_client(emulator: Emulator) -> Iterator[X402Client]:
    """A client without a buffer."""
    with X402Client(emulator.api_key, emulator.base_url) as made:
        yield made


@pytest.fixture
def envelope_id(emulator: Emulator) -> str:
    """An envelope with room for everything."""
    return emulator.create_envelope()


@pytest.fixture
def bill(emulator: Emulator, client: X402Client) -> Bill:
    """`bill()`: everything recorded so far, once it is delivered."""

    def delivered() -> List[Any]:
        assert client.flush(20)
        return emulator.events()

    return delivered
