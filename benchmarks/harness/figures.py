"""Arithmetic of measurements: percentiles, medians, ratios."""

from __future__ import annotations

import statistics
from typing import Dict, Iterable, List, Optional, Sequence

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value of a sorted sequence that `percent` of it do not exceed (nearest rank).

    Raises:
        ValueError: there are no values, or `percent` is not from 0 to 100.
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(ordered)} values")
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]


def distribution(values: Iterable[float]) -> Dict[str, float]:
    """p50, p90, p99, p99.9 and max of the values."""
    ordered = sorted(values)
    result = {f"p{percent:g}": percentile(ordered, percent) for percent in PERCENTILES}
    result["max"] = ordered[-1]
    return result


def curve(values: Iterable[float]) -> List[List[float]]:
    """[percent, value] for a chart of the distribution, as far into the tail as the number of values carries."""
    ordered = sorted(values)
    points = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999]
    furthest = 100 - 100 / len(ordered)
    return [[point, percentile(ordered, point)] for point in points if point <= furthest or point <= 50]


def median(values: Iterable[float]) -> float:
    """The median of rounds."""
    return float(statistics.median(values))


def ratio(value: Optional[float], other: Optional[float]) -> Optional[float]:
    """value / other, or None when one of them is not known or there is nothing to divide by."""
    if value is None or not other:
        return None
    return value / other
