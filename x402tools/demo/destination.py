"""Where the events of a file go: to an emulator, or to the service that the environment names."""

from __future__ import annotations

import os
import threading
from typing import Dict, Protocol

from x402tools import Usage
from x402tools.testing import Emulator, Tally


class Destination(Protocol):
    """What the replay needs of either."""

    base_url: str
    api_key: str
    title: str
    """What stands above the figures of what was billed."""

    def envelope(self, name: str) -> str:
        """The id under which the usage of the file's envelope is recorded."""

    def delivered(self, usage: Usage) -> None:
        """Is told of every event that was delivered."""

    def billed(self) -> Dict[str, Tally]:
        """What was billed, by the id that `envelope` gave."""


class ToEmulator:
    """A running emulator. It draws its envelopes' ids itself, so each envelope of the file gets one of its own."""

    title = "ledger"

    def __init__(self, emulator: Emulator) -> None:
        self.base_url = emulator.base_url
        self.api_key = emulator.api_key
        self._emulator = emulator
        self._ids: Dict[str, str] = {}

    def envelope(self, name: str) -> str:
        if name not in self._ids:
            self._ids[name] = self._emulator.create_envelope(f"envelope {len(self._ids) + 1} of the file")
        return self._ids[name]

    def delivered(self, usage: Usage) -> None:  # noqa: ARG002 - the ledger tells more
        return None

    def billed(self) -> Dict[str, Tally]:
        return self._emulator.ledger().envelopes


class ToService:
    """The service at X402TOOLS_BASE_URL, under the key X402TOOLS_API_KEY.

    It makes no envelopes there: one that is missing is a mistake in the file. What was billed is what the service has
    acknowledged, because its own sums also have what others record meanwhile.
    """

    title = "acknowledged"

    def __init__(self) -> None:
        self.base_url = os.environ["X402TOOLS_BASE_URL"]
        self.api_key = os.environ["X402TOOLS_API_KEY"]
        self._lock = threading.Lock()  # guards _acknowledged
        self._acknowledged: Dict[str, Tally] = {}

    def envelope(self, name: str) -> str:
        return name

    def delivered(self, usage: Usage) -> None:
        with self._lock:
            before = self._acknowledged.get(usage.envelope_id, Tally(0, 0))
            self._acknowledged[usage.envelope_id] = Tally(before.events + 1, before.units + usage.amount)

    def billed(self) -> Dict[str, Tally]:
        with self._lock:
            return dict(self._acknowledged)
