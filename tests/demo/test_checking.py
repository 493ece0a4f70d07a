"""The comparison of what happened with what is billed: above all, that it can fail."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from x402tools.buffer import BufferStats, Tally
from x402tools.demo import account, checking
from x402tools.demo.account import Evidence
from x402tools.demo.checking import Kill, Outcome
from x402tools.demo.log_file import Entry
from x402tools.testing import BookedEvent, Ledger

NAMES = {"env_a": "acme", "env_b": "birch"}
KILLED = 7


def begin(request: str, amount: int, at: float = 100.0, *, pid: int = 5, envelope: str = "env_a") -> Entry:
    return Entry(at, pid, ["begin", request, envelope, str(amount)])


def done(request: str, at: float = 100.001, *, pid: int = 5) -> Entry:
    return Entry(at, pid, ["done", request])


def billed(request: Optional[str], amount: int, envelope: str = "env_a") -> BookedEvent:
    metadata: Dict[str, Any] = {"request_id": request}
    return BookedEvent(1, "usage_1", envelope, amount, "2025-11-05T12:34:56.789Z", metadata, "key")


def compared(log: List[Entry], booked: List[BookedEvent], **kwargs: Any) -> Outcome:
    return checking.compare(checking.requests_in(log), booked, NAMES, **kwargs)


def test_what_agrees() -> None:
    """Requests that are each billed once, in any order, leave nothing to complain about."""
    log = [begin("r1", 10), begin("r2", 5, envelope="env_b"), done("r2"), done("r1")]

    outcome = compared(log, [billed("r2", 5, "env_b"), billed("r1", 10)])

    assert outcome.agrees
    assert [(row.name, row.happened, row.billed, row.difference) for row in outcome.rows] == [
        ("acme", (1, 10), (1, 10), (0, 0)),
        ("birch", (1, 5), (1, 5), (0, 0)),
    ]


def test_a_request_that_is_not_billed() -> None:
    """One finished request that is missing on the bill makes it wrong."""
    outcome = compared([begin("r1", 10), done("r1")], [])

    assert outcome.faults == ["1 request was recorded and never billed"]
    assert outcome.rows[0].difference == (-1, -10)


def test_a_request_that_is_billed_twice() -> None:
    """Overbilling is never allowed, not even beside a request of the same amount that is missing."""
    log = [begin("r1", 10), done("r1"), begin("r2", 10), done("r2")]

    outcome = compared(log, [billed("r1", 10), billed("r1", 10)])

    assert outcome.rows[0].difference == (0, 0)
    assert outcome.faults == ["1 request was recorded and never billed", "1 request was billed more than once"]


def test_a_tampered_access_log() -> None:
    """A line taken out of the access log makes the bill show what never happened."""
    log = [begin("r1", 10), done("r1")]

    outcome = compared(log, [billed("r1", 10), billed("r2", 10), billed(None, 1)])

    assert outcome.faults == ["2 requests were billed that never happened"]


def test_another_amount_or_envelope() -> None:
    """A record whose amount or envelope is not that of its request is found, also when the sums agree."""
    log = [begin("r1", 10), done("r1"), begin("r2", 20), done("r2"), begin("r3", 1), done("r3")]

    outcome = compared(log, [billed("r1", 20), billed("r2", 10), billed("r3", 1, "env_b")])

    assert outcome.faults == ["3 records have another envelope or amount"]


def test_a_request_cut_off_by_a_kill() -> None:
    """Of a request that a kill cut off before it was recorded either is right, but not twice on the bill."""
    log = [begin("r1", 10, pid=KILLED)]
    kills = [Kill(KILLED, 100.0)]

    assert compared(log, [], kills=kills).agrees
    once = compared(log, [billed("r1", 10)], kills=kills)
    assert once.agrees
    assert (once.cut_off, once.cut_off_billed) == (1, 1)
    assert not compared(log, [billed("r1", 10)] * 2, kills=kills).agrees


def test_a_request_that_never_ended_without_a_kill() -> None:
    """A request that was begun and never recorded by a worker nobody killed is a fault."""
    assert not compared([begin("r1", 10)], []).agrees


def test_what_interval_allows() -> None:
    """With durability "interval" a killed worker may lose what it recorded in its last 20 ms and nothing else."""
    log = [
        begin("early", 1, 99.90, pid=KILLED),
        done("early", 99.975, pid=KILLED),
        begin("late", 1, 99.985, pid=KILLED),
        done("late", 99.986, pid=KILLED),
        begin("other", 1, 99.99),
        done("other", 99.991),
    ]
    kills = [Kill(KILLED, 100.0)]

    def without(request: str) -> Outcome:
        rest = [name for name in ("early", "late", "other") if name != request]
        return compared(log, [billed(name, 1) for name in rest], kills=kills, loss_window=checking.INTERVAL_LOSS)

    assert without("late").agrees
    assert (without("late").missing, without("late").excusable, without("late").excused) == (1, 1, 1)
    assert not without("early").agrees
    assert not without("other").agrees
    commit = compared(log, [billed("early", 1), billed("other", 1)], kills=kills)
    assert not commit.agrees


def evidence(**changes: Any) -> Evidence:
    """A run of one request that went well, with these changes."""
    one = Tally(1, 10)
    nothing = Tally(0, 0)
    facts = {
        "durability": "commit",
        "access_log": [begin("r1", 10), done("r1")],
        "worker_log": [],
        "kills": [],
        "ledger": Ledger(1, 10, 0, 0, 1, {}),
        "booked": [billed("r1", 10)],
        "envelopes": NAMES,
        "stats": BufferStats(one, one, nothing, nothing, nothing, 0, 0, 0, None, False, None, 0),
        "answered": 1,
        "refused": 0,
        "broken": 0,
    }
    return Evidence(**{**facts, **changes})


def test_an_account_that_agrees() -> None:
    """Without a difference the account says what was proved, in lines of 80 columns."""
    lines, agrees = account.account(evidence())

    assert agrees
    assert any(line.startswith("Proved: ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_an_account_of_a_tampered_log() -> None:
    """A request added to the access log by hand makes the account fail and name it."""
    lines, agrees = account.account(evidence(access_log=[begin("r1", 10), done("r1"), begin("r2", 1), done("r2")]))

    assert not agrees
    assert "- 1 request was recorded and never billed" in lines


def test_every_disagreement_counts() -> None:
    """Each sum that contradicts another makes the account fail, and so does a run in which nothing happened."""
    nothing = Tally(0, 0)
    undelivered = BufferStats(Tally(1, 10), nothing, Tally(1, 10), nothing, nothing, 0, 0, 0, None, False, None, 0)

    for change in (
        {"ledger": Ledger(2, 10, 0, 0, 1, {})},
        {"stats": undelivered},
        {"answered": 2},
        {"refused": 1},
        {"access_log": [], "booked": [], "answered": 0},
    ):
        assert not account.account(evidence(**change))[1], change
