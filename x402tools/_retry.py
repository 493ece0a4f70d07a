"""When to try again, and how long to wait before; the only door to tenacity.

`call_with_retries` is for a caller who waits for the answer. `Backoff` gives the buffer the same growing, jittered
pauses without blocking anybody: it says how long, the flusher does the waiting for many POSTs at once.
"""

from __future__ import annotations

import time
from typing import Any, Awaitable, Callable, Dict, TypeVar, cast

import tenacity

from x402tools.errors import X402Error

Result = TypeVar("Result")

# A caller waits at the most this long because of a Retry-After header, in seconds; a longer one is handed to the
# caller in the error, because a request that sleeps for minutes helps nobody.
LONGEST_RETRY_AFTER = 30.0

# Pauses of the synchronous client, in seconds: a restart of the service takes a few, a caller has not much more.
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0


class Backoff:
    """Exponential back-off with full jitter: the n-th pause is drawn from [shortest, first * 2**(n - 1)], capped.

    Full jitter keeps many processes that failed at the same moment from coming back at the same moment.
    """

    def __init__(self, first: float, longest: float, shortest: float = 0.0) -> None:
        self._wait = tenacity.wait_random_exponential(multiplier=first, max=longest, min=shortest)
        self._shortest = shortest

    def seconds(self, attempt: int) -> float:
        """How long to wait after the attempt of this number, counted from 1."""
        state = tenacity.RetryCallState(cast(Any, None), None, (), {})
        state.attempt_number = attempt
        return max(float(self._wait(state)), self._shortest)  # older releases of tenacity pass over `min`


def call_with_retries(
    attempt: Callable[[], Result],
    *,
    max_retries: int,
    deadline: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Calls `attempt` until it returns, fails for good, or the retries or the time are used up.

    Args:
        attempt: one request; raises an `X402Error` whose `retryable` says whether to try again.
        max_retries: how many attempts may follow the first.
        deadline: a moment of `time.monotonic()`; no pause is begun that would end after it.
        sleep: what waits between two attempts.

    Raises:
        X402Error: of the last attempt.
    """
    return tenacity.Retrying(**_policy(max_retries, deadline), sleep=sleep)(attempt)


async def call_with_retries_async(
    attempt: Callable[[], Awaitable[Result]],
    *,
    max_retries: int,
    deadline: float,
    sleep: Callable[[float], Awaitable[None]],
) -> Result:
    """`call_with_retries`, for an attempt that is awaited."""
    return await tenacity.AsyncRetrying(**_policy(max_retries, deadline), sleep=sleep)(attempt)


def _policy(max_retries: int, deadline: float) -> Dict[str, Any]:
    """When to try one call again, and after which pause, in tenacity's words."""
    pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    # By attempt: releases of tenacity differ in whether they ask `pause` or `enough` first.
    drawn: Dict[int, float] = {}

    def pause(state: tenacity.RetryCallState) -> float:
        number = state.attempt_number
        if number not in drawn:
            drawn[number] = max(pauses.seconds(number), _retry_after(state))
        return drawn[number]

    def enough(state: tenacity.RetryCallState) -> bool:
        # A pause that takes the rest of the time would only put a time-out in the place of what the service said.
        out_of_time = time.monotonic() + pause(state) >= deadline
        return state.attempt_number > max_retries or _retry_after(state) > LONGEST_RETRY_AFTER or out_of_time

    return {
        "retry": tenacity.retry_if_exception(lambda error: isinstance(error, X402Error) and error.retryable),
        "wait": pause,
        "stop": enough,
        "reraise": True,
    }


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Seconds the service asked to wait; 0 when it did not."""
    error = state.outcome.exception() if state.outcome is not None else None
    return getattr(error, "retry_after", None) or 0.0
