"""`x402tools buffer doctor`: the usual faults, and what to do about each."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import click

from x402tools._cli import checks, codes
from x402tools._cli.checks import Finding
from x402tools._cli.checks_service import check_service, destination_of
from x402tools._cli.options import Service, output_option, place_options, service_options
from x402tools._cli.output import Output, columns

_STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


@click.command("doctor")
@place_options
@click.option("--offline", is_flag=True, help="Leave the service alone: no look at key, base URL and clock.")
@service_options
@output_option
def doctor(path: Optional[str], store: Optional[str], offline: bool, service: Service, output: Output) -> int:
    """Looks for the usual faults around a spool, or a fleet's engine, and says what to do.

    Folder and file (rights, network drives, room), the spool (format, versions, damage, a log left over, nobody who
    delivers, dead letters); or the engine (version, eviction, memory, append-only file, replicas, clock, workers, dead
    letters); and the service (base URL, key, clock). Changes nothing. Exits with 4 when there is a fault; notes alone
    are none.
    """
    if store is not None:
        from x402tools._cli import checks_fleet

        findings, destination = checks_fleet.check_fleet(store)
    else:
        assert path is not None
        findings, destination = checks.check_spool(path), None if offline else destination_of(path)
    if not offline:
        findings += check_service(destination, service, what="spool" if store is None else "store")
    if output.as_json:
        output.json([_document(one) for one in findings])
    else:
        for one in findings:
            _print(output, one)
    return codes.NEEDS_A_LOOK if any(one.level == "fault" for one in findings) else codes.DONE


def _document(finding: Finding) -> Dict[str, Any]:
    return finding._asdict()


def _print(output: Output, finding: Finding) -> None:
    head = f"{finding.level:<6} {finding.about:<12} "
    if not output.is_terminal:
        advice = f" -> {finding.advice}" if finding.advice else ""
        print(f"{head}{output.text(finding.what)}{output.text(advice)}".rstrip())
        return
    from x402tools._cli import screen

    lines: List[str] = screen.wrapped(output.text(finding.what), columns() - len(head) - 1)
    advice_lines = (
        screen.wrapped("-> " + output.text(finding.advice), columns() - len(head) - 1) if finding.advice else []
    )
    for at, line in enumerate([*lines, *advice_lines]):
        screen.marked(head if not at else " " * len(head), "" if at else _STYLES[finding.level], line)
