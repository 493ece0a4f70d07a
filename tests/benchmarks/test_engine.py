"""The server that the sections start, and the model beside a run."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.fleet.play import play
from benchmarks.fleet.real import Run, compare
from benchmarks.fleet.shape import SHARED, Fleet
from benchmarks.harness import engine
from benchmarks.harness.engine import Engine, EngineError
from benchmarks.peers import engine_tool
from benchmarks.peers.engine_tool import Tool, ToolError
from benchmarks.sections.engine import ready_events

needs_a_server = pytest.mark.skipif(engine.program() is None, reason=engine.MISSING)
needs_the_tool = pytest.mark.skipif(engine_tool.program() is None, reason=engine_tool.MISSING)


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


@needs_a_server
@needs_the_tool
def test_the_engines_own_tool_sends_as_many_events_as_it_says(tmp_path: pathlib.Path) -> None:
    """Each is an entry of its own, and an error of the server is one of the tool."""
    with Engine(str(tmp_path)) as server:
        tool = Tool({"engine": server.url})
        result = tool.round(2_000)
        entries = server.ask("XLEN events")
        server.empty()
        server.ask("SET events no-stream")
        with pytest.raises(ToolError, match="WRONGTYPE"):
            tool.round(2_000)

    assert result["events"] == 2_000
    assert entries == b"2000"
    assert result["wall"] > 0


def test_the_rate_is_found_behind_an_event_with_quotes_and_commas() -> None:
    """The tool does not escape them; an older one has fewer columns."""
    event = '"XADD events * d {"id": 1, "amount": 2}"'

    rates = [
        engine_tool.rate(f'"test","rps","avg_latency_ms"\n{event},"327868.84","1.186"\n'),
        engine_tool.rate(f'"test","rps"\n{event},"1000.50"\n'),
    ]

    assert rates == [327868.84, 1000.5]


@pytest.mark.parametrize("printed", ["", '"test","rps"', '"test","rps"\n"XADD","0.00"', "a\nb"])
def test_a_tool_that_printed_no_rate_is_not_believed(printed: str) -> None:
    """Rather than a limit of nothing."""
    with pytest.raises(ToolError, match="rate"):
        engine_tool.rate(printed)


def test_where_there_is_no_tool_the_reason_says_how_to_get_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes with the package of the server, too."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolError, match="apt-get install redis-tools"):
        Tool({"engine": "redis://127.0.0.1:1/0"})


def test_what_the_engine_does_with_ready_events_is_the_higher_of_two_and_no_guess() -> None:
    """Without the tool the limit would be lower than it is, so there is none."""
    python, tool = {"events/s": 50_000.0}, {"events/s": 200_000.0}

    both = ready_events({"pipelined-events": python, engine_tool.NAME: tool, "ready": {"events/s": 1e6}})
    other_way_round = ready_events({"pipelined-events": tool, engine_tool.NAME: python})
    one = ready_events({"pipelined-events": python})

    assert (both, other_way_round, one) == (200_000.0, 200_000.0, None)


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
