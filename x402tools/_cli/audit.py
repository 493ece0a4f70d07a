"""`x402tools buffer audit`: whether a spool is whole and its ledger adds up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import click

from x402tools._cli import codes, glance
from x402tools._cli.glance import Glance
from x402tools._cli.options import output_option, spool_argument
from x402tools._cli.output import Column, Output, printable, say
from x402tools._inspect import SpoolView
from x402tools._store import Tally

_FAULTS_SHOWN = 20

_COLUMNS = (
    Column("envelope", lambda row: row["envelope_id"]),
    Column("pending", lambda row: row["pending"].events),
    Column("units", lambda row: row["pending"].units),
    Column("dead", lambda row: row["dead"].events),
    Column("units", lambda row: row["dead"].units),
)


@dataclass
class Audit:
    """What was found.

    Attributes:
        seen: the spool as its ledger tells it.
        batches, posts: how many were read, and their checksums compared.
        envelopes: pending and dead by envelope, as the content has them.
        faults: what is wrong.
    """

    seen: Glance
    batches: int = 0
    posts: int = 0
    envelopes: Dict[str, Dict[str, Tally]] = field(default_factory=dict)
    faults: List[str] = field(default_factory=list)

    def count(self, envelope_id: str, state: str, tally: Tally) -> None:
        """Adds to what an envelope has in that state."""
        states = self.envelopes.setdefault(envelope_id, {"pending": Tally(), "dead": Tally()})
        states[state] = states[state].plus(tally)

    def rows(self) -> List[Dict[str, Any]]:
        """The envelopes, those with most units first."""
        rows = [{"envelope_id": name, **states} for name, states in self.envelopes.items()]
        return sorted(rows, key=lambda row: (-row["pending"].units - row["dead"].units, row["envelope_id"]))


@click.command("audit")
@spool_argument
@output_option
def audit(path: str, output: Output) -> int:
    """Reads all of it, compares every checksum, and sees that the ledger adds up.

    Exits with 4 when something is wrong. While the service runs, the log of the spool grows until this has ended.
    """
    with SpoolView(path) as view, view.one_moment():
        found = examine(view)
    pairs: List[Tuple[str, Any]] = [
        *((name, output.tally(one)) for name, one in found.seen.tallies()),
        ("read", f"{output.text(found.batches)} batches, {output.text(found.posts)} pending POSTs"),
        (
            "verdict",
            f"{len(found.faults)} faults" if found.faults else "sound: the ledger adds up, every checksum is right",
        ),
    ]
    if output.as_json:
        output.json(
            {
                **found.seen.document(),
                "batches": found.batches,
                "posts": found.posts,
                "envelopes": found.rows(),
                "faults": found.faults,
            }
        )
    else:
        output.facts(pairs)
        if found.envelopes:
            print()
            output.table(_COLUMNS, found.rows(), empty="")
        for fault in found.faults[:_FAULTS_SHOWN]:
            say(f"fault: {printable(fault)}")
        if len(found.faults) > _FAULTS_SHOWN:
            say(f"(and {len(found.faults) - _FAULTS_SHOWN} more; --json has them all)")
    return codes.NEEDS_A_LOOK if found.faults else codes.DONE


def examine(view: SpoolView) -> Audit:
    """Reads the whole spool; see `audit`."""
    found = Audit(glance.take(view))
    found.faults += [f"SQLite: {one}" for one in view.check_structure()]
    if not found.seen.adds_up:
        counts = found.seen.counts
        settled = counts.delivered.plus(counts.pending).plus(counts.dead).plus(counts.dropped)
        found.faults.append(
            f"the ledger does not add up: recorded {tuple(counts.recorded)}, but delivered, pending, dead and dropped"
            f" are {tuple(settled)} (events, units)"
        )
    for batch in view.batches():
        found.batches += 1
        found.posts += len(batch.posts)
        if batch.fault is not None:
            found.faults.append(f"batch {batch.sequence}: {batch.fault}")
        for post in batch.posts:
            found.count(post.envelope_id, "pending", Tally(post.events, post.amount))
    for post in view.held():
        found.posts += 1
        found.count(post.envelope_id, "pending", Tally(post.events, post.amount))
    for letter in view.dead_letters():
        found.count(letter.envelope_id, "dead", Tally(letter.events, letter.amount))
        if not letter.readable:
            found.faults.append(f"dead letter {letter.id}: {letter.reason}")
    return found
