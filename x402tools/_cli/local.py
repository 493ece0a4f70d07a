"""`x402tools emulator` and `x402tools demo` among the other commands: for --help and for completion.

They are run by `x402tools.cli`, which needs only their own extras; this is reached when something stands before them.
"""

from __future__ import annotations

from typing import Tuple

import click

_TAKES_ANYTHING = {"ignore_unknown_options": True, "help_option_names": []}


@click.command("emulator", context_settings=_TAKES_ANYTHING, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def emulator(words: Tuple[str, ...]) -> int:
    """A local emulator of the API, for trying out and for tests."""
    return _run("emulator", words)


@click.command("demo", context_settings=_TAKES_ANYTHING, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def demo(words: Tuple[str, ...]) -> int:
    """A metered service under load, with faults, and its bill checked."""
    return _run("demo", words)


def _run(command: str, words: Tuple[str, ...]) -> int:
    from x402tools import cli

    return cli.main([command, *words])
