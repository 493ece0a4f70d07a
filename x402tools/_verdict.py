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
    """

    move: Move
    reason: str = ""
    status_code: Optional[int] = None
    strike: bool = False
    wait: Optional[float] = None
    locked_out: bool = False


DELIVERED = Verdict(Move.ACKNOWLEDGE)


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
        return Verdict(Move.TRY_AGAIN, reason, status)
    if error.retryable:
        wait = error.retry_after if isinstance(error, APIError) and status in (429, 503) else None
        return Verdict(Move.TRY_AGAIN, reason, status, strike=status >= 500 and wait is None, wait=wait)
    return Verdict(Move.BURY, reason, status)
