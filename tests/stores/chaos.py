"""Chaos on a store: recorders that record, workers that are killed and stalled, an engine that fails; then the bill.

    python -m tests.stores.chaos --store redis --rounds 20
    python -m tests.stores.chaos --store redis --seed 7 --round 3     # one of them again
    python -m tests.stores.chaos --store valkey --weather failover
    python -m tests.stores.chaos --store redis --partitions 4         # or --store cluster

Four recorders, three workers, 25 SIGKILLs and 6 stalls longer than the lease in 20,000 events. On an engine the rounds
have it calm, killed and restarted, cut off, at its limit of memory, and with a replica that is cut off and takes over,
in turn; on a cluster a node is killed, or slots are moved to others. A round is right when the bill less
what was recorded is 0, in events and in units, for every envelope, and the store's own ledger says the same. Exits with
1 when one is not.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Optional, Sequence, Tuple

from tests.stores import chaos_plan, servers
from tests.stores.chaos_plan import Plan
from tests.stores.chaos_round import Round, Verdict

EVENTS, KILLS, ROUNDS = 20_000, 25, 20


def play(plan: Plan, base: pathlib.Path) -> Tuple[Verdict, str]:
    """Plays one round in a new folder there, which stays when the bill is wrong; the verdict, and a line about it."""
    folder = base / f"round-{plan.store}-{plan.seed}-{plan.number}"
    folder.mkdir(parents=True)
    start = time.monotonic()
    verdict = Round(plan, folder).run()
    line = _line(plan, verdict, time.monotonic() - start)
    if verdict.faults:
        line = "\n".join([line, *(f"    {fault}" for fault in verdict.faults[:12]), f"    kept: {folder}"])
    else:
        shutil.rmtree(folder)
    return verdict, line


def _line(plan: Plan, verdict: Verdict, seconds: float) -> str:
    again = f"python -m tests.stores.chaos --store {plan.store} --seed {plan.seed} --round {plan.number}"
    if plan.store != chaos_plan.SQLITE:
        again += f" --weather '{plan.weather}'"
    if (plan.events, plan.kills) != (EVENTS, KILLS):
        again += f" --events {plan.events} --kills {plan.kills}"
    if plan.partitions is not None:
        again += f" --partitions {plan.partitions}"
    strokes = ", ".join(f"{count} {what}" for what, count in sorted(verdict.strokes.items())) or "no stroke"
    return (
        f"{plan.number:3} {'FAIL' if verdict.faults else 'ok  '} {seconds:5.1f} s"
        f"  {verdict.recorded.events:,} recorded, {verdict.billed.events:,} billed,"
        f" error {verdict.error.events:+,d} events {verdict.error.units:+,d} units"
        f" | {verdict.kills} kills, {verdict.stalls} stalls, engine {plan.weather} ({strokes})"
        f" | {verdict.posts:,} POSTs, {verdict.replays} replays | {again}"
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stores.chaos", description="Chaos on a store.")
    parser.add_argument("--store", choices=chaos_plan.STORES, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, help="default: a fresh one, which is printed")
    parser.add_argument("--round", type=int, help="only the round of this number")
    parser.add_argument(
        "--weather", choices=(*chaos_plan.WEATHERS, "slots moved"), help="of an engine (default: one after the other)"
    )
    parser.add_argument("--events", type=int, default=EVENTS, help="of a round (default %(default)s)")
    parser.add_argument("--kills", type=int, default=KILLS, help="of a round (default %(default)s)")
    parser.add_argument("--partitions", type=int, help="of the store (default: its own)")
    parser.add_argument("--keep", type=pathlib.Path, help="where the folders of failing rounds stay")
    chosen = parser.parse_args(arguments)
    kind = servers.REDIS if chosen.store == chaos_plan.CLUSTER else chosen.store
    if kind != chaos_plan.SQLITE and servers.program(kind) is None:
        print(servers.MISSING[kind], file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines and processes end with it
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1_000_000)
    base = chosen.keep or pathlib.Path(tempfile.mkdtemp(prefix="x402tools-chaos-"))
    numbers = range(1, chosen.rounds + 1) if chosen.round is None else [chosen.round]
    failed = 0
    for number in numbers:
        plan = chaos_plan.draw(
            chosen.store, seed, number, events=chosen.events, kills=chosen.kills, weather=chosen.weather
        )._replace(partitions=chosen.partitions)
        verdict, line = play(plan, base)
        failed += bool(verdict.faults)
        print(line, flush=True)
    print(f"{len(numbers)} rounds on {chosen.store} with seed {seed}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
