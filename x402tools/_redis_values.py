"""How what the store on a server keeps is written there: ids of entries, tallies, dead letters. Asks nobody."""

from __future__ import annotations

import json
import time
import uuid
from base64 import b64decode, b64encode
from typing import Any, Dict, Optional, Tuple

from x402tools import _batch
from x402tools._batch import Post
from x402tools._redis_leases import HALF
from x402tools._store import Burial, DeadLetter, Tally

COUNT_BITS = 20  # of the second half of an entry's id, in a number


def as_number(id_: bytes) -> int:
    milliseconds, _, count = id_.partition(b"-")
    return int(milliseconds) << COUNT_BITS | int(count)


def as_id(number: int) -> str:
    return f"{number >> COUNT_BITS}-{number & (1 << COUNT_BITS) - 1}"


def numbers(tally: Tally) -> Tuple[int, int, int]:
    return (tally.events, *divmod(tally.units, HALF))


def text_of(tally: Tally) -> str:
    return " ".join(map(str, numbers(tally)))


def tally_of(post: Post) -> Tally:
    return Tally(post.events, post.amount)


def is_set(bits: bytes, at: int) -> bool:
    """As SETBIT counts them: from the left."""
    return at // 8 < len(bits) and bool(bits[at // 8] & 128 >> at % 8)


def letter(burial: Burial) -> str:
    value = _batch.encode_posts(f"dead-{uuid.uuid4().hex}/0", [burial.post]).value
    return document(burial.post, burial.reason, burial.status_code, burial.attempts, value)


def document(post: Optional[Post], reason: str, status_code: Optional[int], attempts: int, value: bytes) -> str:
    """What is kept of a dead letter."""
    kept = {
        "reason": reason[:1000],
        "status_code": status_code,
        "attempts": attempts,
        "died_at": time.time(),
        "batch": b64encode(value).decode("ascii"),
        "readable": post is not None,
    }
    return json.dumps(kept)


def dead_letter(number: int, kept: Dict[str, Any]) -> DeadLetter:
    posts = _batch.decode(b64decode(kept["batch"])) if kept["readable"] else []
    post = posts[0] if posts else Post("", "", 0, None, kept["died_at"])
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    return DeadLetter(
        id=number,
        key=post.key,
        envelope_id=post.envelope_id,
        amount=post.amount,
        metadata=metadata,
        reason=kept["reason"],
        status_code=kept["status_code"],
        attempts=kept["attempts"],
        recorded_at=post.recorded_at,
        died_at=kept["died_at"],
        events=post.events,
        readable=kept["readable"],
    )
