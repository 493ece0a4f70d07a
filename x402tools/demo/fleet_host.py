"""A host of the fleet's show: records usage into the engine that all share, and writes an access log like `service`.

    python -m x402tools.demo.fleet_host SETTINGS

It has `begin` before `record_usage` and `done` after it. What is recorded comes by itself instead of over HTTP, because
the show is about what comes after it.
"""

from __future__ import annotations

import itertools
import json
import random
import secrets
import sys
import time
from typing import Dict, NamedTuple

from x402tools import UsageBuffer, X402Client
from x402tools.demo.log_file import LogFile

_ENDPOINTS = ("/compress", "/digest")
_LARGEST = 2500  # units


class Settings(NamedTuple):
    """What a host is told; travels as JSON. Where usage goes it has from X402TOOLS_BASE_URL and X402TOOLS_API_KEY."""

    store: str
    access_log: str
    envelopes: Dict[str, str]  # the envelope of each customer
    seconds: float
    rate: float  # events a second


def run(settings: Settings) -> None:
    """Records at an even pace, then closes: what `record_usage` took is in the engine by then."""
    access_log = LogFile(settings.access_log)
    ids = map("{}-{}".format, itertools.repeat(secrets.token_hex(6)), itertools.count(1))
    envelopes = itertools.cycle(settings.envelopes.values())
    chance = random.Random()
    with X402Client(buffer=UsageBuffer(store=settings.store, deliver=False)) as client:
        begun = time.monotonic()
        for count in range(int(settings.seconds * settings.rate)):
            time.sleep(max(begun + count / settings.rate - time.monotonic(), 0.0))
            request_id, envelope_id, amount = next(ids), next(envelopes), chance.randint(1, _LARGEST)
            access_log.write("begin", request_id, envelope_id, amount)
            metadata = {"endpoint": chance.choice(_ENDPOINTS), "request_id": request_id}
            client.record_usage(envelope_id, amount, metadata)
            access_log.write("done", request_id)


if __name__ == "__main__":
    run(Settings(**json.loads(sys.argv[1])))
