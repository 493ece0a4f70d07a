"""`x402tools keys`: the API keys. The secret of one is printed once, when it is made."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import click

from x402tools._cli.options import Service, confirm, output_option, service_options, yes_option
from x402tools._cli.output import Column, Output, printable, say
from x402tools.models import ApiKey

# Of a secret that is long enough to stay one: what tells it from others.
_SHOWN, _LEAST = 4, 16

_COLUMNS = (
    Column("id", lambda key: key.id, whole=True),
    Column("name", lambda key: key.name),
    Column("key", lambda key: masked(key.key)),
    Column("created", lambda key: key.created_at),
    Column("last used", lambda key: key.last_used),
    Column("expires", lambda key: key.expires_at),
)


@click.group("keys")
def keys() -> None:
    """The API keys."""


@keys.command("list")
@service_options
@output_option
def list_keys(service: Service, output: Output) -> None:
    """All API keys, their secrets masked."""
    with service.client() as client:
        found = client.get_api_keys()
    if output.as_json:
        output.table(_COLUMNS, map(_masked_document, found), empty="")
    else:
        output.table(_COLUMNS, found, empty="There are no API keys.")


@keys.command("create")
@click.argument("name")
@service_options
@output_option
def create(name: str, service: Service, output: Output) -> None:
    """Makes an API key.

    Its secret is the only thing on stdout, and is shown this once: KEY=$(x402tools keys create ci)
    """
    with service.client() as client:
        made = client.create_api_key(name)
    say(f"Made the API key {made.id} ({made.name}). Its secret is shown this once; keep it now:")
    if output.as_json:
        output.json(made)
    else:
        print(printable(made.key))


@keys.command("delete")
@click.argument("key_id")
@yes_option
@service_options
@output_option
def delete(key_id: str, yes: bool, service: Service, output: Output) -> None:
    """Deletes an API key: whoever uses it is refused from then on."""
    confirm(f"Delete the API key {key_id}?", yes=yes)
    with service.client() as client:
        client.delete_api_key(key_id)
    if output.as_json:
        output.json({"deleted": key_id})
    else:
        say(f"Deleted the API key {key_id}.")


def masked(secret: str) -> str:
    """What may be seen of a secret."""
    return f"...{secret[-_SHOWN:]}" if len(secret) >= _LEAST else "..."


def _masked_document(key: ApiKey) -> Dict[str, Any]:
    return {**dataclasses.asdict(key), "key": masked(key.key)}
