"""`x402tools buffer doctor`: the usual faults, and what to do about each."""

from __future__ import annotations

from typing import Any, Dict, List

import click

from x402tools._cli import checks, codes
from x402tools._cli.checks import Finding
from x402tools._cli.checks_service import check_service
from x402tools._cli.options import Service, output_option, service_options, spool_argument
from x402tools._cli.output import Output, columns

_STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


@click.command("doctor")
@spool_argument
@click.option("--offline", is_flag=True, help="Leave the service alone: no look at key, base URL and clock.")
@service_options
@output_option
def doctor(path: str, offline: bool, service: Service, output: Output) -> int:
    """Looks for the usual faults around a spool, and says what to do.

    Folder and file (rights, network drives, room), the spool (format, versions, damage, a log left over, nobody who
    delivers, dead letters), and the service (base URL, key, clock). Changes nothing. Exits with 4 when there is a
    fault; notes alone are none.
    """
    findings = checks.check_spool(path)
    if not offline:
        findings += check_service(path, service)
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
