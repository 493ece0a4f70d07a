"""What many commands take: where the service is and under which key, --json, the path of a spool."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Callable, Dict, Optional, TypeVar

import click

from x402tools import UsageBuffer, X402Client
from x402tools._cli.output import Output

STORE_VARIABLE = "X402TOOLS_STORE"

Command = TypeVar("Command", bound=Callable[..., Any])


class Service:
    """How the command reaches the API; makes clients."""

    def __init__(self, api_key: Optional[str], base_url: Optional[str], timeout: float, allow_http: bool) -> None:
        self._arguments: Dict[str, Any] = {
            "api_key": api_key,
            "base_url": base_url,
            "timeout": (min(timeout, 5.0), timeout),
            "allow_http": allow_http,
        }

    @property
    def base_url(self) -> str:
        """Where a client of this would send to."""
        with self.client() as client:
            return client.base_url

    def client(self, buffer: Optional[UsageBuffer] = None, **arguments: Any) -> X402Client:
        """A client; see `X402Client` for what it raises."""
        return X402Client(buffer=buffer, **self._arguments, **arguments)


def output_option(command: Command) -> Command:
    """Adds --json; the command gets an `output`."""

    @functools.wraps(command)
    def with_output(*arguments: Any, as_json: bool, **options: Any) -> Any:
        return command(*arguments, output=Output(as_json=as_json), **options)

    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(with_output)  # type: ignore[return-value]  # what click wraps stays callable


def service_options(command: Command) -> Command:
    """Adds what says where the service is; the command gets a `service`."""

    @functools.wraps(command)
    def with_service(
        *arguments: Any,
        api_key: Optional[str],
        base_url: Optional[str],
        http_timeout: float,
        allow_http: bool,
        **options: Any,
    ) -> Any:
        return command(*arguments, service=Service(api_key, base_url, http_timeout, allow_http), **options)

    decorated: Any = with_service
    for option in (
        click.option("--allow-http", is_flag=True, help="Accept http to another machine: the key can be read then."),
        click.option(
            "--http-timeout",
            type=click.FloatRange(0.1, 3600),
            default=15.0,
            metavar="SECONDS",
            help="How long to wait for an answer (default 15).",
        ),
        click.option("--base-url", metavar="URL", help="Default: X402TOOLS_BASE_URL, else the hosted service."),
        click.option(
            "--api-key",
            metavar="KEY",
            help="Others on this machine can see it: rather set X402TOOLS_API_KEY.",
        ),
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]  # what click makes of the command


def spool_argument(command: Command) -> Command:
    """Adds the path of a spool."""
    return click.argument("path", type=click.Path(), metavar="PATH")(command)


def place_options(command: Command) -> Command:
    """Adds the path of a spool, or --store for the engine of a fleet; the command gets one of `path` and `store`."""

    @functools.wraps(command)
    def with_place(*arguments: Any, path: Optional[str], store: Optional[str], **options: Any) -> Any:
        if path is not None and store is not None:
            raise click.UsageError("Give the PATH of a spool, or --store; not both.")
        if path is None and store is None:
            store = os.environ.get(STORE_VARIABLE) or None
        if path is None and store is None:
            raise click.UsageError("Give the PATH of a spool, or --store.")
        return command(*arguments, path=path, store=store, **options)

    store_option = click.option(
        "--store",
        metavar="URL",
        help=f"The engine that a fleet shares, redis://… for example, in place of PATH; {STORE_VARIABLE} when neither "
        "is given. Others on this machine can see it: a password had better stand there.",
    )
    decorated: Any = store_option(with_place)
    return click.argument("path", type=click.Path(), metavar="[PATH]", required=False)(decorated)  # type: ignore[no-any-return]  # what click makes of the command


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is deleted; in a pipe, where nobody can answer, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Add --yes to do it without being asked.")
    click.confirm(question, abort=True, err=True)


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
