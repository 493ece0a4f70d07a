"""Durations and rates as people write them: 10s, 500ms, 2m; 200/s, 6000/m."""

from __future__ import annotations

import re

import click

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) *(ms|s|m|h|)")
_RATE = re.compile(r"(\d+(?:\.\d+)?) */ *(s|m|h)")
_LONGEST = 86400.0  # seconds


def seconds(text: str) -> float:
    """A duration up to a day."""
    found = _DURATION.fullmatch(text)
    value = float(found[1]) * _SECONDS[found[2]] if found else -1.0
    if not 0 <= value <= _LONGEST:
        raise click.BadParameter(f"{text!r} is no duration of up to a day, such as 10s, 500ms or 2m")
    return value


def each_second(text: str) -> float:
    """A rate above 0, as so many a second."""
    found = _RATE.fullmatch(text)
    value = float(found[1]) / _SECONDS[found[2]] if found else 0.0
    if value <= 0:
        raise click.BadParameter(f"{text!r} is no rate above 0, such as 200/s or 6000/m")
    return value
