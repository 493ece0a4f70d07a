"""A chaos campaign: many rounds from one seed, each judged, the failing ones kept.

    python -m tests.conservation.campaign --rounds 60 --seed 7
    python -m tests.conservation.campaign --seed 7 --round 13 --keep /tmp/chaos     # one of them again

Exits with 1 when a round failed, or when too many were late: what is bounded in milliseconds took longer, within
`judge.OVERLOADED`. With --strict a late round has failed, for a machine that has nothing else to do. A seed repeats the
plan of a round to the letter; which thread runs at which moment is the machine's, so a failing round is best repeated
a few times.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from tests.conservation import judge, plan
from tests.conservation.pulse import Pulse
from tests.conservation.round import Round

ROUNDS = 60
JOBS = 2

# Of all rounds so many may be late, and one of a few.
MOST_LATE = 0.2


class Outcome(NamedTuple):
    """What became of one round."""

    number: int
    seconds: float
    summary: str
    verdict: Optional[judge.Verdict]
    sentences: List[str]
    folder: pathlib.Path

    def __bool__(self) -> bool:
        return bool(self.verdict)

    @property
    def is_late(self) -> bool:
        return self.verdict is not None and bool(self.verdict.late)


def too_late(outcomes: Sequence[Outcome], strict: bool = False) -> bool:
    """Whether more rounds were late than a busy machine explains."""
    late = sum(outcome.is_late for outcome in outcomes)
    return late > (0 if strict else max(1, int(MOST_LATE * len(outcomes))))


def run(
    numbers: Sequence[int],
    seed: int,
    *,
    jobs: int = JOBS,
    keep: Optional[pathlib.Path] = None,
    tell: Callable[[str], object] = print,
) -> List[Outcome]:
    """Runs the rounds of these numbers.

    Args:
        jobs: how many at a time.
        keep: where the folder of every round is kept; by default only those of failing rounds are, in a temporary
            folder that the line of the round names.
        tell: is given one line for each round, and the table at the end.
    """
    base = pathlib.Path(keep) if keep is not None else pathlib.Path(tempfile.mkdtemp(prefix="x402tools-chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    tell(f"seed {seed}, {len(numbers)} rounds, {jobs} at a time")
    start = time.monotonic()
    with Pulse(base) as pulse, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(_round, seed, number, base, pulse, keep is not None) for number in numbers]
        outcomes = []
        for future in concurrent.futures.as_completed(running):
            outcomes.append(future.result())
            tell(_line(seed, outcomes[-1]))
    if keep is None:
        (base / "pulse").unlink()
        if all(outcomes):
            base.rmdir()
    tell(_table(outcomes, time.monotonic() - start))
    return sorted(outcomes)


def command(seed: int, number: int) -> str:
    """What repeats this round."""
    return f"python -m tests.conservation.campaign --seed {seed} --round {number}"


def _round(seed: int, number: int, base: pathlib.Path, pulse: Pulse, keep: bool) -> Outcome:
    drawn = plan.draw(seed, number)
    folder = base / f"round-{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.monotonic()
    verdict: Optional[judge.Verdict] = None
    try:
        verdict = Round(drawn, folder, pulse).run()
        sentences = verdict.sentences() or [f"late: {sentence}" for sentence in verdict.late[:2]]
    except Exception as error:  # noqa: BLE001 - one round that breaks down must not hide what the others found
        sentences = [f"the round broke down: {type(error).__name__}: {error}"]
    seconds = time.monotonic() - start
    (folder / "verdict.txt").write_text("\n".join(sentences or ["kept"]) + "\n", encoding="utf-8")
    if verdict and not keep:
        shutil.rmtree(folder)
    return Outcome(number, seconds, drawn.summary(), verdict, sentences, folder)


def _line(seed: int, outcome: Outcome) -> str:
    figures = Counter(outcome.verdict.figures if outcome.verdict is not None else {})
    line = (
        f"{outcome.number:3} {_word(outcome)} {outcome.seconds:4.1f}s"
        f" {figures['acknowledged']:5} acked {figures['delivered']:5} delivered {figures['dead']:3} dead"
        f" {figures['lost']:3} lost {figures['repeats']:3} repeats | {outcome.summary}"
    )
    if outcome:
        return "\n".join([line, *(f"    {sentence}" for sentence in outcome.sentences)])
    again = f"    again:  {command(seed, outcome.number)}\n    kept:   {outcome.folder}"
    return "\n".join([line, *(f"    {sentence}" for sentence in outcome.sentences), again])


def _word(outcome: Outcome) -> str:
    return "FAIL" if not outcome else "late" if outcome.is_late else "ok  "


# Of these the table shows the largest; of all others the sum.
_LARGEST = ("oldest lost µs", "slowest record µs", "largest stall µs", "oldest of them µs")


def _table(outcomes: Sequence[Outcome], seconds: float) -> str:
    totals: Dict[str, int] = {}
    for outcome in outcomes:
        for name, value in (outcome.verdict.figures if outcome.verdict is not None else {}).items():
            totals[name] = max(totals.get(name, 0), value) if name in _LARGEST else totals.get(name, 0) + value
    failed = sorted(outcome.number for outcome in outcomes if not outcome)
    rows = [
        ("rounds", str(len(outcomes))),
        ("failing", str(len(failed))),
        ("late", str(sum(outcome.is_late for outcome in outcomes))),
        ("seconds", f"{seconds:.0f}"),
    ]
    rows += [(name, f"{value:,}") for name, value in totals.items()]
    return "\n".join(["", *(f"{name:28} {value:>12}" for name, value in rows)])


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conservation.campaign", description="A chaos campaign.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, which is printed")
    parser.add_argument("--round", type=int, default=None, help="only the round of this number")
    parser.add_argument("--jobs", type=int, default=JOBS, help="rounds at a time (default %(default)s)")
    parser.add_argument("--keep", type=pathlib.Path, default=None, help="keep the folder of every round in this one")
    parser.add_argument("--strict", action="store_true", help="a late round has failed")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else fresh_seed()
    numbers = range(1, chosen.rounds + 1) if chosen.round is None else [chosen.round]
    outcomes = run(numbers, seed, jobs=chosen.jobs, keep=chosen.keep, tell=lambda text: print(text, flush=True))
    return 0 if all(outcomes) and not too_late(outcomes, chosen.strict) else 1


def fresh_seed() -> int:
    return random.SystemRandom().randrange(1_000_000)


if __name__ == "__main__":
    sys.exit(main())
