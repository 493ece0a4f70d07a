"""The command ``x402tools emulator``: its arguments, and running it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Dict, List, Optional

from x402tools.emulator.choices import Choices
from x402tools.emulator.extra import MissingEmulatorExtra, require_emulator_extra
from x402tools.emulator.faults import BadFault, Fault, FaultScript
from x402tools.emulator.state import Books, BooksUnavailable

DESCRIPTION = "An emulator of the x402 Usage-Based Billing API as this SDK's documentation describes it."
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 4020
DEFAULT_KEY = "sk_emulator"
CANNOT_START = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the emulator's arguments to the parser; :func:`run` takes what it parses."""
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default %(default)s)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port to listen on, 0 for a free one (default %(default)s)"
    )
    parser.add_argument("--db", metavar="FILE", help="keep the books in this SQLite file (default: in memory)")
    parser.add_argument("--demo", action="store_true", help="begin with a few envelopes (env_1 is one) and some usage")
    parser.add_argument("--api-key", default=DEFAULT_KEY, help="a key that works from the start (default %(default)s)")
    parser.add_argument(
        "--no-idempotency", action="store_true", help="ignore Idempotency-Key: a POST sent twice is booked twice"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="SPEC",
        help='a fault, such as "status;status=500;share=0.2"; may be given again',
    )
    parser.add_argument(
        "--choice",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help='where the API is not described, do this, such as "enforce_limits=false"; may be given again',
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name, besides localhost, by which browsers and tests may ask /__emulator__/; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON when ready: base_url, api_key, pid")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return 0 then, and 2 when it cannot start, having said why on stderr."""
    try:
        require_emulator_extra()
        choices = _choices(arguments)
        script = FaultScript([Fault.from_text(spec) for spec in arguments.fault])
        books = Books(arguments.db, choices=choices, api_key=arguments.api_key)
    except (MissingEmulatorExtra, BadFault, BooksUnavailable, ValueError) as error:
        return _cannot_start(error)
    try:
        if arguments.demo:
            from x402tools.emulator.demo import seed

            seed(books)
        return _serve(arguments, books, script)
    except OSError as error:
        return _cannot_start(error)
    finally:
        books.close()


def main(argv: Optional[List[str]] = None) -> int:
    """Parse the command line and :func:`run`."""
    parser = argparse.ArgumentParser(prog="python -m x402tools.emulator", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def _serve(arguments: argparse.Namespace, books: Books, script: FaultScript) -> int:
    # Imported here, so that `x402tools --help` works without the extra.
    from x402tools.emulator.app import Emulator
    from x402tools.emulator.serving import Server, base_url, listen, serve

    listener = listen(arguments.host, arguments.port)
    address = base_url(listener)

    def announce() -> None:
        print(_announcement(arguments, address), flush=True)

    app = Emulator(books, script, allowed_hosts=[arguments.host, *arguments.allow_host])
    serve(listener, Server(app, on_ready=announce))
    return 0


def _announcement(arguments: argparse.Namespace, address: str) -> str:
    if arguments.json:
        return json.dumps({"base_url": address, "api_key": arguments.api_key, "pid": os.getpid()})
    books = arguments.db or "memory"
    said = f"x402 emulator: base_url={address} api_key={arguments.api_key} books={books}"
    return f"{said} (a page to look at is at base_url; Ctrl+C ends it)"


def _choices(arguments: argparse.Namespace) -> Choices:
    settings: Dict[str, str] = {}
    for text in arguments.choice:
        name, _, value = text.partition("=")
        settings[name.strip()] = value.strip()
    if arguments.no_idempotency:
        settings["idempotency"] = "false"
    return Choices().with_settings(settings)


def _cannot_start(error: Exception) -> int:
    print(f"x402 emulator: {error}", file=sys.stderr)
    return CANNOT_START
