"""`x402tools buffer export`: the events of a spool as lines of JSON, which `x402tools replay` reads."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, Dict, Iterator, Optional, TextIO

import click

from x402tools._batch import Post
from x402tools._cli.options import output_option, spool_argument
from x402tools._cli.output import Output, at, plain, say
from x402tools._inspect import SpoolView
from x402tools._store import DeadLetter

_STATES = ("pending", "held", "dead")


@click.command("export")
@spool_argument
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@click.option("--only", type=click.Choice(_STATES), help="Only these (default: all).")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@output_option
def export(path: str, file: str, only: Optional[str], force: bool, output: Output) -> None:
    """Writes what is pending, held or dead to FILE, a POST a line; - is stdout.

    The spool keeps it all. `x402tools replay FILE` reports such a file elsewhere, under the same keys.
    """
    counts = dict.fromkeys(_STATES, 0)
    with SpoolView(path) as view, view.one_moment(), _opened(file, force) as stream:
        for document in _documents(view, only):
            counts[document["spool"]["state"]] += 1
            stream.write(json.dumps(plain(document), ensure_ascii=False) + "\n")
    if file == "-":
        say(f"Exported {counts['pending']} pending, {counts['held']} held and {counts['dead']} dead.")
    else:
        output.facts(counts.items(), {"file": file, **counts})


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


def _documents(view: SpoolView, only: Optional[str]) -> Iterator[Dict[str, Any]]:
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
