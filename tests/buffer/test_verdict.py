"""What an answer means for the POST: every row of the table in `_verdict`, from the errors as the client makes them."""

from __future__ import annotations

import json
from typing import Dict, Optional

import pytest

from x402tools import _answers
from x402tools._http import Reply
from x402tools._verdict import DELIVERED, Move, Verdict, judge
from x402tools.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    QueueFullError,
    ValidationError,
    X402Error,
)

AGAIN, BURY = Move.TRY_AGAIN, Move.BURY


def error_of(status: int, message: str = "no", retry_after: Optional[str] = None) -> X402Error:
    """The error that the client raises for this answer to a usage POST."""
    headers: Dict[str, str] = {} if retry_after is None else {"Retry-After": retry_after}
    with pytest.raises(X402Error) as raised:
        _answers.check(Reply(status, headers, json.dumps({"error": message}).encode()), envelope=True)
    return raised.value


@pytest.mark.parametrize(
    ("status", "move", "strike", "locked_out"),
    [
        (101, AGAIN, False, False),
        (300, AGAIN, False, False),
        (301, AGAIN, False, False),
        (302, AGAIN, False, False),
        (307, AGAIN, False, False),
        (308, AGAIN, False, False),
        (400, BURY, False, False),
        (401, AGAIN, False, True),
        (402, BURY, False, False),
        (403, AGAIN, False, True),
        (404, BURY, False, False),
        (405, BURY, False, False),
        (407, AGAIN, False, True),
        (408, AGAIN, False, False),
        (409, BURY, False, False),
        (413, BURY, False, False),
        (418, BURY, False, False),
        (422, BURY, False, False),
        (429, AGAIN, False, False),
        (500, AGAIN, True, False),
        (501, AGAIN, True, False),
        (502, AGAIN, True, False),
        (503, AGAIN, True, False),
        (504, AGAIN, True, False),
        (599, AGAIN, True, False),
    ],
)
def test_the_verdict_on_a_status(status: int, move: Move, strike: bool, locked_out: bool) -> None:
    """Tried again, or set aside; the POST's own fault perhaps; the key's fault; never a wait nobody asked for.

    Only a gateway that had no good answer from the service leaves open whether the usage was booked. 429 and 503 say
    that there are too many.
    """
    verdict = judge(error_of(status))

    unknown, crowded = status in (502, 504), status in (429, 503)
    assert verdict == Verdict(move, "no", status, strike, None, locked_out, unknown, crowded)


@pytest.mark.parametrize(
    ("status", "retry_after", "wait", "strike"),
    [
        (429, "7", 7.0, False),
        (429, "0", 0.0, False),
        (429, "soon", None, False),
        (503, "7", 7.0, False),
        (503, "1.5", 1.5, False),
        (503, "nan", None, True),
        (500, "7", None, True),
        (408, "7", None, False),
    ],
)
def test_the_wait_that_a_service_asks_for(status: int, retry_after: str, wait: Optional[float], strike: bool) -> None:
    """429 and 503 say how long everybody has to stay away, and then nobody's POST is to blame."""
    verdict = judge(error_of(status, retry_after=retry_after))

    assert (verdict.move, verdict.wait, verdict.strike) == (AGAIN, wait, strike)


@pytest.mark.parametrize("status", [400, 403, 409, 422])
def test_an_exceeded_limit_sets_aside_whatever_its_status(status: int) -> None:
    """A limit of the envelope is no broken key: waiting would not help."""
    verdict = judge(error_of(status, "Usage limit exceeded"))

    assert verdict.move is BURY
    assert not verdict.locked_out


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (APIConnectionError("reset"), True),
        (APIConnectionError("refused", maybe_processed=False), False),
        (APIConnectionError("bad certificate", retryable=False, maybe_processed=False), False),
        (APITimeoutError("no answer in time"), True),
        (APITimeoutError("no connection in time", maybe_processed=False), False),
        (ValidationError("the key has a line end"), False),
        (APIError("the answer is too long"), False),
        (QueueFullError("strange, but kept"), False),
    ],
    ids=str,
)
def test_without_an_answer_it_is_tried_again(error: X402Error, unknown: bool) -> None:
    """Nothing is lost for a broken network, certificate, proxy or key file; unknown is only what was sent."""
    assert judge(error) == Verdict(AGAIN, str(error), unknown=unknown)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_a_success_is_a_success_whatever_its_body(status: int) -> None:
    """The status decides: HTML behind a 201 does not bill twice."""
    assert judge(APIError("not the JSON promised", status)) == DELIVERED


def test_a_verdict_keeps_no_page_and_no_exception() -> None:
    """A reason is text of a bounded length; an exception would keep the request and its key alive."""
    verdict = judge(APIError("x" * 100_000, 400))

    assert len(verdict.reason) == 1000
    assert not any(isinstance(field, BaseException) for field in verdict)
