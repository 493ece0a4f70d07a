"""`x402tools envelopes`: the limits on usage."""

from __future__ import annotations

from typing import Any, Optional

import click

from x402tools._cli.options import Service, confirm, output_option, service_options, yes_option
from x402tools._cli.output import Column, Output, say
from x402tools.models import PERIODS, Envelope

_COLUMNS = (
    Column("id", lambda envelope: envelope.id, whole=True),
    Column("name", lambda envelope: envelope.name),
    Column("limit", lambda envelope: envelope.limit),
    Column("period", lambda envelope: envelope.period),
    Column("resets on", lambda envelope: _reset_day(envelope)),
)
_period = click.Choice(PERIODS, case_sensitive=False)


@click.group("envelopes")
def envelopes() -> None:
    """The envelopes: so many units of usage a period."""


@envelopes.command("list")
@service_options
@output_option
def list_envelopes(service: Service, output: Output) -> None:
    """All envelopes."""
    with service.client() as client:
        output.table(_COLUMNS, client.get_envelopes(), empty="There are no envelopes.")


@envelopes.command("show")
@click.argument("envelope_id")
@service_options
@output_option
def show(envelope_id: str, service: Service, output: Output) -> None:
    """One envelope."""
    with service.client() as client:
        _print(output, client.get_envelope(envelope_id))


@envelopes.command("create")
@click.argument("name")
@click.option("--limit", type=int, required=True, help="Units of usage a period.")
@click.option("--period", type=_period, required=True, help="When counting begins anew.")
@click.option("--reset-day", type=int, help="The day of the period on which it does.")
@service_options
@output_option
def create(name: str, limit: int, period: Any, reset_day: Optional[int], service: Service, output: Output) -> None:
    """Makes an envelope."""
    with service.client() as client:
        _print(output, client.create_envelope(name, limit, period.upper(), reset_day))


@envelopes.command("update")
@click.argument("envelope_id")
@click.option("--name", help="A new name.")
@click.option("--limit", type=int, help="A new limit, in units of usage.")
@click.option("--period", type=_period, help="A new period.")
@click.option("--reset-day", type=int, help="Another day of the period.")
@service_options
@output_option
def update(
    envelope_id: str,
    name: Optional[str],
    limit: Optional[int],
    period: Any,
    reset_day: Optional[int],
    service: Service,
    output: Output,
) -> None:
    """Changes what is given and leaves the rest."""
    if (name, limit, period, reset_day) == (None, None, None, None):
        raise click.UsageError("Nothing to change: give --name, --limit, --period or --reset-day.")
    with service.client() as client:
        _print(output, client.update_envelope(envelope_id, name, limit, period and period.upper(), reset_day))


@envelopes.command("delete")
@click.argument("envelope_id")
@yes_option
@service_options
@output_option
def delete(envelope_id: str, yes: bool, service: Service, output: Output) -> None:
    """Deletes an envelope."""
    confirm(f"Delete the envelope {envelope_id}?", yes=yes)
    with service.client() as client:
        client.delete_envelope(envelope_id)
    if output.as_json:
        output.json({"deleted": envelope_id})
    else:
        say(f"Deleted the envelope {envelope_id}.")


def _print(output: Output, envelope: Envelope) -> None:
    pairs = [(column.title, column.value(envelope)) for column in _COLUMNS]
    pairs += [("created", envelope.created_at), ("updated", envelope.updated_at)]
    output.facts(pairs, envelope)


def _reset_day(envelope: Envelope) -> str:
    return "" if envelope.reset_day is None else f"day {envelope.reset_day}"
