"""`x402tools buffer export`: the events of a spool, or of a fleet, as lines of JSON, which `x402tools replay` reads."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, Dict, Iterator, Optional, TextIO, Tuple, Union

import click

from x402tools._batch import Post
from x402tools._cli import fleet_view
from x402tools._cli.fleet_view import FleetView
from x402tools._cli.options import STORE_VARIABLE, output_option
from x402tools._cli.output import Output, at, plain, say
from x402tools._inspect import SpoolView
from x402tools._store import DeadLetter

_STATES = ("pending", "held", "dead")


@click.command("export")
@click.argument("words", nargs=-1, metavar="[PATH] FILE")
@click.option("--store", metavar="URL", help=f"The engine that a fleet shares, in place of PATH; or {STORE_VARIABLE}.")
@click.option("--only", type=click.Choice(_STATES), help="Only these (default: all).")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@output_option
def export(words: Tuple[str, ...], store: Optional[str], only: Optional[str], force: bool, output: Output) -> None:
    """Writes what is pending, held or dead to FILE, a POST a line; - is stdout.

    The spool keeps it all. `x402tools replay FILE` reports such a file elsewhere, under the same keys. What workers
    fold on an engine meanwhile may be missing: stop them first.
    """
    path, store, file = _places(words, store)
    counts = dict.fromkeys(_STATES, 0)
    with fleet_view.opened(path, store) as view, view.one_moment(), _opened(file, force) as stream:
        for document in _documents(view, only):
            counts[document["spool"]["state"]] += 1
            stream.write(json.dumps(plain(document), ensure_ascii=False) + "\n")
    if file == "-":
        say(f"Exported {counts['pending']} pending, {counts['held']} held and {counts['dead']} dead.")
    else:
        output.facts(counts.items(), {"file": file, **counts})


def _places(words: Tuple[str, ...], store: Optional[str]) -> Tuple[Optional[str], Optional[str], str]:
    """The spool or the store, and the file."""
    if not words or len(words) > 2:
        raise click.UsageError("Give the PATH of a spool, or --store, and a FILE.")
    if len(words) == 2:
        if store is not None:
            raise click.UsageError("Give the PATH of a spool, or --store; not both.")
        return words[0], None, words[1]
    store = store or os.environ.get(STORE_VARIABLE) or None
    if store is None:
        raise click.UsageError("Give the PATH of a spool, or --store, and a FILE.")
    return None, store, words[0]


def document_of_post(post: Post) -> Dict[str, Any]:
    """A pending POST as a line of the export."""
    return {
        "envelope_id": post.envelope_id,
        "amount": post.amount,
        "metadata": json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata,
        "idempotency_key": post.key,
        "spool": {"state": "pending", "recorded_at": at(post.recorded_at), "events": post.events},
    }


def _document_of_letter(letter: DeadLetter) -> Dict[str, Any]:
    return {
        "envelope_id": letter.envelope_id,
        "amount": letter.amount,
        "metadata": letter.metadata,
        "idempotency_key": letter.key,
        "spool": {
            "state": "dead",
            "recorded_at": at(letter.recorded_at),
            "events": letter.events,
            "id": letter.id,
            "reason": letter.reason,
            "status_code": letter.status_code,
            "died_at": at(letter.died_at),
            "readable": letter.readable,
        },
    }


def _documents(view: Union[SpoolView, FleetView], only: Optional[str]) -> Iterator[Dict[str, Any]]:
    if only in (None, "pending"):
        yield from map(document_of_post, view.pending())
    if only in (None, "held"):
        for document in map(document_of_post, view.held()):
            yield {**document, "spool": {**document["spool"], "state": "held"}}
    if only in (None, "dead"):
        yield from map(_document_of_letter, view.dead_letters())


@contextlib.contextmanager
def _opened(file: str, force: bool) -> Iterator[TextIO]:
    """The file, readable by its owner only: metadata may name people."""
    if file == "-":
        yield sys.stdout
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL), 0o600)
    except FileExistsError:
        raise click.UsageError(f"{file} is there already; --force overwrites it.") from None
    with open(descriptor, "w", encoding="utf-8", errors="surrogatepass") as stream:
        yield stream
