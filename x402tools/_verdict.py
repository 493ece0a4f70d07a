"""What an answer means for a sealed POST and for those behind it. Pure: it decides, the flusher acts.

| answer | the POST | the others |
|---|---|---|
| 2xx | delivered | go on |
| no answer, 408, 5xx, 3xx, 101 | tried again | wait when nothing else gets through either |
| 429, 503 with Retry-After | tried again | wait as long as the service asks |
| 401, 403 | tried again | wait until the key is accepted; nothing is lost for a wrong key |
| 407 | tried again | wait until the proxy lets us pass; the service has not seen it |
| 402 and exceeded limits, 400, 404, 409, 413, 422 and other 4xx | dead letter | go on |

5xx may be the fault of this one POST: each one while others pass is a strike, and `max_attempts` strikes bury it.
A redirect is a wrong base URL: somebody has to mend that, and no usage may be lost for it.

What is tried again may have been booked all the same, unless something says that it was not:

| the attempt ended with | the outcome |
|---|---|
| no connection: name look-up, refused, connect time-out, TLS, a proxy | not booked |
| no whole answer after that: reset, time-out, nonsense in its place | unknown |
| 502, 504: a gateway had no answer from the service, or not in time | unknown |
| 408, 429, 503, 500 and other 5xx, 3xx, 401, 403, 407, 101 | not booked: it was answered, and with a refusal |

`UsageBuffer(on_unknown=...)` says what becomes of a POST whose outcome is unknown; see `_doubts`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional

from x402tools.errors import APIError, AuthenticationError, X402Error


class Move(enum.Enum):
    """What becomes of the POST."""

    ACKNOWLEDGE = "acknowledge"
    TRY_AGAIN = "try again"
    BURY = "bury"


class Verdict(NamedTuple):
    """The decision on one attempt.

    Attributes:
        move: what becomes of the POST.
        reason: for people; empty for a delivered POST.
        status_code: of the answer, None when there was none.
        strike: the failure may be the POST's own fault.
        wait: seconds for which the service asked everybody to stay away, or None.
        locked_out: the key was refused, or the proxy's own.
        unknown: it may have been booked all the same.
        crowded: the service has too much to do.
    """

    move: Move
    reason: str = ""
    status_code: Optional[int] = None
    strike: bool = False
    wait: Optional[float] = None
    locked_out: bool = False
    unknown: bool = False
    crowded: bool = False


DELIVERED = Verdict(Move.ACKNOWLEDGE)

_TOO_MUCH_TO_DO = (429, 503)

# Of a gateway: it has passed the POST on, and got no answer that made sense (502) or none in time (504).
_PASSED_ON = (502, 504)


def judge(error: X402Error) -> Verdict:
    """The verdict on an attempt that failed with this error.

    A verdict holds no exception: the frames of one would keep the request, and the API key in it, alive.
    """
    status = error.status_code if isinstance(error, APIError) else None
    reason = str(error)[:1000]
    if status is not None and 200 <= status < 300:
        return DELIVERED  # the service took it; what is wrong with the rest of its answer changes nothing
    if isinstance(error, AuthenticationError) or status == 407:
        return Verdict(Move.TRY_AGAIN, reason, status, locked_out=True)
    if status is None or status < 400:
        return Verdict(Move.TRY_AGAIN, reason, status, unknown=getattr(error, "maybe_processed", False))
    if error.retryable:
        wait = error.retry_after if isinstance(error, APIError) and status in _TOO_MUCH_TO_DO else None
        strike, unknown = status >= 500 and wait is None, status in _PASSED_ON
        crowded = status in _TOO_MUCH_TO_DO
        return Verdict(Move.TRY_AGAIN, reason, status, strike=strike, wait=wait, unknown=unknown, crowded=crowded)
    return Verdict(Move.BURY, reason, status)
