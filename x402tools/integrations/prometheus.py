"""Metrics of a buffer for Prometheus; the only door to prometheus_client. Extra: `x402tools[prometheus]`.

    from x402tools.integrations import prometheus

    prometheus.register(buffer)      # with the registry that the program exposes already
    prometheus.serve(buffer, 9402)   # or on a port of its own

The figures of the ledger are the spool's, the same in every process that shares it: take `max by (spool)`, not `sum`.
Those of the process (in memory, in flight, retries, the time of POSTs) are added up. `grafana-dashboard.json` beside
this file does so. Under a pre-fork server each process has metrics of its own, so register after the fork, and have
each scraped, or only the one that delivers: `x402tools worker PATH --metrics-port 9402`.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Iterator, List, Optional

from x402tools.buffer import AttemptTimes, UsageBuffer
from x402tools.errors import MissingExtraError
from x402tools.integrations import _measures
from x402tools.integrations._measures import COUNTER, SPOOL_LABEL, Measure

try:
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as error:
    raise MissingExtraError("metrics for Prometheus", "prometheus") from error

__all__ = ["BufferCollector", "register", "serve"]


class BufferCollector(Collector):
    """Reads buffers whenever Prometheus asks. Does not keep them alive: one that is gone tells nothing more."""

    def __init__(self) -> None:
        self._buffers: List[weakref.ref[UsageBuffer]] = []  # replaced, never changed: a scrape may be reading it

    def add(self, buffer: UsageBuffer) -> None:
        """Tells of this buffer too. Once a buffer; each has a spool of its own."""
        self._buffers = [*(one for one in self._buffers if one() not in (None, buffer)), weakref.ref(buffer)]

    def describe(self) -> Iterator[Any]:
        """The names alone, so that registering it does not read a spool."""
        for measure in _measures.MEASURES:
            yield _family(measure)
        yield _histogram()

    def collect(self) -> Iterator[Any]:
        """The figures now. While a spool cannot be read those of its ledger are missing."""
        buffers = [buffer for buffer in (one() for one in self._buffers) if buffer is not None]
        moments = [(buffer.path, _measures.look(buffer)) for buffer in buffers]
        for measure in _measures.MEASURES:
            family = _family(measure)
            for path, moment in moments:
                value = measure.value(moment)
                if value is not None:
                    family.add_metric([path], value)
            yield family
        family = _histogram()
        for path, moment in moments:
            if moment.stats is not None:
                _add_times(family, path, moment.stats.attempts)
        yield family


def register(buffer: UsageBuffer, registry: Optional[CollectorRegistry] = None) -> None:
    """Adds the metrics of a buffer to a registry (default: the global one), for as long as the buffer lives."""
    registry = registry if registry is not None else prometheus_client.REGISTRY
    collector = _collectors.get(registry)
    if collector is None:
        collector = BufferCollector()
        registry.register(collector)
        _collectors[registry] = collector
    collector.add(buffer)


def serve(buffer: UsageBuffer, port: int, address: str = "127.0.0.1") -> int:
    """Serves them, and those of the process, by HTTP on a thread of its own; returns the port (0 takes a free one).

    Raises:
        OSError: the port is taken.
    """
    register(buffer)
    server, _ = prometheus_client.start_http_server(port, address)
    return int(server.server_port)


def _family(measure: Measure) -> Any:
    kind = CounterMetricFamily if measure.kind == COUNTER else GaugeMetricFamily
    return kind(measure.prometheus_name, measure.text, labels=[SPOOL_LABEL])


def _histogram() -> Any:
    name = _measures.prometheus_name(_measures.DURATION, _measures.DURATION_UNIT)
    return HistogramMetricFamily(name, _measures.DURATION_TEXT, labels=[SPOOL_LABEL])


def _add_times(family: Any, path: str, times: AttemptTimes) -> None:
    bounds = [*(str(bound) for bound in times.bounds), "+Inf"]
    family.add_metric([path], list(zip(bounds, itertools.accumulate(times.counts))), times.total)


# A registry takes each name once, so one collector serves all its buffers.
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, BufferCollector] = weakref.WeakKeyDictionary()
