"""The usage that is recorded: three metadata keys, 5,000 users."""

from __future__ import annotations

from typing import Any, Dict, List

ENVELOPE = "env_1"
USERS = 5000


def metadata() -> List[Dict[str, Any]]:
    """One for each of the users, in no order that would make them easy to compress."""
    return [
        {"endpoint": "/api/users", "method": "GET", "user_id": f"user_{number * 7919 % USERS}"}
        for number in range(USERS)
    ]


def groups(count: int) -> List[Dict[str, Any]]:
    """Metadata of so many groups, as coalescing sees them."""
    return [
        {"endpoint": f"/api/resource/{number // 4}", "method": ("GET", "POST", "PUT", "DELETE")[number % 4]}
        for number in range(count)
    ]
