"""`x402tools worker --store`: any number of them on one engine, and the commands that look after what is in it."""

from __future__ import annotations

import pathlib
import signal
from typing import Iterator, Sequence

import pytest

from tests.buffer.helpers import wait_until
from tests.cli.running import Shell, first_line
from tests.stores import servers
from tests.stores.servers import Server
from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator, Fault

PASSWORD = "not-to-be-seen"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers.require(servers.REDIS)
    with Server(tmp_path_factory.mktemp("engine"), options=("--requirepass", PASSWORD)) as started:
        yield started


@pytest.fixture
def store(server: Server) -> str:
    """The URL of an empty engine."""
    server.ask("FLUSHALL", password=PASSWORD)
    return server.url.replace("redis://", f"redis://:{PASSWORD}@")


@pytest.fixture
def shell(tmp_path: pathlib.Path, emulator: Emulator) -> Iterator[Shell]:
    pytest.importorskip("click", reason="the command line is the extra `cli`")
    made = Shell(tmp_path, X402TOOLS_API_KEY=emulator.api_key, X402TOOLS_BASE_URL=emulator.base_url)
    yield made
    made.end()


def stored(store: str, emulator: Emulator, envelope_id: str, events: int) -> None:
    """So many events of 2 units."""
    buffer = UsageBuffer(store=store, deliver=False)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        for _ in range(events):
            client.record_usage(envelope_id, 2)


def test_two_workers_deliver_each_event_once(shell: Shell, store: str, emulator: Emulator) -> None:
    """Both end with 0 at SIGTERM, and nothing that is printed has the password."""
    envelope_id = emulator.create_envelope()
    workers = [shell.start("worker", "--json", "--concurrency", 4, X402TOOLS_STORE=store) for _ in range(2)]
    started = [first_line(worker) for worker in workers]

    stored(store, emulator, envelope_id, 600)
    wait_until(lambda: emulator.ledger().events == 600, "all is delivered", 60.0)
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    status = shell.run("buffer", "status", "--store", store, "--json")

    assert [worker.returncode for worker in workers] == [0, 0], said
    assert emulator.ledger().units == 1200
    assert status.code == 0, status
    assert status.json["delivered"] == status.json["recorded"] == {"events": 600, "units": 1200}
    assert PASSWORD not in "".join([*started, *said, status.out, status.err])


def test_a_worker_folds_a_window_and_keeps_the_rate(shell: Shell, store: str, emulator: Emulator) -> None:
    """What was recorded to be folded is one POST for each envelope."""
    envelope_id = emulator.create_envelope()
    buffer = UsageBuffer(store=store, deliver=False, coalesce=True)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        for _ in range(100):
            client.record_usage(envelope_id, 3)

    worker = shell.start("worker", "--store", store, "--window", "200ms", "--rate", "50/s", "--lease", "5s")
    first_line(worker)
    wait_until(lambda: emulator.ledger().units == 300, "all is delivered", 60.0)

    assert emulator.ledger().events <= 2


def test_dead_letters_are_shown_and_delivered_again(shell: Shell, store: str, emulator: Emulator) -> None:
    """With the commands that a spool has."""
    envelope_id = emulator.create_envelope()
    stored(store, emulator, envelope_id, 3)
    emulator.set_faults(Fault.status(422))

    drained = shell.run("buffer", "drain", "--store", store)
    dead = shell.run("buffer", "dead", "--store", store, "--json")
    emulator.clear_faults()
    requeued = shell.run("buffer", "requeue", "--store", store, "--all", "--json")
    drained_again = shell.run("buffer", "drain", "--store", store)

    assert (drained.code, dead.code, len(dead.json)) == (4, 4, 3), (drained, dead)
    assert dead.json[0]["status_code"] == 422
    assert requeued.json["requeued"] == 3, requeued
    assert drained_again.code == 0, drained_again
    assert emulator.ledger().units == 6


@pytest.mark.parametrize(
    "words", [("worker",), ("worker", "usage.db", "--store", "redis://x"), ("worker", "usage.db", "--rate", "5/s")]
)
def test_a_spool_or_a_store(shell: Shell, words: Sequence[str]) -> None:
    """One of the two is named, and what only a fleet has is refused for a file."""
    ended = shell.run(*words)

    assert ended.code == 2
    assert "--store" in ended.err
    assert not pathlib.Path(shell.spool).exists()
