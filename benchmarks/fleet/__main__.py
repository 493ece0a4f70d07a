"""python -m benchmarks.fleet [--rate 1e6] [--kind endpoint] [--window 60] …: what a fleet needs; starts nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Optional, Sequence

from benchmarks.fleet.advice import changes
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.plan import plan
from benchmarks.fleet.play import play
from benchmarks.fleet.shape import HOST, OWNED, SHARED, Fleet
from benchmarks.fleet.traffic import KINDS
from benchmarks.report.words import number


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Prints the plan and what has to change for it.

    Returns:
        0; 1 when the fleet does not keep up.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=(__doc__ or "").partition(": ")[2])
    choices = {"kind": list(KINDS), "folding": [HOST, SHARED, OWNED]}
    for part in (Fleet, Costs):
        for field in dataclasses.fields(part):
            kind = str if field.name in choices else int if "int" in str(field.type) else float
            flag = f"--{'cost-' if part is Costs else ''}{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, choices=choices.get(field.name), default=field.default)
    parser.add_argument("--seed", type=int, default=1, help="for --play")
    parser.add_argument("--play", type=float, metavar="SECONDS", help="go through so long event by event: small fleets")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    fleet = Fleet(**{field.name: options[field.name] for field in dataclasses.fields(Fleet)})
    costs = Costs(**{field.name: options[f"cost_{field.name}"] for field in dataclasses.fields(Costs)})
    found = plan(fleet, costs)
    result = {**dataclasses.asdict(found), "changes": changes(fleet, found, costs)}
    if options["play"]:
        result["played"] = dataclasses.asdict(play(fleet, options["play"], costs, seed=options["seed"]))
    if options["json"]:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):16} {_words(value)}")
    return 0 if found.keeps_up else 1


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    return "; ".join(map(str, value)) or "nothing" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
