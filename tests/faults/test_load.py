"""L1 to L7 of the fault catalogue: more than fits, more than is delivered, and one POST that is never accepted.

L1 is tests/buffer/test_queue_full.py. L6, a day of it, is as long as one makes it: `python -m
tests.conservation.campaign --rounds 1000`; its rounds also run with every `make test` (tests/conservation).
"""

from __future__ import annotations

from typing import Iterator

import pytest

from tests.buffer.bench import MakeBench, benches
from x402tools.errors import APIConnectionError, APIError

HOUR = 3600.0


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with benches() as make:
        yield make


@pytest.mark.parametrize("error", [APIError("broken", 500), APIConnectionError("reset")], ids=["500", "reset"])
@pytest.mark.parametrize("poisons", [1, 7])
@pytest.mark.parametrize("quiet", [1.0, 60.0, HOUR])
def test_L07_poison_in_a_quiet_time_delays_no_other(
    make_bench: MakeBench, error: Exception, poisons: int, quiet: float
) -> None:
    """However long nothing but the poison was tried, what comes next is delivered within a second of being stored."""
    bench = make_bench({f"rec-1-{at}": [error] for at in range(poisons)}, max_attempts=1000, flush_interval=0.1)
    bench.record(*[1] * poisons)
    bench.run_for(quiet)

    bench.record(2)
    recorded_at = bench.clock()
    bench.run_until(lambda: bench.deliver.taken == ["rec-2-0"])

    assert bench.clock() - recorded_at < 1


def test_L07_poison_that_closed_the_gate_does_not_keep_it_closed(make_bench: MakeBench) -> None:
    """Fifty at once look like an outage; the next good one is tried before any of them again, and opens the gate."""
    bench = make_bench({f"rec-1-{at}": [APIError("broken", 500)] for at in range(50)}, max_attempts=1000)
    bench.record(*[1] * 50)
    bench.run_for(HOUR)
    bench.record(2)
    recorded_at = bench.clock()

    bench.run_until(lambda: "rec-2-0" in bench.deliver.taken)

    assert bench.clock() - recorded_at <= 31  # the longest time that the gate stays closed, and a look at the store
    assert len(bench.deliver.keys()) < HOUR  # and until then the service was left alone
