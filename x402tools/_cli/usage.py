"""`x402tools usage`: usage records, and their sums."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Dict, List, Optional, Tuple

import click

from x402tools._cli.options import Service, output_option, service_options
from x402tools._cli.output import Column, Output, first

_COLUMNS = (
    Column("time", lambda usage: usage.timestamp),
    Column("envelope", lambda usage: usage.envelope_id, whole=True),
    Column("amount", lambda usage: usage.amount),
    Column("id", lambda usage: usage.id, whole=True),
    Column("metadata", lambda usage: usage.metadata or None),
)
_PERIOD_MEMBERS = ("envelopeId", "name", "period")


@click.group("usage")
def usage() -> None:
    """Usage: recording it, looking at it."""


@usage.command("record")
@click.argument("envelope_id")
@click.argument("amount", type=int)
@click.option("-m", "pairs", metavar="NAME=TEXT", multiple=True, help="Metadata; may be given again.")
@click.option("--metadata", metavar="JSON", help="Metadata as a JSON object.")
@click.option("--idempotency-key", metavar="KEY", help="Usage under one key is booked once.")
@service_options
@output_option
def record(
    envelope_id: str,
    amount: int,
    pairs: Tuple[str, ...],
    metadata: Optional[str],
    idempotency_key: Optional[str],
    service: Service,
    output: Output,
) -> None:
    """Records AMOUNT units of usage, and waits until the service has it."""
    about = _metadata(pairs, metadata)
    with service.client() as client:
        booked = client.record_usage(envelope_id, amount, about, idempotency_key=idempotency_key)
    output.facts([(column.title, column.value(booked)) for column in _COLUMNS], booked)


@usage.command("list")
@click.argument("envelope_id", required=False)
@click.option("--limit", type=click.IntRange(min=1), help="So many records at the most (default: all).")
@service_options
@output_option
def list_usage(envelope_id: Optional[str], limit: Optional[int], service: Service, output: Output) -> None:
    """All usage records, or those of one envelope, in the order of the service."""
    with service.client() as client:
        output.table(_COLUMNS, first(client.iter_usage(envelope_id), limit), empty="There is no usage.")


@usage.command("stats")
@service_options
@output_option
def stats(service: Service, output: Output) -> None:
    """Totals over all envelopes."""
    with service.client() as client:
        totals = client.get_usage_stats()
    pairs = [
        ("total usage", totals.total_usage),
        ("envelopes", totals.envelope_count),
        ("active envelopes", totals.active_envelopes),
    ]
    output.facts(pairs, totals)
    if totals.period_usage and not output.as_json:
        print()
        output.table(_period_columns(totals.period_usage[0]), totals.period_usage, empty="")


def _period_columns(example: Dict[str, Any]) -> List[Column]:
    """The members that have names and figures; what these objects have in them is not documented."""
    return [
        Column(name, partial(_member, name))
        for name, value in example.items()
        if name in _PERIOD_MEMBERS or (isinstance(value, int) and not isinstance(value, bool))
    ]


def _member(name: str, period: Dict[str, Any]) -> Any:
    return period.get(name)


def _metadata(pairs: Tuple[str, ...], text: Optional[str]) -> Optional[Dict[str, Any]]:
    metadata: Any = {}
    if text is not None:
        try:
            metadata = json.loads(text)
        except ValueError as error:
            raise click.UsageError(f"--metadata is not JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise click.UsageError("--metadata must be a JSON object")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"-m takes NAME=TEXT, not {pair!r}")
        metadata[name] = value
    return metadata or None
