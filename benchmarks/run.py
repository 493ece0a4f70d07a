"""What recording, storing and delivering cost on this machine, beside what others offer for it and beside the limits.

    python benchmarks/run.py                    every section, in under 15 minutes; sets itself up under .bench/ first
    python benchmarks/run.py --quick            the same in about two minutes, with rougher figures
    python benchmarks/run.py --section disk     one section; may be repeated
    python benchmarks/run.py --check            compares the ratios with those kept in benchmarks/results/

Every contestant has a process of its own and is measured in interleaved rounds; events are counted where they arrive.
Each section prints what it was asked to reach and whether it did, and says what it does not measure. Results go to
benchmarks/results/ (JSON, charts) and benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from typing import Callable, List, Optional, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
# By path, so that `python benchmarks/run.py` works from any folder and before anything is installed.
sys.path[0] = str(ROOT)

from benchmarks import setting_up  # noqa: E402 - the line above makes it importable
from benchmarks.harness.size import Size  # noqa: E402 - the folder above is on the path only now
from benchmarks.report import check  # noqa: E402 - the folder above is on the path only now
from benchmarks.report.model import Section  # noqa: E402 - the folder above is on the path only now
from benchmarks.sections import SECTIONS  # noqa: E402 - the folder above is on the path only now


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Sets up, starts over in the environment made for it, and runs.

    Returns:
        0; 1 when `--check` found a ratio that got worse, or a section failed.
    """
    options = _parser().parse_args(arguments)
    if not options.no_setup:
        setting_up.prepare()
        if pathlib.Path(sys.prefix) != setting_up.ENVIRONMENT:
            command = [str(setting_up.python()), str(pathlib.Path(__file__).resolve()), "--no-setup"]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            return subprocess.run([*command, *(arguments or sys.argv[1:])], env=environment, check=False).returncode
    return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--section", choices=list(SECTIONS), action="append", help="only this one; may be repeated")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const=Size.QUICK, dest="size", help="about two minutes in all")
    size.add_argument("--full", action="store_const", const=Size.FULL, dest="size", help="as large as the goals say")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="compare the ratios with the kept ones; keep nothing")
    parser.add_argument(
        "--tolerance", type=float, default=check.TOLERANCE, help="for --check: by which part a ratio may be worse"
    )
    parser.add_argument("--results", type=pathlib.Path, help="another folder than benchmarks/results")
    parser.add_argument("--no-setup", action="store_true", help="install nothing; what is missing is named")
    parser.set_defaults(size=Size.DEFAULT)
    return parser


def _run(options: argparse.Namespace) -> int:
    from benchmarks.harness import machine, sinkproof
    from benchmarks.peers import catalogue
    from benchmarks.report import results, terminal, words

    output = sys.stderr if options.json else sys.stdout
    say = functools.partial(print, file=output, flush=True)
    described, versions = machine.describe(), catalogue.versions()
    say(machine.line(described))
    say(", ".join(f"{name} {version}" for name, version in versions.items()))
    say(sinkproof.show(sinkproof.measure(options.size)))
    say(words.LEGEND)
    folder = options.results or results.FOLDER
    kept = results.load(folder, list(SECTIONS))
    sections, failed = [], []
    for name in options.section or SECTIONS:
        section = _run_section(name, options.size)
        if section is None:
            failed.append(f"{name} did not come to its end; see above")
            continue
        section.machine, section.versions = {**described, **section.machine}, versions
        sections.append(section)
        say(terminal.show(section))
    if options.json:
        print(json.dumps([section.as_dict() for section in sections], indent=1))
    if options.check:
        failed += _check(kept, sections, options.tolerance, say)
    else:
        results.save(folder, sections, list(SECTIONS))
        say(f"\nkept in {folder}, {folder.parent / 'RESULTS.md'}")
    for line in failed:
        say(f"FAILED {line}")
    return 1 if failed else 0


def _run_section(name: str, size: Size) -> Optional[Section]:
    from benchmarks.harness.machine import additions_ms
    from benchmarks.sections import module

    load, before, begin = [round(one, 2) for one in os.getloadavg()], additions_ms(), time.monotonic()
    try:
        section: Section = module(name).run(size)
    except Exception:  # noqa: BLE001 - the other sections are still worth their minutes
        traceback.print_exc()
        return None
    section.size, section.seconds, section.load = size.value, time.monotonic() - begin, load
    section.machine = {"load": load, "additions_ms": [before, additions_ms()]}
    return section


def _check(kept: List[Section], now: List[Section], tolerance: float, say: Callable[[str], None]) -> List[str]:
    comparisons = check.compare(kept, now)
    say(check.show(comparisons, tolerance))
    return [f"{found.section}: {found.name} got worse" for found in comparisons if found.is_worse(tolerance)]


if __name__ == "__main__":
    sys.exit(main())
