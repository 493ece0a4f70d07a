"""When the next attempt comes: pauses that grow, scatter, and end in time. No clock is waited for here."""

from __future__ import annotations

import time
from typing import Any, Callable, List, Optional

import pytest

from x402tools import APIConnectionError, APIError, AuthenticationError, RateLimitError
from x402tools._retry import LONGEST_RETRY_AFTER, Backoff, call_with_retries

FAR = 3600.0


def failing(*errors: BaseException, then: Any = "done") -> Callable[[], Any]:
    """An attempt that raises these, one after the other, and then returns."""
    left = list(errors)

    def attempt() -> Any:
        if left:
            raise left.pop(0)
        return then

    return attempt


def pauses_of(*errors: BaseException, max_retries: int = 10, seconds: float = FAR) -> List[float]:
    """The pauses made between attempts, recorded and not slept; the last error is not raised."""
    pauses: List[float] = []
    deadline = time.monotonic() + seconds
    try:
        call_with_retries(failing(*errors), max_retries=max_retries, deadline=deadline, sleep=pauses.append)
    except APIError:
        pass
    return pauses


def asks(seconds: Optional[float]) -> RateLimitError:
    """A 429 with this Retry-After."""
    return RateLimitError("slow down", 429, retry_after=seconds)


def test_result_is_handed_through() -> None:
    """What the attempt returns is what the caller gets."""
    assert call_with_retries(failing(then=5), max_retries=0, deadline=time.monotonic() + FAR) == 5


def test_pauses_grow_and_are_capped() -> None:
    """The n-th pause is at most a quarter of a second times 2**(n - 1), and never above 8 s."""
    rounds = [pauses_of(*[APIError("down", 503)] * 10) for _ in range(50)]

    for number in range(10):
        drawn = [pauses[number] for pauses in rounds]
        assert max(drawn) <= min(0.25 * 2**number, 8.0)
        assert min(drawn) >= 0
        assert len(set(drawn)) > 1


def test_backoff_stays_within_its_bounds() -> None:
    """Full jitter between the shortest and the growing longest."""
    backoff = Backoff(first=1.0, longest=10.0, shortest=0.5)

    for attempt in range(1, 100):
        assert 0.5 <= backoff.seconds(attempt) <= min(2.0 ** (attempt - 1), 10.0)
    assert backoff.seconds(10_000) <= 10.0


@pytest.mark.parametrize("seconds", [2.0, 10.0, LONGEST_RETRY_AFTER])
def test_pause_is_at_least_what_the_service_asks(seconds: float) -> None:
    """The service knows better than the back-off, up to the cap."""
    (pause,) = pauses_of(asks(seconds))

    assert pause >= seconds
    assert pause <= seconds + 8


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_pause_without_a_wish_is_the_back_off_s(seconds: Optional[float]) -> None:
    """No Retry-After, or one of 0, leaves the jitter."""
    (pause,) = pauses_of(asks(seconds))

    assert 0 <= pause <= 0.25


@pytest.mark.parametrize("seconds", [LONGEST_RETRY_AFTER + 0.1, 1e9])
def test_longer_wish_is_not_waited_for(seconds: float) -> None:
    """No pause at all: the error goes to the caller."""
    assert pauses_of(asks(seconds)) == []


def test_no_pause_is_begun_that_ends_after_the_deadline() -> None:
    """An attempt that has no time left would hide what the service said behind a time-out."""
    for _ in range(50):
        assert all(pause <= 1.0 for pause in pauses_of(*[APIError("down", 503)] * 10, seconds=1.0))


def test_error_of_the_last_attempt_is_raised_when_time_runs_out() -> None:
    """Not that of an attempt that was never made."""
    down = APIError("down", 503)

    with pytest.raises(APIError) as caught:
        call_with_retries(failing(down), max_retries=5, deadline=time.monotonic(), sleep=pytest.fail)

    assert caught.value is down


def test_wish_that_ends_after_the_deadline_is_not_begun() -> None:
    """Waiting would only turn an error that says something into a time-out."""
    assert pauses_of(asks(5.0), seconds=4.0) == []


def test_no_attempt_after_the_deadline() -> None:
    """Time that has passed is not made up for."""
    assert pauses_of(*[APIError("down", 503)] * 10, seconds=-1.0) == []


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("no", 401),
        APIError("no", 409),
        APIConnectionError("TLS", retryable=False),
        ValueError("a bug"),
        KeyboardInterrupt(),
        SystemExit(),
    ],
    ids=repr,
)
def test_everything_else_goes_through_at_once(error: BaseException) -> None:
    """Errors that stay, bugs, and whoever wants to end the program: the very same object, after one attempt."""
    slept: List[float] = []

    with pytest.raises(type(error)) as caught:
        call_with_retries(failing(error), max_retries=5, deadline=time.monotonic() + FAR, sleep=slept.append)

    assert caught.value is error
    assert slept == []
