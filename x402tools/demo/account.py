"""The account at the end of the show: every record of the run set against every other, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Sequence, Tuple

from x402tools.buffer import BufferStats
from x402tools.demo import checking, report
from x402tools.demo.checking import INTERVAL_LOSS, Kill, Outcome
from x402tools.demo.log_file import Entry
from x402tools.testing import BookedEvent, Ledger

_TITLE = "The access log (what happened) against the emulator's ledger (what is billed):"


@dataclass(frozen=True)
class Evidence:
    """What a run left behind.

    Attributes:
        durability: of the service's buffer.
        access_log, worker_log: what the service's processes wrote.
        kills: the workers that were killed.
        ledger, booked: the emulator's sums and its records.
        envelopes: their names by their ids.
        stats: the spool's own ledger.
        answered, refused, broken: requests by what came back to the clients: 200, anything else, nothing.
    """

    durability: str
    access_log: Sequence[Entry]
    worker_log: Sequence[Entry]
    kills: Sequence[Kill]
    ledger: Ledger
    booked: Sequence[BookedEvent]
    envelopes: Dict[str, str]
    stats: BufferStats
    answered: int
    refused: int
    broken: int


def account(evidence: Evidence) -> Tuple[List[str], bool]:
    """The lines to print, and whether the bill is right."""
    requests = checking.requests_in(evidence.access_log)
    outcome = checking.compare(
        requests,
        evidence.booked,
        evidence.envelopes,
        kills=evidence.kills,
        loss_window=INTERVAL_LOSS if evidence.durability == "interval" else 0.0,
    )
    finished = sum(request.done_at is not None for request in requests.values())
    faults = [*outcome.faults, *_disagreements(evidence, finished)]
    lines = ["", _TITLE, "", *report.bill(outcome), ""]
    lines += report.labelled(_facts(evidence, outcome))
    return [*lines, "", *report.verdict(faults, _proof(evidence, outcome, finished))], not faults


def _facts(evidence: Evidence, outcome: Outcome) -> Iterator[Tuple[str, str]]:
    ledger = evidence.ledger
    yield (
        "Clients",
        f"{evidence.answered:,} requests answered, {evidence.broken:,} without an answer when a worker was killed",
    )
    for number, kill in enumerate(evidence.kills):
        yield "" if number else "Killed", f"worker {kill.pid}: {_succession(evidence.worker_log, kill)}"
    yield "Spool", report.spool(evidence.stats)
    yield "Emulator", f"{ledger.repeats_dropped:,} repeats recognized by their key and not booked again"
    yield "Missing", report.allowance(outcome, evidence.durability)


def _succession(worker_log: Sequence[Entry], kill: Kill) -> str:
    """Who came after the worker, and whether somebody else had to deliver from then on."""
    replacement = next((entry.pid for entry in worker_log if entry.words == ["boot"] and entry.at > kill.at), None)
    text = f"replaced by {replacement}" if replacement else "not replaced"
    before = [entry.pid for entry in worker_log if entry.words == ["delivered"] and entry.at <= kill.at]
    if before[-1:] != [kill.pid]:
        return text
    after = (entry for entry in worker_log if entry.words == ["delivered"] and entry.at > kill.at)
    heir = next((entry for entry in after if entry.pid != kill.pid), None)
    if heir is None:
        return f"{text}; nobody delivered after it"
    return f"{text}; {heir.pid} delivers, {heir.at - kill.at:.1f} s later"


def _disagreements(evidence: Evidence, finished: int) -> Iterator[str]:
    """What the sums say against each other, beside the comparison request by request."""
    stats, ledger = evidence.stats, evidence.ledger
    settled = stats.delivered.plus(stats.pending).plus(stats.dead).plus(stats.dropped)
    if stats.recorded != settled:
        yield f"the spool's own ledger does not add up: {report.spool(stats)}"
    if stats.delivered != stats.recorded:
        yield f"not everything that the spool recorded was delivered: {report.spool(stats)}"
    if tuple(stats.delivered) != (ledger.events, ledger.units):
        yield f"the spool delivered {stats.delivered.events:,} events, the ledger has {ledger.events:,}"
    if (ledger.events, ledger.units) != (len(evidence.booked), sum(event.amount for event in evidence.booked)):
        yield "the emulator's sums are not those of its records"
    if evidence.answered > finished:
        yield f"{evidence.answered:,} requests were answered, the access log has only {finished:,}"
    if evidence.refused:
        yield f"the service refused {evidence.refused:,} requests"
    if not finished:
        yield "nothing was served, so nothing was tried"


def _proof(evidence: Evidence, outcome: Outcome, finished: int) -> str:
    billed = f"each of the {finished:,} requests the service served is on the bill exactly once, to the unit"
    if outcome.missing:
        billed = f"of {finished:,} requests {outcome.missing:,} are not on the bill, no more than durability allows"
        billed += f" ({outcome.excusable:,}), and none is on it twice"
    workers = f"{len(evidence.kills)} workers and the billing service itself were killed"
    return f"{billed}, although {workers} and its answers failed, came late or got lost."
