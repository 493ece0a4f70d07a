"""The server that the sections start, and the model beside a run."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.fleet.play import play
from benchmarks.fleet.real import Run, compare
from benchmarks.fleet.shape import SHARED, Fleet
from benchmarks.harness import engine
from benchmarks.harness.engine import Engine, EngineError

needs_a_server = pytest.mark.skipif(engine.program() is None, reason=engine.MISSING)


@needs_a_server
def test_a_server_is_started_asked_emptied_and_ended(tmp_path: pathlib.Path) -> None:
    """On a port of its own, with an append-only file, and never one that evicts."""
    with Engine(str(tmp_path)) as server:
        empty = server.memory()
        server.ask(f"SET key {'x' * 10_000}")
        full = server.memory()
        cpu, info = server.cpu(), server.info()
        server.empty()
        emptied = server.ask("DBSIZE")

        assert full - empty >= 10_000
        assert cpu > 0
        assert info["maxmemory_policy"] == "noeviction"
        assert info["aof_enabled"] == "1"
        assert emptied == b"0"
        assert server.version().startswith(("Redis ", "Valkey "))

    with pytest.raises(ConnectionRefusedError):
        server.ask("PING")


@needs_a_server
def test_an_error_of_the_server_is_raised(tmp_path: pathlib.Path) -> None:
    """With its own words."""
    with Engine(str(tmp_path)) as server, pytest.raises(EngineError, match="unknown command"):
        server.ask("NONSENSE")


def test_where_there_is_no_server_the_reason_says_how_to_get_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised: the sections are left out, and say so."""
    monkeypatch.setenv("PATH", str(tmp_path))

    found, why = engine.opened(str(tmp_path))

    assert found is None
    assert "apt-get install redis-server" in why


def test_a_run_that_does_what_the_model_does_is_off_by_nothing() -> None:
    """And one with twice the POSTs by a factor of two; the rate is the one that was reached, not the one asked for."""
    fleet = Fleet(hosts=1, rate=1.0, envelopes=50, folding=SHARED, window=1.0, workers=2, partitions=1)
    truth = play(Fleet(**{**vars(fleet), "rate": 2000.0}), 5.0)

    same = compare(Run(fleet, 10_000, 5.0, truth.posts, truth.seconds), seeds=[1])
    double = compare(Run(fleet, 10_000, 5.0, 2 * truth.posts, truth.seconds), seeds=[1])

    assert (same.posts, same.booked) == (1.0, 1.0)
    assert double.posts == 2.0


def test_a_run_without_events_is_refused() -> None:
    """There is no rate."""
    with pytest.raises(ValueError, match="without events"):
        compare(Run(Fleet(), 0, 1.0, 0, 1.0))
