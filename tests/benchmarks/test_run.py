"""The script itself, from the command line to the files it keeps, and the sink that everything is counted at."""

from __future__ import annotations

import http.client
import json
import pathlib
import subprocess
import sys
from typing import Any, Dict

import pytest

from benchmarks.harness.load import is_complete, post_request, run_load
from benchmarks.harness.service import Service
from benchmarks.harness.worker import ContestantError, Worker
from benchmarks.peers import catalogue
from benchmarks.sections import SECTIONS, module

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "run.py"
QUEUES = {"persist-queue": "persist-queue", "litequeue": "litequeue", "diskcache": "diskcache", "huey": "huey"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, with what is installed here and nothing more."""
    command = [sys.executable, str(SCRIPT), "--no-setup", "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.full
def test_a_section_runs_from_end_to_end_and_its_check_fails_when_a_ratio_was_better(tmp_path: pathlib.Path) -> None:
    """Without the peers, which are named; with JSON, Markdown and charts; and --check compares with what is kept."""
    folder = tmp_path / "results"

    first = run("--section", "disk", "--json", "--results", str(folder))

    assert first.returncode == 0, first.stderr
    [section] = json.loads(first.stdout)
    assert section["name"] == "disk"
    assert json.loads((folder / "disk.json").read_text()) == section
    labels = " ".join(row["label"] for row in section["tables"][0]["rows"])
    for name in QUEUES:
        assert name in section["missing"] or name in labels
    assert "bytes per event" in (tmp_path / "RESULTS.md").read_text()
    assert "the sink alone answers" in first.stderr

    [goal] = [goal for goal in section["goals"] if goal["is_ratio"]]
    goal["value"] *= 2
    (folder / "disk.json").write_text(json.dumps(section))

    second = run("--section", "disk", "--check", "--results", str(folder))

    assert second.returncode == 1
    assert "WORSE" in second.stdout
    assert json.loads((folder / "disk.json").read_text()) == section  # a check keeps nothing


def post(service: Service, path: str, body: Dict[str, Any], key: str = "") -> int:
    """One POST to the sink; the status of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    headers = {"Idempotency-Key": key} if key else {}
    connection.request("POST", path, json.dumps(body), headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_sink_counts_each_contestant_apart_and_a_repeated_key_once() -> None:
    """Usage by its idempotency key; batches by their length."""
    usage = {"envelopeId": "env_1", "amount": 3}
    with Service() as service:
        statuses = [
            post(service, "/ours/usage", usage, "a"),
            post(service, "/ours/usage", usage, "b"),
            post(service, "/ours/usage", usage, "a"),
            post(service, "/segment/v1/batch", {"batch": [{}, {}]}),
            post(service, "/posthog/batch/", {"batch": [{}]}),
        ]
        tallies = service.report()["tallies"]

    assert statuses == [201, 201, 201, 200, 200]
    assert (tallies["ours"]["posts"], tallies["ours"]["events"], tallies["ours"]["units"]) == (3, 2, 6)
    assert tallies["ours"]["repeated"] == 1
    assert tallies["segment"]["events"] == 2
    assert tallies["posthog"]["events"] == 1


def test_the_load_generator_waits_for_the_whole_answer() -> None:
    """Head and body may come in two pieces, in any case of letters."""
    head, body = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"true"

    complete = [is_complete((head + body)[:length]) for length in range(len(head + body) + 1)]

    assert complete == [False] * len(head + body) + [True]


def test_the_load_generator_counts_what_the_sink_counts() -> None:
    """Each request answered once; those under way at the end are the sink's alone."""
    request = post_request("/load/usage", b'{"envelopeId": "env_1", "amount": 1}')
    with Service() as service:
        loaded = run_load("127.0.0.1", service.port, request, connections=3, seconds=0.2)
        tally = service.tally("load")

    assert loaded["errors"] == 0
    assert 0 <= tally["posts"] - loaded["requests"] <= 3
    assert len(loaded["latencies"]) == loaded["requests"] > 0


def test_a_contestant_that_cannot_be_made_says_why() -> None:
    """The reason comes from its own process."""
    worker = Worker("benchmarks.peers.calling:Caller", {"peer": "nobody", "folder": "", "url": ""})

    with pytest.raises(ContestantError, match="KeyError"):
        worker.made()


def test_a_killed_contestant_is_noticed() -> None:
    """The next call raises instead of waiting for ever."""
    with Worker("benchmarks.peers.calling:Caller", {"peer": "deque"}) as worker:
        worker.send("round", calls=100_000_000, threads=1, rate=1000.0, burst=1)
        worker.kill()

        with pytest.raises(ContestantError, match="ended with status"):
            worker.receive()


def test_every_peer_is_pinned_and_known() -> None:
    """An entry of the extra without a version, or one that nobody asks for, is a mistake."""
    for pin in catalogue.pins():
        name, version = pin.split("==")

        assert version
        assert name in catalogue.MODULES or name in catalogue.NEEDED


@pytest.mark.parametrize("name", list(SECTIONS))
def test_every_section_can_be_imported_without_the_peers(name: str) -> None:
    """And is called what the command line calls it."""
    called = module(name).NAME

    assert called == name
