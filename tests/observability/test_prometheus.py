"""Metrics for Prometheus, scraped from a real endpoint; and the dashboard that asks for them."""

from __future__ import annotations

import gc
import json
import pathlib
import re
from typing import Dict, Iterator, Set

import pytest
import requests

pytest.importorskip("prometheus_client", reason="metrics are the extra `prometheus`")

import prometheus_client

from tests.buffer.helpers import wait_until
from tests.observability.helpers import metered
from x402tools import UsageBuffer
from x402tools.integrations import prometheus
from x402tools.testing import Emulator, Fault

DASHBOARD = pathlib.Path(prometheus.__file__).with_name("grafana-dashboard.json")
NAME = re.compile(r"x402tools_\w+")


class Endpoint:
    """A registry of its own, served by prometheus_client."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self._server, self._thread = prometheus_client.start_http_server(0, "127.0.0.1", self.registry)

    def text(self) -> str:
        """What a scrape gets."""
        answer = requests.get(f"http://127.0.0.1:{self._server.server_port}/metrics", timeout=20)
        answer.raise_for_status()
        return answer.text

    def samples(self) -> Dict[str, float]:
        """The samples without the label of the spool, for tests with one spool."""
        lines = (line.rsplit(" ", 1) for line in self.text().splitlines() if not line.startswith("#"))
        return {re.sub(r',?spool="[^"]*"', "", name).replace("{}", ""): float(value) for name, value in lines}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    serving = Endpoint()
    yield serving
    serving.close()


def test_the_ledger_is_exported(emulator: Emulator, tmp_spool: pathlib.Path, endpoint: Endpoint) -> None:
    """Recorded, delivered, dead and pending, in events and in units, are those of `stats()`."""
    envelope_id = emulator.create_envelope()
    with metered(emulator, tmp_spool) as (client, buffer):
        prometheus.register(buffer, endpoint.registry)
        for amount in (5, 6):
            client.record_usage(envelope_id, amount)
        client.record_usage("nope", 7)
        assert client.flush(20)
        emulator.set_faults(Fault.status(503))
        client.record_usage(envelope_id, 8)
        wait_until(lambda: buffer.stats().retries >= 1, "an attempt failed")

        found = endpoint.samples()

    for name, events, units in (("delivered", 2, 11), ("recorded", 4, 26)):
        assert (found[f"x402tools_{name}_events_total"], found[f"x402tools_{name}_units_total"]) == (events, units)
    for name, events, units in (("dead", 1, 7), ("pending", 1, 8)):
        assert (found[f"x402tools_{name}_events"], found[f"x402tools_{name}_units"]) == (events, units)
    assert found["x402tools_dropped_events_total"] == 0
    assert found["x402tools_oldest_pending_age_seconds"] > 0
    assert found["x402tools_retries_total"] >= 1
    assert found["x402tools_delivering"] == 1
    assert found["x402tools_spool_size_bytes"] > 0
    assert found["x402tools_post_duration_seconds_count"] >= 4
    assert found['x402tools_post_duration_seconds_bucket{le="+Inf"}'] == found["x402tools_post_duration_seconds_count"]


def test_a_closed_gate_is_seen(emulator: Emulator, tmp_spool: pathlib.Path, endpoint: Endpoint) -> None:
    """1 while the service refuses the key, 0 before; health says the same."""
    envelope_id = emulator.create_envelope()
    with metered(emulator, tmp_spool) as (client, buffer):
        prometheus.register(buffer, endpoint.registry)
        before = endpoint.samples()
        emulator.set_faults(Fault.status(401))
        client.record_usage(envelope_id, 1)
        wait_until(lambda: not buffer.health().gate.ok, "the key is refused")

        after = endpoint.samples()

    assert (before["x402tools_gate_closed"], before["x402tools_healthy"]) == (0, 1)
    assert (after["x402tools_gate_closed"], after["x402tools_healthy"]) == (1, 0)


def test_two_buffers_are_told_apart(emulator: Emulator, tmp_path: pathlib.Path, endpoint: Endpoint) -> None:
    """Each has its spool as a label, also when it is registered twice."""
    envelope_id, paths = emulator.create_envelope(), [tmp_path / "a.db", tmp_path / "b.db"]
    with metered(emulator, paths[0]) as (client, one), metered(emulator, paths[1]) as (_, other):
        for buffer in (one, other, one):
            prometheus.register(buffer, endpoint.registry)
        client.record_usage(envelope_id, 1)
        assert client.flush(20)

        lines = endpoint.text().splitlines()

    for path, count in zip(paths, ("1.0", "0.0")):
        assert lines.count(f'x402tools_recorded_events_total{{spool="{path}"}} {count}') == 1


def test_a_buffer_that_is_gone_tells_nothing(tmp_spool: pathlib.Path, endpoint: Endpoint) -> None:
    """Its metrics do not keep a buffer alive, and a scrape after its end works."""
    buffer = UsageBuffer(tmp_spool, deliver=False)
    prometheus.register(buffer, endpoint.registry)
    buffer.close()
    assert "x402tools_pending_events{" in endpoint.text()

    del buffer
    gc.collect()

    assert "x402tools_pending_events{" not in endpoint.text()


def test_every_metric_is_explained(emulator: Emulator, tmp_spool: pathlib.Path, endpoint: Endpoint) -> None:
    """Each has a help text and a type."""
    with metered(emulator, tmp_spool) as (_, buffer):
        prometheus.register(buffer, endpoint.registry)
        lines = endpoint.text().splitlines()

    helped = {line.split()[2] for line in lines if line.startswith("# HELP") and len(line.split()) > 4}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert helped == typed
    assert len(typed) >= 18


def test_the_dashboard_asks_for_what_there_is(emulator: Emulator, tmp_spool: pathlib.Path, endpoint: Endpoint) -> None:
    """Every name in the queries of the dashboard is exported, and everything exported is looked at somewhere."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    with metered(emulator, tmp_spool) as (_, buffer):
        prometheus.register(buffer, endpoint.registry)
        exported = {name.split("{")[0] for name in endpoint.samples()}

    queries = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in document["templating"]["list"] if isinstance(one["query"], dict)]
    asked: Set[str] = {name for query in [*queries, *variables] for name in NAME.findall(query)}

    assert queries
    assert asked == {name for name in exported if NAME.fullmatch(name)}


def test_what_is_the_spools_is_not_added_up() -> None:
    """The ledger is the same in every process that shares the spool: a sum over them would be too high."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in document["panels"] for target in panel["targets"]]

    for query in queries:
        if re.search(r"x402tools_(recorded|delivered|pending|dead|dropped|oldest|spool)_", query):
            assert query.startswith("max by (spool)"), query
