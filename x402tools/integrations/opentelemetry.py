"""Metrics of a buffer for OpenTelemetry; the only door to it. Extra: `x402tools[otel]`.

    from x402tools.integrations import opentelemetry

    opentelemetry.instrument(buffer)   # by the meter provider that the program has set up

The names are in `_measures`, which also says how they read in Prometheus. The figures of the ledger are the spool's,
the same in every process that shares it: take the highest, not the sum. The extra brings the API alone; which SDK and
which exporter there are is the program's own choice.
"""

from __future__ import annotations

import time
import weakref
from functools import partial
from typing import Any, Iterable, List, Optional, Tuple

from x402tools import __version__
from x402tools.buffer import UsageBuffer
from x402tools.errors import MissingExtraError
from x402tools.integrations import _measures
from x402tools.integrations._measures import COUNTER, SPOOL_LABEL, Measure, Moment

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
except ImportError as error:
    raise MissingExtraError("metrics for OpenTelemetry", "otel") from error

__all__ = ["instrument"]

# All instruments are read within one collection: one look at the buffer serves them. Seconds.
_SAME_MOMENT = 0.05


def instrument(buffer: UsageBuffer, meter_provider: Optional[MeterProvider] = None) -> None:
    """Measures a buffer from now on, and does not keep it alive. Once a buffer; there may be several.

    Args:
        buffer: what is measured.
        meter_provider: default: the global one.
    """
    provider = meter_provider if meter_provider is not None else metrics.get_meter_provider()
    known = _instruments.get(provider)
    if known is None:
        known = _instruments[provider] = _Instruments(provider)
    known.add(buffer)


class _Instruments:
    """The instruments of one provider, for all buffers: a provider takes each name once."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = metrics.get_meter("x402tools", __version__, provider)
        self._looks: List[_Look] = []
        for measure in _measures.MEASURES:
            create = meter.create_observable_counter if measure.kind == COUNTER else meter.create_observable_gauge
            create(measure.name, [partial(self._observe, measure)], measure.unit, measure.text)
        self._duration = meter.create_histogram(
            _measures.DURATION,
            _measures.DURATION_UNIT,
            _measures.DURATION_TEXT,
            explicit_bucket_boundaries_advisory=list(_measures.BOUNDS),
        )

    def add(self, buffer: UsageBuffer) -> None:
        self._looks = [look for look in self._looks if look.buffer() is not None] + [_Look(buffer)]
        buffer.watch_attempts(partial(_record, self._duration, {SPOOL_LABEL: buffer.path}))

    def _observe(self, measure: Measure, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002 - as asked
        for look in self._looks:
            found = look.moment()
            value = None if found is None else measure.value(found[1])
            if found is not None and value is not None:
                yield Observation(int(value) if value.is_integer() else value, {SPOOL_LABEL: found[0]})


class _Look:
    """A buffer, and what it said last."""

    def __init__(self, buffer: UsageBuffer) -> None:
        self.buffer = weakref.ref(buffer)
        self._last: Optional[Moment] = None
        self._until = 0.0

    def moment(self) -> Optional[Tuple[str, Moment]]:
        """The path of its spool, and how it is; None when it is gone."""
        buffer = self.buffer()
        if buffer is None:
            return None
        if self._last is None or time.monotonic() >= self._until:
            self._last = _measures.look(buffer)
            self._until = time.monotonic() + _SAME_MOMENT
        return buffer.path, self._last


def _record(histogram: Any, attributes: Any, seconds: float) -> None:
    histogram.record(seconds, attributes)


_instruments: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
