"""JSON objects as the service sends them, complete and valid; a test changes what it is about."""

from __future__ import annotations

from typing import Any, Dict

TIME = "2025-11-05T12:34:56.789Z"


def envelope(**changes: Any) -> Dict[str, Any]:
    """An Envelope."""
    made = {
        "id": "env_1",
        "name": "API Calls",
        "limit": 10000,
        "period": "MONTHLY",
        "organizationId": "org_1",
        "createdAt": TIME,
        "updatedAt": TIME,
        "resetDay": 1,
    }
    return {**made, **changes}


def usage(**changes: Any) -> Dict[str, Any]:
    """A Usage."""
    return {"id": "use_1", "envelopeId": "env_1", "amount": 5, "timestamp": TIME, "metadata": {"a": 1}, **changes}


def api_key(**changes: Any) -> Dict[str, Any]:
    """An ApiKey."""
    made = {"id": "key_1", "key": "sk_other_secret", "name": "Production", "organizationId": "org_1", "createdAt": TIME}
    return {**made, **changes}


def stats(**changes: Any) -> Dict[str, Any]:
    """A UsageStats."""
    made = {"totalUsage": 150, "envelopeCount": 2, "activeEnvelopes": 1, "periodUsage": [{"envelopeId": "env_1"}]}
    return {**made, **changes}
