"""What is measured of a buffer, once for every system that collects metrics.

The names are OpenTelemetry's; Prometheus gets what an OpenTelemetry exporter would make of them (dots become
underscores, the unit is appended, counters end in `_total`), so that one dashboard serves both.

What belongs to the spool (`of_spool`) is the same in all processes that share it: a dashboard takes the highest. The
rest belongs to the process, and is added up.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from x402tools._timings import BOUNDS
from x402tools.buffer import BufferStats, Health, UsageBuffer
from x402tools.errors import SpoolError

__all__ = ["BOUNDS", "MEASURES", "Measure", "Moment", "look", "prometheus_name"]

COUNTER, GAUGE = "counter", "gauge"
SPOOL_LABEL = "spool"  # its value is the path of the spool

DURATION = "x402tools.post.duration"
DURATION_UNIT = "s"
DURATION_TEXT = "Seconds that a POST took, failed ones included"

_SUFFIXES = {"s": "_seconds", "By": "_bytes"}


class Moment(NamedTuple):
    """A buffer at a moment. `stats` is None while its spool cannot be read."""

    stats: Optional[BufferStats]
    health: Health


class Measure(NamedTuple):
    """A figure.

    Attributes:
        name: as OpenTelemetry has it.
        kind: COUNTER or GAUGE.
        unit: in UCUM, in braces what is only a word; empty for 0 or 1.
        text: what it says.
        of_spool: whether all processes that share a spool tell the same.
        value: the figure at a moment, or None.
    """

    name: str
    kind: str
    unit: str
    text: str
    of_spool: bool
    value: Callable[[Moment], Optional[float]]

    @property
    def prometheus_name(self) -> str:
        """Its name there, without the `_total` that the library appends to a counter."""
        return prometheus_name(self.name, self.unit)


def prometheus_name(name: str, unit: str) -> str:
    """A name as Prometheus has it."""
    return name.replace(".", "_") + _SUFFIXES.get(unit, "")


def look(buffer: UsageBuffer) -> Moment:
    """The buffer now. Never raises."""
    try:
        stats: Optional[BufferStats] = buffer.stats()
    except SpoolError:
        stats = None
    return Moment(stats, buffer.health())


def _of_stats(read: Callable[[BufferStats], Any]) -> Callable[[Moment], Optional[float]]:
    def value(moment: Moment) -> Optional[float]:
        found = None if moment.stats is None else read(moment.stats)
        return None if found is None else float(found)

    return value


def _tally(name: str, part: str) -> Callable[[Moment], Optional[float]]:
    return _of_stats(lambda stats: getattr(getattr(stats, name, None), part, None))


_TALLIES: Dict[str, Tuple[str, str]] = {
    "recorded": (COUNTER, "recorded"),
    "delivered": (COUNTER, "delivered"),
    "dropped": (COUNTER, "lost, because memory was full or the process ended while the disk failed"),
    "pending": (GAUGE, "recorded, and neither delivered nor dead"),
    "held": (GAUGE, "of unknown outcome, a part of pending, kept apart until reconcile()"),
    "dead": (GAUGE, "refused for good and set aside"),
}


def _tallies() -> Iterator[Measure]:
    for name, (kind, text) in _TALLIES.items():
        yield Measure(f"x402tools.{name}.events", kind, "{event}", f"Events {text}", True, _tally(name, "events"))
        yield Measure(f"x402tools.{name}.units", kind, "{unit}", f"Units of usage {text}", True, _tally(name, "units"))


MEASURES: List[Measure] = [
    *_tallies(),
    Measure(
        "x402tools.oldest_pending.age",
        GAUGE,
        "s",
        "Seconds since the oldest pending event was stored, 0 when nothing is pending",
        True,
        _of_stats(lambda stats: stats.oldest_pending_age or 0.0),
    ),
    Measure("x402tools.spool.size", GAUGE, "By", "Bytes in use in the spool", True, _of_stats(lambda s: s.spool_bytes)),
    Measure(
        "x402tools.in_memory.events",
        GAUGE,
        "{event}",
        "Pending events of this process that are not on disk yet",
        False,
        _of_stats(lambda stats: stats.in_memory),
    ),
    Measure(
        "x402tools.in_flight.posts",
        GAUGE,
        "{post}",
        "POSTs of this process under way",
        False,
        _of_stats(lambda stats: stats.in_flight),
    ),
    Measure(
        "x402tools.in_flight.limit",
        GAUGE,
        "{post}",
        "POSTs this process may have under way at the moment, 0 where another one delivers",
        False,
        _of_stats(lambda stats: stats.in_flight_limit),
    ),
    Measure(
        "x402tools.retries",
        COUNTER,
        "{post}",
        "Attempts of this process that failed and are repeated",
        False,
        _of_stats(lambda stats: stats.retries),
    ),
    Measure(
        "x402tools.delivering",
        GAUGE,
        "",
        "1 in the process that delivers, of all that share a spool",
        False,
        _of_stats(lambda stats: stats.delivering),
    ),
    Measure(
        "x402tools.gate.closed",
        GAUGE,
        "",
        "1 while nothing is sent: the service is away, asked to wait, or refuses the key",
        False,
        lambda moment: float(not moment.health.gate.ok),
    ),
    Measure(
        "x402tools.healthy",
        GAUGE,
        "",
        "1 while every part of the buffer in this process is well",
        False,
        lambda moment: float(moment.health.ok),
    ),
]
