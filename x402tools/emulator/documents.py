"""The JSON that the API answers with: camelCase, and times as JavaScript prints them."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import Any, Dict, Optional

from x402tools.emulator.state import ORGANIZATION_ID, ApiKey, Envelope, UsageRow


def to_bytes(document: Any) -> bytes:
    """Return the document as compact JSON, in ASCII so that any text a client sent can be sent back."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


def timestamp(milliseconds: int) -> str:
    """Return the time as JavaScript prints it: ``2025-11-05T12:34:56.789Z``."""
    return f"{_to_the_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=256)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def envelope(value: Envelope) -> Dict[str, Any]:
    """An Envelope."""
    return {
        "id": value.id,
        "name": value.name,
        "limit": value.limit,
        "period": value.period,
        "resetDay": value.reset_day,
        "organizationId": ORGANIZATION_ID,
        "createdAt": timestamp(value.created_at),
        "updatedAt": timestamp(value.updated_at),
    }


def api_key(value: ApiKey) -> Dict[str, Any]:
    """An ApiKey; keys of the emulator never expire."""
    return {
        "id": value.id,
        "key": value.key,
        "name": value.name,
        "organizationId": ORGANIZATION_ID,
        "createdAt": timestamp(value.created_at),
        "lastUsed": _timestamp_or_none(value.last_used),
        "expiresAt": None,
    }


def usage(value: UsageRow) -> bytes:
    """A Usage, as bytes: metadata is JSON text already, and the ids are the emulator's own and need no escaping."""
    return (
        f'{{"id":"{value.id}","envelopeId":"{value.envelope_id}","amount":{value.amount},'
        f'"timestamp":"{timestamp(value.at)}","metadata":{value.metadata or "null"}}}'
    ).encode("ascii")


def event(value: UsageRow) -> Dict[str, Any]:
    """A booked record with what the API itself does not show: its place in the order, and its idempotency key."""
    return {
        "sequence": value.sequence,
        "id": value.id,
        "envelopeId": value.envelope_id,
        "amount": value.amount,
        "timestamp": timestamp(value.at),
        "metadata": None if value.metadata is None else json.loads(value.metadata),
        "idempotencyKey": value.idempotency_key,
    }


def _timestamp_or_none(milliseconds: Optional[int]) -> Optional[str]:
    return None if milliseconds is None else timestamp(milliseconds)
