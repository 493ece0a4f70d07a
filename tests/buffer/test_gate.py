"""The gate as a table of what happens when; the time is passed in."""

from __future__ import annotations

from typing import List, Optional, Tuple, Union

import pytest

from x402tools._gate import LONGEST_RETRY_AFTER, OUTAGE_AFTER, Gate
from x402tools._verdict import Move, Verdict

DOWN = Verdict(Move.TRY_AGAIN, "the service is down", 500, strike=True)
LOCKED_OUT = Verdict(Move.TRY_AGAIN, "the key is refused", 401, locked_out=True)

Step = Union[str, Verdict, Tuple[Verdict, int]]  # delivered; another POST failed; this POST failed


def wait(seconds: float) -> Verdict:
    return Verdict(Move.TRY_AGAIN, "slow down", 429, wait=seconds)


def after(*steps: Tuple[float, Step]) -> Gate:
    """A gate to which these things happened, each at its moment."""
    gate = Gate()
    for number, (now, step) in enumerate(steps):
        if isinstance(step, Verdict):
            gate.failed(step, now, f"the POST of step {number}")
        elif isinstance(step, tuple):
            gate.failed(step[0], now, step[1])
        else:
            gate.answered(now)
    return gate


@pytest.mark.parametrize(
    ("steps", "now", "closed", "reason", "trying_out"),
    [
        # nothing, successes, and a little bad luck leave it open
        ([], 0.0, (0, 0), None, False),
        ([(0.0, "delivered")], 0.0, (0, 0), None, False),
        ([(0.0, DOWN)] * (OUTAGE_AFTER - 1), 0.0, (0, 0), None, False),
        ([*[(0.0, DOWN)] * (OUTAGE_AFTER - 1), (0.0, "delivered"), (0.0, DOWN)], 0.0, (0, 0), None, False),
        # an outage closes it, for a short while at first, then lets one pass
        ([(5.0, DOWN)] * OUTAGE_AFTER, 5.0, (0.05, 0.2), DOWN.reason, True),
        ([(5.0, DOWN)] * OUTAGE_AFTER, 5.3, (0, 0), DOWN.reason, True),
        # what was sent before it closed says nothing new
        ([(5.0, DOWN)] * 50, 5.0, (0.05, 0.2), DOWN.reason, True),
        # a failed trial closes it again, a delivered one opens it
        ([*[(5.0, DOWN)] * OUTAGE_AFTER, (6.0, DOWN)], 6.0, (0.05, 0.4), DOWN.reason, True),
        ([*[(5.0, DOWN)] * OUTAGE_AFTER, (6.0, "delivered")], 6.0, (0, 0), None, False),
        # one POST that fails again and again, or a few, are told and stop nobody, whatever fails besides
        ([(5.0, (DOWN, 1))] * (OUTAGE_AFTER - 1), 5.0, (0, 0), None, False),
        ([(5.0, (DOWN, 1))] * OUTAGE_AFTER, 5.0, (0, 0), DOWN.reason, False),
        ([(5.0, (DOWN, post % 7)) for post in range(1000)], 5.0, (0, 0), DOWN.reason, False),
        ([*[(5.0, (DOWN, 1))] * 1000, (6.0, "delivered")], 6.0, (0, 0), None, False),
        ([*[(5.0, (DOWN, 1))] * 1000, *[(6.0, DOWN)] * (OUTAGE_AFTER - 1)], 6.0, (0.05, 0.2), DOWN.reason, True),
        ([*[(5.0, (DOWN, 1))] * 9, (6.0, "delivered"), *[(7.0, DOWN)] * 7], 7.0, (0, 0), None, False),
        # what the service asks for is done, within reason, and never shortened
        ([(5.0, wait(7))], 5.0, (7, 7.7), "slow down", True),
        ([(5.0, wait(7))], 12.7, (0, 0), "slow down", True),
        ([(5.0, wait(0))], 5.0, (0, 0), "slow down", True),
        ([(5.0, wait(1e9))], 5.0, (LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER + 1), "slow down", True),
        ([(5.0, wait(7)), (6.0, wait(1))], 6.0, (6, 6.7), "slow down", True),
        ([(5.0, wait(7)), (6.0, wait(20))], 6.0, (20, 21), "slow down", True),
        # a success that was under way does not undo what the service asked for; one after it opens the gate
        ([(5.0, wait(7)), (6.0, "delivered")], 6.0, (6, 6.7), "slow down", True),
        ([(5.0, wait(7)), (12.0, "delivered")], 12.0, (0, 0), None, False),
        # a refused key closes it at once
        ([(5.0, LOCKED_OUT)], 5.0, (0.05, 0.2), LOCKED_OUT.reason, True),
        ([(5.0, LOCKED_OUT), (6.0, "delivered")], 6.0, (0, 0), None, False),
    ],
)
def test_the_gate(
    steps: List[Tuple[float, Step]], now: float, closed: Tuple[float, float], reason: Optional[str], trying_out: bool
) -> None:
    """How long nobody passes, why, and whether one has to try it out then."""
    gate = after(*steps)

    least, most = closed
    assert least - 1e-9 <= gate.seconds_closed(now) <= most  # it is a difference of two floats
    assert gate.reason == reason
    assert gate.trying_out is trying_out


@pytest.mark.parametrize("verdict", [DOWN, LOCKED_OUT])
def test_a_long_outage_is_asked_about_now_and_then(verdict: Verdict) -> None:
    """The pauses grow to half a minute and no further, so that recovery is found soon; they differ."""
    gate, now, pauses = Gate(), 0.0, []

    for post in range(400):
        gate.failed(verdict, now, post)
        pauses.append(gate.seconds_closed(now))
        now += pauses[-1]

    late = pauses[100:]
    assert max(pauses) <= 30
    assert 8 < sum(late) / len(late) < 22
    assert len(set(late)) > 100


def test_a_recovered_service_is_not_suspected_for_longer() -> None:
    """After a delivery the next outage begins with short pauses again."""
    gate, now = Gate(), 0.0
    for post in range(100):
        gate.failed(DOWN, now, post)
        now += gate.seconds_closed(now)

    gate.answered(now)
    for post in range(OUTAGE_AFTER):
        gate.failed(DOWN, now, post)

    assert gate.seconds_closed(now) <= 0.2


def test_those_who_were_told_one_moment_come_back_at_different_ones() -> None:
    """A thousand processes that got the same Retry-After: they spread over a second after it."""
    gates = [after((0.0, wait(60))) for _ in range(1000)]

    moments = sorted(gate.seconds_closed(0.0) for gate in gates)

    assert moments[0] >= 60
    assert moments[-1] <= 61
    assert moments[750] - moments[250] > 0.25


def test_what_is_too_much_one_at_a_time_closes_it_at_once() -> None:
    """A service that is shared with many others refuses for load now and then: that alone closes nothing."""
    gate, now = Gate(), 0.0
    refused = Verdict(Move.TRY_AGAIN, "too many", 429, crowded=True)

    gate.failed(refused, now, 1)
    closed_at_first = gate.seconds_closed(now)
    gate.failed(refused, now, 1, is_too_much=True)

    assert closed_at_first == 0
    assert 0.05 <= gate.seconds_closed(now) <= 0.2
    assert gate.reason == "too many"
