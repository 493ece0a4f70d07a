"""`x402tools buffer peek|export|watch|doctor --store`: what a fleet has on a server is seen as a spool is."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Dict, Iterator, List

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


def record(place: str, emulator: Emulator, envelope_id: str, *, coalesce: bool = False) -> List[str]:
    """Three events that nobody delivers; their keys."""
    buffer = UsageBuffer(place, deliver=False, coalesce=coalesce)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        return [client.record_usage(envelope_id, 2, {"endpoint": f"/{at}"}).id for at in range(3)]


def without_times(documents: List[Dict[str, Any]], keys: List[str]) -> List[Dict[str, Any]]:
    """What of them is the same wherever the events are; their keys by their place in these."""
    for document in documents:
        document["idempotency_key"] = keys.index(document["idempotency_key"])
        for name in ("recorded_at", "died_at", "id"):
            document["spool"].pop(name, None)
    return documents


@pytest.mark.parametrize("coalesce", [False, True])
def test_what_is_pending_is_shown_as_of_a_file(shell: Shell, store: str, emulator: Emulator, coalesce: bool) -> None:
    """By peek, export and watch, under the keys that it was recorded with, also what is still to be folded."""
    keys = {place: record(place, emulator, "env_1", coalesce=coalesce) for place in (store, shell.spool)}
    seen = {}

    for place, words in ((store, ("--store", store)), (shell.spool, (shell.spool,))):
        peeked = shell.call("buffer", "peek", *words, "-n", 2, "--json")
        exported = shell.call("buffer", "export", *words, "-")
        watched = shell.call("buffer", "watch", *words, "--count", 2, "--interval", 0.1, "--json")
        looks = [json.loads(line) for line in watched.out.splitlines()]
        seen[place] = (
            without_times(peeked.json, keys[place]),
            without_times([json.loads(line) for line in exported.out.splitlines()], keys[place]),
            [(look["pending"], look["recorded"], look["delivered_per_second"]) for look in looks],
            [set(look) - {"workers"} for look in looks],
        )
        assert (peeked.code, exported.code, watched.code) == (0, 0, 0), (peeked, exported, watched)
        assert PASSWORD not in peeked.out + exported.err + watched.out

    assert seen[store] == seen[shell.spool]
    assert len(seen[store][0]) == 2
    assert len(seen[store][1]) == 3


def test_dead_letters_are_exported_too(shell: Shell, store: str, emulator: Emulator) -> None:
    """To a file; and what is there already is not overwritten."""
    keys = record(store, emulator, emulator.create_envelope())
    emulator.set_faults(Fault.status(422))
    shell.call("buffer", "drain", "--store", store)
    file = shell.folder / "out.ndjson"

    exported = shell.call("buffer", "export", file, "--store", store, "--only", "dead", "--json")
    again = shell.call("buffer", "export", file, "--store", store)

    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert exported.json == {"file": str(file), "pending": 0, "held": 0, "dead": 3}
    assert again.code == 2
    assert sorted(line["idempotency_key"] for line in lines) == sorted(keys)
    assert {(line["spool"]["state"], line["spool"]["status_code"]) for line in lines} == {("dead", 422)}


@pytest.mark.parametrize("words", [("out",), (), ("a", "b", "c"), ("a", "b", "--store", "redis://x")])
def test_export_needs_one_place_and_a_file(shell: Shell, words: List[str]) -> None:
    """Otherwise nothing is written."""
    ended = shell.call("buffer", "export", *words)

    assert ended.code == 2
    assert "--store" in ended.err


def found(shell: Shell, store: str, *words: str) -> Dict[str, Dict[str, str]]:
    """What the doctor finds, by level and what it is about."""
    ended = shell.call("buffer", "doctor", "--store", store, "--json", *words)
    levels: Dict[str, Dict[str, str]] = {"ok": {}, "note": {}, "fault": {}}
    for one in ended.json:
        levels[one["level"]][one["about"]] = f"{one['what']} -> {one['advice']}"
    assert ended.code == (4 if levels["fault"] else 0), ended
    assert PASSWORD not in ended.out + ended.err
    return levels


def test_the_doctor_finds_all_well(shell: Shell, store: str, emulator: Emulator) -> None:
    """With a worker that is alive; that there is no replica is worth a note."""
    record(store, emulator, emulator.create_envelope())
    worker = shell.start("worker", "--store", store)
    first_line(worker)
    wait_until(lambda: emulator.ledger().events == 3, "it delivers", 60.0)

    levels = found(shell, store)

    assert levels["fault"] == {}
    assert set(levels["note"]) == {"replicas"}
    assert levels["ok"]["server"].startswith("Redis ")
    assert "appendfsync everysec" in levels["ok"]["append-only"]
    assert f"-{worker.pid}-" in levels["ok"]["workers"]
    for about in ("eviction", "memory", "server clock", "base URL", "key"):
        assert about in levels["ok"]


def test_the_doctor_finds_what_loses_usage(shell: Shell, store: str, server: Server, emulator: Emulator) -> None:
    """A server that evicts and has no append-only file, nobody who delivers, another base URL."""
    record(store, emulator, "env_1")
    settings = {"maxmemory-policy": ("allkeys-lru", "noeviction"), "appendonly": ("no", "yes")}
    for name, (bad, _) in settings.items():
        server.ask("CONFIG", "SET", name, bad, password=PASSWORD)

    shell.environment["X402TOOLS_BASE_URL"] = "http://127.0.0.1:1"
    try:
        levels = found(shell, store)
    finally:
        for name, (_, good) in settings.items():
            server.ask("CONFIG", "SET", name, good, password=PASSWORD)

    assert "allkeys-lru" in levels["fault"]["eviction"]
    assert "appendonly yes" in levels["note"]["append-only"]
    assert "3 events are pending" in levels["fault"]["workers"]
    assert "not the one the store is for" in levels["fault"]["base URL"]


def test_the_doctor_makes_nothing(shell: Shell, store: str, server: Server) -> None:
    """An empty server stays empty, and one that is not there is a fault."""
    empty = found(shell, store, "--offline")
    away = found(shell, "redis://127.0.0.1:1/0", "--offline")

    assert empty["fault"] == {}
    assert "nothing was ever stored" in empty["note"]["store"]
    assert server.ask("DBSIZE", password=PASSWORD) == 0
    assert set(away["fault"]) == {"server"}


def test_all_partitions_are_shown(shell: Shell, store: str, emulator: Emulator) -> None:
    """By peek and by the doctor, who knows the destination too; and the workers of all of them."""
    buffer = UsageBuffer(f"{store}?partitions=4", deliver=False, coalesce=True)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        for number in range(20):
            client.record_usage(f"env_{number}", 2)

    peeked = shell.call("buffer", "peek", "--store", f"{store}?partitions=4", "-n", 100, "--json")
    shell.environment["X402TOOLS_BASE_URL"] = "http://127.0.0.1:1"
    levels = found(shell, f"{store}?partitions=4")

    assert sorted(post["envelope_id"] for post in peeked.json) == sorted(f"env_{number}" for number in range(20))
    assert "20 events are pending" in levels["fault"]["workers"]
    assert "not the one" in levels["fault"]["base URL"]
