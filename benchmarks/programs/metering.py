"""How a service of the benchmark is metered: the environment says by what.

BENCH_METER     none, or the key of a recorder
BENCH_OPTIONS   JSON: what the recorder is made from
"""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Dict

from benchmarks.peers import events, recorders

Meter = Callable[[str, str, int], None]


def meter() -> Meter:
    """What a request handler calls: with the endpoint, the method and the number of the user."""
    kind = os.environ["BENCH_METER"]
    if kind == "none":
        return lambda _endpoint, _method, _user: None
    recorder = recorders.make({"peer": kind, **json.loads(os.environ["BENCH_OPTIONS"])})
    call = recorder.call

    def record(endpoint: str, method: str, user: int) -> None:
        metadata: Dict[str, Any] = {"endpoint": endpoint, "method": method, "user_id": f"user_{user}"}
        call(events.ENVELOPE, 1, metadata)

    return record
