"""The arithmetic under the figures."""

from __future__ import annotations

import pytest

from benchmarks.harness.figures import curve, distribution, percentile, ratio
from benchmarks.harness.webserver import parse_wrk
from benchmarks.sections.growth import fitted_power


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (90, 90), (99, 99), (99.9, 100), (100, 100)]
)
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    """Nearest rank: of 1 to 100 the 99th percentile is 99."""
    ordered = list(range(1, 101))

    assert percentile(ordered, percent) == expected


@pytest.mark.parametrize(("ordered", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_beyond_all(ordered: list, percent: float) -> None:
    """It raises rather than to invent a figure."""
    with pytest.raises(ValueError, match="no percentile"):
        percentile(ordered, percent)


def test_a_distribution_names_its_percentiles() -> None:
    """p50, p90, p99, p99.9 and max, whatever the order of the values."""
    values = [float(value) for value in range(1000, 0, -1)]

    found = distribution(values)

    assert found == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}


def test_a_curve_goes_as_far_into_the_tail_as_there_are_values() -> None:
    """A hundred values say nothing about the 99.9th percentile."""
    few = curve(range(100))
    many = curve(range(100_000))

    assert few[-1][0] == 99.0
    assert many[-1][0] == 99.999


def test_a_ratio_with_something_unknown_is_unknown() -> None:
    """A missing peer gives no figure instead of a wrong one."""
    assert ratio(6.0, 2.0) == 3.0
    assert ratio(None, 2.0) is None
    assert ratio(6.0, None) is None
    assert ratio(6.0, 0.0) is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_power_of_a_curve_is_found(power: float) -> None:
    """3 x^power has that power."""
    points = {x: 3 * x**power for x in (1, 10, 100, 1000)}

    assert fitted_power(points) == pytest.approx(power, abs=1e-9)


def test_what_wrk_prints_is_understood() -> None:
    """Rate, latencies in any of its units, and every kind of error."""
    text = """Running 2s test @ http://127.0.0.1:4711/items/17
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    12.27ms   27.42ms 240.13ms   92.01%
    Req/Sec     3.33k     1.06k    5.09k    70.00%
  Latency Distribution
     50%  753.00us
     75%    9.44ms
     90%   30.12ms
     99%    1.50s
  6633 requests in 2.00s, 1.51MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 7
Requests/sec:   3311.15
Transfer/sec:    773.12KB
"""

    assert parse_wrk(text) == {"rate": 3311.15, "p50": 753.0, "p99": 1_500_000.0, "errors": 12}
