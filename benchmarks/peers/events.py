"""The usage that is recorded: three metadata keys, 5,000 users, 40 endpoints."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any, Dict, List

ENVELOPE = "env_1"
USERS = 5000


def wide(keys: int) -> List[Dict[str, Any]]:
    """The same with so many keys."""
    more = {f"label_{number}": f"value {number}" for number in range(keys)}
    return [dict(itertools.islice({**usage, **more}.items(), keys)) for usage in metadata()]


def metadata() -> List[Dict[str, Any]]:
    """So many as there are users: each with one of 40 endpoints, in an order that is random and the same every time."""
    chance = random.Random(20_251_105)
    return [
        {
            "endpoint": f"/api/resource/{chance.randrange(40)}",
            "method": chance.choice(("GET", "GET", "POST", "PUT")),
            "user_id": f"user_{chance.randrange(USERS)}",
        }
        for _ in range(USERS)
    ]


def as_json(number: int, metadata: Dict[str, Any]) -> str:
    """An event as a program of one's own would send it."""
    return json.dumps({"id": number, "envelopeId": ENVELOPE, "amount": 1, "metadata": metadata})


def groups(count: int) -> List[Dict[str, Any]]:
    """Metadata of so many groups, as coalescing sees them."""
    return [
        {"endpoint": f"/api/resource/{number // 4}", "method": ("GET", "POST", "PUT", "DELETE")[number % 4]}
        for number in range(count)
    ]
