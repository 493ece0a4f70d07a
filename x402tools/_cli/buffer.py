"""`x402tools buffer`: looking at a spool, and putting it in order, also while its service runs."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import click

from x402tools import UsageBuffer
from x402tools._batch import Post
from x402tools._cli import codes, fleet, fleet_view, glance
from x402tools._cli.audit import audit
from x402tools._cli.doctor import doctor
from x402tools._cli.drain import drain
from x402tools._cli.export import document_of_post, export
from x402tools._cli.options import output_option, place_options
from x402tools._cli.output import Column, Output, amount_of_bytes, at, duration, first, say
from x402tools._cli.watch import watch
from x402tools._inspect import SpoolView

_PEEK_COLUMNS = (
    Column("recorded", lambda post: at(post.recorded_at)),
    Column("envelope", lambda post: post.envelope_id, whole=True),
    Column("amount", lambda post: post.amount),
    Column("key", lambda post: post.key, whole=True),
    Column("metadata", lambda post: post.metadata),
)
_DEAD_COLUMNS = (
    Column("id", lambda letter: letter.id, whole=True),
    Column("died", lambda letter: at(letter.died_at)),
    Column("envelope", lambda letter: letter.envelope_id, whole=True),
    Column("amount", lambda letter: letter.amount),
    Column("status", lambda letter: letter.status_code, whole=True),
    Column("reason", lambda letter: letter.reason),
)


@click.group("buffer")
def buffer() -> None:
    """A spool: the file at PATH that a UsageBuffer keeps; or with --store what a fleet has on an engine.

    Looking changes nothing and waits for nobody: the service may run on.
    """


for command in (audit, doctor, drain, export, watch):
    buffer.add_command(command)


@buffer.command("status")
@place_options
@output_option
def status(path: Optional[str], store: Optional[str], output: Output) -> int:
    """The ledger, what waits and since when, who delivers.

    Exits with 4 when there are dead letters, losses, or the ledger does not add up.
    """
    if store is not None:
        return fleet.status(store, output)
    assert path is not None
    with SpoolView(path) as view:
        seen = glance.take(view)
    pairs = [(name, output.tally(tally)) for name, tally in seen.tallies()]
    pairs += [
        ("oldest pending", duration(seen.oldest_pending_age) or "none"),
        ("delivered by", glance.process_name(seen.deliverer)),
        ("size", f"{amount_of_bytes(seen.counts.size)} in use, {amount_of_bytes(seen.file_bytes)} on disk"),
        *(("set aside", one) for one in seen.set_aside),
        *(() if seen.adds_up else (("problem", "the ledger does not add up; see `x402tools buffer audit`"),)),
    ]
    output.facts(pairs, seen.document())
    needs_a_look = seen.counts.dead.events or seen.counts.dropped.events or seen.set_aside or not seen.adds_up
    return codes.NEEDS_A_LOOK if needs_a_look else codes.DONE


@buffer.command("peek")
@place_options
@click.option("-n", "--limit", type=click.IntRange(min=1), default=10, help="So many at the most (default 10).")
@output_option
def peek(path: Optional[str], store: Optional[str], limit: int, output: Output) -> None:
    """The events that have been pending longest."""
    with fleet_view.opened(path, store) as view:
        posts: Iterator[Post] = first(view.pending(), limit)
        output.table(
            _PEEK_COLUMNS,
            (document_of_post(post) for post in posts) if output.as_json else posts,
            empty="Nothing is pending.",
        )


@buffer.command("dead")
@place_options
@click.option("--limit", type=click.IntRange(min=1), help="So many at the most (default: all).")
@output_option
def dead(path: Optional[str], store: Optional[str], limit: int, output: Output) -> int:
    """The dead letters: what the service refused for good, and why. Exits with 4 when there are any."""
    if store is not None:
        return fleet.dead(store, _DEAD_COLUMNS, limit, output)
    assert path is not None
    with SpoolView(path) as view:
        count = output.table(_DEAD_COLUMNS, first(view.dead_letters(), limit), empty="There are no dead letters.")
    return codes.NEEDS_A_LOOK if count else codes.DONE


@buffer.command("requeue")
@click.argument("words", nargs=-1, metavar="[PATH] [IDS]...")
@click.option("--store", metavar="URL", help="The engine that a fleet shares, in place of PATH.")
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@output_option
def requeue(words: Tuple[str, ...], store: Optional[str], everything: bool, output: Output) -> int:
    """Has dead letters delivered again, under their old keys.

    IDS are those that `dead` shows. The process that delivers takes them up by itself; where there is none, see
    `drain` and `worker`. Exits with 4 when some were not there, or are damaged.
    """
    if store is None and not words:
        raise click.UsageError("Give the PATH of a spool, or --store.")
    path, ids = (words[0], _ids(words[1:])) if store is None else ("", _ids(words))
    if everything == bool(ids):
        raise click.UsageError("Name the dead letters by their ids, or give --all.")
    if store is not None:
        return fleet.requeue(store, ids, output, everything=everything)
    with SpoolView(path) as view:
        wanted = view.counts().dead.events if everything else len(set(ids))
    with UsageBuffer(path, deliver=False) as spool:
        count = spool.requeue(None if everything else sorted(set(ids)))
        left = spool.stats().dead
    document: Dict[str, Any] = {"requeued": count, "dead": left}
    output.facts([("requeued", count), ("still dead", output.tally(left))], document)
    if count < wanted:
        say("Some were not there, or are damaged and stay; see `x402tools buffer dead`.")
    return codes.NEEDS_A_LOOK if count < wanted else codes.DONE


def _ids(words: Sequence[str]) -> List[int]:
    for word in words:
        if not word.isdecimal():
            raise click.UsageError(f"{word!r} is no id of a dead letter.")
    return [int(word) for word in words]
