"""Lines of JSON that survive the death of whoever writes them: what a round leaves behind for the judge.

intents.log    recorder: before each call of record_usage, so that what was never recorded can be told
acks.log       recorder: after each call has returned (or raised), so that what was promised can be told
life.log       recorder: ready, flushed, leaving, closed
server.log     server: each attempt arrived, booked, answered, and the client gone; also the server's own memory
round.log      round: whom it killed when, what hung, how processes ended, what it found in the spool
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from typing import Any, Dict, List, Optional

Line = Dict[str, Any]

INTENTS, ACKS, LIFE, SERVER, ROUND = "intents.log", "acks.log", "life.log", "server.log", "round.log"

# A caller's own idempotency key names the event by itself; the metadata does otherwise.
KEY_PREFIX = "order-"


def now() -> int:
    """Nanoseconds on the clock that all processes of this machine share and that nobody can set."""
    return time.monotonic_ns()


class Log:
    """Appends lines to a file that any number of threads and processes share.

    One `os.write` with O_APPEND a line: what was written is in the file, whole, even if the process is killed in the
    next instant.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._descriptor = os.open(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, **fields: Any) -> None:
        os.write(self._descriptor, json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def read(path: pathlib.Path) -> List[Line]:
    """Every line of the file; none when there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def digest(metadata: Optional[Dict[str, Any]]) -> str:
    """Tells metadata apart, whatever the order of its keys; "-" for none."""
    if not metadata:
        return "-"
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def mark_of(key: str, metadata: Optional[Dict[str, Any]]) -> Optional[str]:
    """The recorder's own name of the event behind a POST or a dead letter, or None."""
    if key.startswith(KEY_PREFIX):
        return key[len(KEY_PREFIX) :]
    return (metadata or {}).get("mark")
