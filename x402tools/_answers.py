"""What an answer of the service means: its JSON, or the error it stands for."""

from __future__ import annotations

import json
import math
import time
from contextlib import closing
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Dict, Generator, Iterator, Mapping, Optional, TypeVar

from x402tools._json_stream import objects, refuse_constant
from x402tools._lean import Reply
from x402tools.errors import EXCERPT_LENGTH, APIError, error_for_status

Model = TypeVar("Model")

# What a parser and a model raise over a body that is not what they were promised.
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

_decode = json.JSONDecoder(parse_constant=refuse_constant).decode


def check(reply: Reply, *, envelope: bool) -> Reply:
    """The reply, if it is a success.

    Raises:
        APIError: the class for the status; see `errors.error_for_status`.
    """
    if 200 <= reply.status < 300:
        return reply
    data = _json_or_none(reply.body)
    said = data.get("error") if isinstance(data, dict) else None
    message = str(said)[:EXCERPT_LENGTH] if said else f"the service answered {reply.status} without saying why"
    raise error_for_status(reply.status, message, envelope=envelope)(
        message,
        reply.status,
        data if isinstance(data, dict) else None,
        request_id=request_id(reply.headers),
        retry_after=retry_after(reply.headers),
        body=None if isinstance(data, dict) else excerpt(reply.body),
    )


def parse(reply: Reply, build: Callable[[Any], Model]) -> Model:
    """What `build` makes of the reply's JSON.

    Raises:
        APIError: the body is not JSON, or not what the contract promises for this call.
    """
    try:
        return build(_decode(reply.body.decode("utf-8-sig")))
    except _NONSENSE as error:
        raise unexpected(reply, error) from None


def members(
    reply: Reply, pieces: Generator[bytes, None, None], build: Callable[[Dict[str, Any]], Model]
) -> Iterator[Model]:
    """What `build` makes of each object of a bare JSON list, whose text arrives in pieces.

    Raises:
        APIError: the body is not such a list, or a member is not what the contract promises for this call.
    """
    with closing(pieces):  # and with it the connection, at once and not when the last traceback is forgotten
        try:
            for data in objects(pieces):
                yield build(data)
        except _NONSENSE as error:
            raise unexpected(reply, error) from None


def unexpected(reply: Reply, error: Exception) -> APIError:
    """The error for a success whose body is not the JSON promised."""
    reason = f"{type(error).__name__}: {error}"[:200]
    return APIError(
        f"the service answered {reply.status}, but not with the JSON promised ({reason})",
        reply.status,
        request_id=request_id(reply.headers),
        body=excerpt(reply.body),
    )


def is_page(reply: Reply) -> bool:
    """True when the answer says that it is HTML: it comes from a proxy, a portal or a web site, not from the API."""
    return "html" in reply.headers.get("Content-Type", "").lower()


def request_id(headers: Mapping[str, str]) -> Optional[str]:
    """What the service or the proxy before it calls this request."""
    found = headers.get("X-Request-Id") or headers.get("X-Railway-Request-Id")
    return found[:200] if found else None


def retry_after(headers: Mapping[str, str]) -> Optional[float]:
    """Seconds to wait as `Retry-After` says: a number, or an HTTP date seen by the service's own clock (`Date`).

    None when the header is missing or junk; never negative.
    """
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        moment = _http_date(value)
        if moment is None:
            return None
        now = _http_date(headers.get("Date", ""))
        seconds = moment - (now if now is not None else time.time())
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def excerpt(body: bytes) -> Optional[str]:
    """The beginning of a body, for people to read."""
    return body[:EXCERPT_LENGTH].decode("utf-8", "replace") if body else None


def _http_date(text: str) -> Optional[float]:
    try:
        moment = parsedate_to_datetime(text)
        # The oldest of HTTP's three forms names no zone; every date of HTTP is in GMT.
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _json_or_none(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
