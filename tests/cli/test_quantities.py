"""Durations and rates as people write them."""

from __future__ import annotations

import click
import pytest

from x402tools._cli.quantities import each_second, seconds


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10.0), ("0.2", 0.2), ("10s", 10.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0)]
)
def test_durations(text: str, value: float) -> None:
    """Seconds where nothing is said."""
    assert seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("200/s", 200.0), ("6000/m", 100.0), ("0.5/s", 0.5), ("36 / h", 0.01)])
def test_rates(text: str, value: float) -> None:
    """So many a second."""
    assert each_second(text) == value


@pytest.mark.parametrize("text", ["", "-1", "25h", "10 parsecs", "1e3", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With examples of what is one."""
    with pytest.raises(click.BadParameter, match="10s"):
        seconds(text)


@pytest.mark.parametrize("text", ["", "200", "0/s", "-1/s", "200/y", "/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """With examples of what is one."""
    with pytest.raises(click.BadParameter, match="200/s"):
        each_second(text)
