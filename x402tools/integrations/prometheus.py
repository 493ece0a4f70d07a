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
from typing import Any, Iterator, Optional

from x402tools.buffer import UsageBuffer
from x402tools.errors import MissingExtraError
from x402tools.integrations import _measures
from x402tools.integrations._measures import COUNTER, SPOOL_LABEL, Measure, Moment

try:
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as error:
    raise MissingExtraError("metrics for Prometheus", "prometheus") from error

__all__ = ["BufferCollector", "register", "serve"]


class BufferCollector(Collector):
    """Reads a buffer whenever Prometheus asks. Does not keep it alive: one that is gone tells nothing more."""

    def __init__(self, buffer: UsageBuffer) -> None:
        self._buffer = weakref.ref(buffer)

    def describe(self) -> Iterator[Any]:
        """The names alone, so that registering it does not read the spool."""
        for measure in _measures.MEASURES:
            yield _family(measure)
        yield _histogram()

    def collect(self) -> Iterator[Any]:
        """The figures now. While the spool cannot be read those of the ledger are missing."""
        buffer = self._buffer()
        if buffer is None:
            return
        moment = _measures.look(buffer)
        for measure in _measures.MEASURES:
            value = measure.value(moment)
            if value is not None:
                family = _family(measure)
                family.add_metric([buffer.path], value)
                yield family
        if moment.stats is not None:
            yield _times(moment, buffer.path)


def register(buffer: UsageBuffer, registry: Optional[CollectorRegistry] = None) -> BufferCollector:
    """Adds the metrics of a buffer to a registry (default: the global one); unregister what is returned there."""
    collector = BufferCollector(buffer)
    (registry or prometheus_client.REGISTRY).register(collector)
    return collector


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


def _times(moment: Moment, path: str) -> Any:
    family, times = _histogram(), moment.attempts
    bounds = [*(str(bound) for bound in times.bounds), "+Inf"]
    family.add_metric([path], list(zip(bounds, itertools.accumulate(times.counts))), times.total)
    return family
