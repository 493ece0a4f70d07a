"""What the processes that deliver from one store tell each other through it, turn by turn on a bench."""

from __future__ import annotations

from typing import Iterator, List

import pytest

from tests.buffer.bench import MakeBench, benches
from x402tools._store import Allowance
from x402tools.errors import APIConnectionError, AuthenticationError, RateLimitError, X402Error


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


@pytest.mark.parametrize(
    ("refusal", "seconds"),
    [(RateLimitError("slow down", 429, retry_after=7.0), 7.0), (AuthenticationError("wrong key", 401), 0.2)],
)
def test_what_the_service_tells_one_process_is_passed_on(
    make_bench: MakeBench, refusal: X402Error, seconds: float
) -> None:
    """How long nobody may send, and why; once, however many POSTs were under way."""
    bench = make_bench({"rec-1-0": [refusal]}, concurrency=1)
    bench.record(1, 2, 3)

    bench.run_until(lambda: bench.store.shuts)

    ((reason, told),) = bench.store.shuts
    assert str(refusal) in reason
    assert 0.0 < told <= seconds


def test_an_outage_is_not_passed_on(make_bench: MakeBench) -> None:
    """It may be the network of this host alone."""
    bench = make_bench(default=APIConnectionError("refused"))
    bench.record(*[1] * 20)

    bench.run_for(60.0)

    assert bench.flusher.gate_reason is not None
    assert bench.store.shuts == []


def test_nothing_is_sent_while_another_process_was_told_to_wait(make_bench: MakeBench) -> None:
    """It says why, asks again when the time is over, and tells the others once the service has answered."""
    bench = make_bench()
    bench.store.allows = lambda _: Allowance(0, 30.0, "slow down")
    bench.record(*[1] * 10)

    bench.run_for(29.0)
    sent, reason, asked = bench.deliver.keys(), bench.flusher.gate_reason, len(bench.store.asked)
    bench.store.allows = lambda most: Allowance(most) if bench.store.reopened else Allowance(1, 0.05, "slow down")
    bench.run_until(bench.is_empty)

    assert (sent, reason, asked) == ([], "slow down", 1)
    assert bench.store.reopened == 1
    assert bench.flusher.gate_reason is None
    assert bench.observer.gate == ["slow down", None]


def test_a_rate_is_kept_and_nothing_is_asked_for_that_is_not_sent(make_bench: MakeBench) -> None:
    """So that what one process does not need is there for another."""
    bench = make_bench(concurrency=4)
    begun = bench.clock()
    granted: List[int] = []

    def two_a_second(most: int) -> Allowance:
        left = int(2 * (bench.clock() - begun)) - sum(granted)
        granted.append(min(most, left))
        return Allowance(granted[-1], 0.5)

    bench.store.allows = two_a_second
    bench.record(*[1] * 10)

    bench.run_until(bench.is_empty)

    assert sum(granted) == len(bench.deliver.keys()) == 10
    assert 5.0 <= bench.clock() - begun <= 6.0
    assert bench.flusher.gate_reason is None
