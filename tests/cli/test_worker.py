"""`x402tools worker`: delivers a spool in a process of its own, and ends in order."""

from __future__ import annotations

import json
import signal

import pytest
import requests

from tests.buffer.helpers import wait_until
from tests.cli.running import Shell, first_line
from tests.cli.test_buffer import stored
from x402tools._inspect import SpoolView
from x402tools.testing import Emulator, Fault


def pending(shell: Shell) -> int:
    with SpoolView(shell.spool) as view:
        return view.counts().pending.events


def test_it_delivers_what_a_service_only_stores(shell: Shell, emulator: Emulator) -> None:
    """Started before there is a file, it delivers what is stored while it runs, and ends with 0 at SIGTERM."""
    envelope_id = emulator.create_envelope()
    process = shell.start("worker", "usage.db", "--json")
    started = json.loads(first_line(process))

    stored(shell, emulator, *[envelope_id] * 5)
    wait_until(lambda: emulator.ledger().events == 5, "it delivers")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]

    assert (started["event"], started["pid"], started["base_url"]) == ("started", process.pid, emulator.base_url)
    assert process.returncode == 0, said
    stopped = json.loads(said.splitlines()[-1])
    assert (stopped["event"], stopped["pending"]) == ("stopped", 0)
    assert stopped["stats"]["delivered"]["events"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_cannot_be_delivered_stays(shell: Shell, emulator: Emulator, number: signal.Signals) -> None:
    """In an outage it ends with 0 after its exit time-out, says what is left, and leaves it in the spool."""
    stored(shell, emulator, *[emulator.create_envelope()] * 10)
    emulator.set_faults(Fault.status(503))
    process = shell.start("worker", "usage.db", "--exit-timeout", "0.2")
    first_line(process)

    process.send_signal(number)
    said = process.communicate(timeout=60)[0]

    assert process.returncode == 0, said
    assert "10 events pending" in said
    assert "Traceback" not in said
    assert pending(shell) == 10


def test_a_second_signal_ends_it_at_once(shell: Shell, emulator: Emulator) -> None:
    """While it still tries to deliver the rest, another signal ends it, and nothing is lost."""
    stored(shell, emulator, *[emulator.create_envelope()] * 10)
    emulator.set_faults(Fault.status(503))
    process = shell.start("worker", "usage.db", "--exit-timeout", "3600")
    first_line(process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stopping"):
            break

    process.send_signal(signal.SIGTERM)

    assert process.wait(60) == -signal.SIGTERM
    assert pending(shell) == 10


def test_its_log_has_a_line_a_change(shell: Shell, emulator: Emulator) -> None:
    """An outage of many POSTs is one line when it begins and one when it ends, not one for each event."""
    stored(shell, emulator, *[emulator.create_envelope()] * 200)
    emulator.set_faults(Fault.status(503))
    process = shell.start("worker", "usage.db")
    wait_until(lambda: emulator.faults_fired()[0] >= 12, "the outage is noticed")

    emulator.clear_faults()
    wait_until(lambda: emulator.ledger().events == 200, "all is delivered")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0].splitlines()

    assert sum("everything is kept" in line for line in said) == 1, said
    assert sum("go on" in line for line in said) == 1, said
    assert len(said) <= 6, said


def test_it_refuses_a_spool_of_another_service(shell: Shell, emulator: Emulator) -> None:
    """A spool for another base URL is left alone, and the exit code is 1."""
    stored(shell, emulator, emulator.create_envelope())

    ended = shell.run("worker", "usage.db", X402TOOLS_BASE_URL="http://127.0.0.1:1")

    assert ended.code == 1
    assert "another base_url" in ended.err


def test_metrics(shell: Shell, emulator: Emulator) -> None:
    """With --metrics-port the ledger can be scraped from it."""
    pytest.importorskip("prometheus_client", reason="metrics are the extra `prometheus`")
    stored(shell, emulator, emulator.create_envelope())
    process = shell.start("worker", "usage.db", "--metrics-port", "0", "--json")
    address = json.loads(first_line(process))["metrics"]

    wait_until(lambda: emulator.ledger().events == 1, "it delivers")

    def scraped() -> str:
        return requests.get(address, timeout=10).text

    wait_until(lambda: "x402tools_delivered_events_total{" in scraped(), "it is there")
    wait_until(lambda: f'x402tools_delivered_events_total{{spool="{shell.spool}"}} 1.0' in scraped(), "it is counted")
