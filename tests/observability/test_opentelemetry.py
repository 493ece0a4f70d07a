"""Metrics for OpenTelemetry, read by the SDK's own reader."""

from __future__ import annotations

import gc
import pathlib
from typing import Any, Dict, List

import pytest

pytest.importorskip("opentelemetry.sdk", reason="metrics are the extra `otel`, and reading them needs the SDK")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.buffer.helpers import wait_until
from tests.observability.helpers import metered
from x402tools import UsageBuffer
from x402tools._timings import BOUNDS
from x402tools.integrations import _measures, opentelemetry
from x402tools.testing import Emulator, Fault


class Reading:
    """A provider of its own, and what its reader finds."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def metrics(self) -> Dict[str, Any]:
        """The metrics by name."""
        data = self._reader.get_metrics_data()
        scopes = [] if data is None else [scope for one in data.resource_metrics for scope in one.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> List[Any]:
        """The points of one metric; none where there is no such metric now."""
        metric = self.metrics().get(name)
        return [] if metric is None else list(metric.data.data_points)


def test_the_ledger_is_exported(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """The figures are those of `stats()`, with the spool as an attribute, and with their units."""
    envelope_id, reading = emulator.create_envelope(), Reading()
    with metered(emulator, tmp_spool) as (client, buffer):
        opentelemetry.instrument(buffer, reading.provider)
        client.record_usage(envelope_id, 5)
        client.record_usage("nope", 7)
        assert client.flush(20)

        found = reading.metrics()

    values = {name: metric.data.data_points[0].value for name, metric in found.items() if name != _measures.DURATION}
    assert set(values) == {measure.name for measure in _measures.MEASURES}
    assert (values["x402tools.recorded.events"], values["x402tools.recorded.units"]) == (2, 12)
    assert (values["x402tools.delivered.events"], values["x402tools.dead.units"]) == (1, 7)
    assert (values["x402tools.pending.events"], values["x402tools.gate.closed"]) == (0, 0)
    assert (values["x402tools.healthy"], values["x402tools.delivering"]) == (1, 1)
    assert found["x402tools.oldest_pending.age"].unit == "s"
    assert found["x402tools.spool.size"].unit == "By"
    assert dict(found["x402tools.pending.units"].data.data_points[0].attributes) == {"spool": str(tmp_spool)}


def test_the_time_of_posts_is_a_histogram_in_seconds(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """Each attempt since it is measured, in the bounds that the buffer itself counts with."""
    envelope_id, reading = emulator.create_envelope(), Reading()
    emulator.set_faults(Fault.status(500, times=1), Fault.latency(0.1))
    with metered(emulator, tmp_spool) as (client, buffer):
        opentelemetry.instrument(buffer, reading.provider)
        client.record_usage(envelope_id, 1)
        assert client.flush(20)

        (point,) = reading.points(_measures.DURATION)
        times = buffer.stats().attempts

    assert tuple(point.explicit_bounds) == BOUNDS
    assert tuple(point.bucket_counts) == times.counts
    assert point.count == 2
    assert point.sum == pytest.approx(times.total)


def test_a_closed_gate_is_seen(emulator: Emulator, tmp_spool: pathlib.Path) -> None:
    """1 while the service refuses the key, and 0 when it lets pass again."""
    envelope_id, reading = emulator.create_envelope(), Reading()
    emulator.set_faults(Fault.status(401))
    with metered(emulator, tmp_spool) as (client, buffer):
        opentelemetry.instrument(buffer, reading.provider)
        client.record_usage(envelope_id, 1)

        def gate() -> Any:
            return [point.value for point in reading.points("x402tools.gate.closed")]

        wait_until(lambda: gate() == [1], "the gate is seen closed")
        emulator.clear_faults()
        wait_until(lambda: gate() == [0], "the gate is seen open")


def test_two_buffers_are_told_apart(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Two buffers by one provider are two points of each metric; one that is gone is none any more."""
    reading = Reading()
    buffers = [UsageBuffer(tmp_path / name, deliver=False) for name in ("a.db", "b.db")]
    for buffer in buffers:
        opentelemetry.instrument(buffer, reading.provider)
        buffer.close()

    both = reading.points("x402tools.pending.events")
    del buffer, buffers
    gc.collect()

    assert {point.attributes["spool"] for point in both} == {str(tmp_path / "a.db"), str(tmp_path / "b.db")}
    assert reading.points("x402tools.pending.events") == []


def test_the_names_are_those_of_prometheus() -> None:
    """One dashboard serves both: dots become underscores and units are appended, as exporters do it."""
    assert _measures.prometheus_name("x402tools.oldest_pending.age", "s") == "x402tools_oldest_pending_age_seconds"
    assert _measures.prometheus_name("x402tools.spool.size", "By") == "x402tools_spool_size_bytes"
    assert _measures.prometheus_name("x402tools.retries", "{post}") == "x402tools_retries"
