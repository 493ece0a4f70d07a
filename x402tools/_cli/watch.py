"""`x402tools buffer watch`: a spool while it is worked on; the counterpart of the emulator's page in a terminal."""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional

import click

from x402tools._cli import fleet_view, glance, screen
from x402tools._cli.glance import Glance
from x402tools._cli.options import output_option, place_options
from x402tools._cli.output import Output, duration
from x402tools._inspect import SpoolView
from x402tools._store import Tally
from x402tools.demo import interruption

_RATE_OVER = 5.0  # seconds; deliveries are written down in bursts, and a shorter time would make the rate jump
_SAMPLES = 40  # that the curves show
_STALLED_AFTER = 5.0  # seconds without a delivery, while something is pending
_STEPS = " ▁▂▃▄▅▆▇█"


class View(NamedTuple):
    """What is told at a moment: the spool, and what a single look cannot tell.

    Attributes:
        recorded_rate, delivered_rate: events a second, over the last seconds; None at the first look.
        stalled_for: seconds for which nothing was delivered although something is pending, as far as was watched.
    """

    seen: Glance
    recorded_rate: Optional[float]
    delivered_rate: Optional[float]
    stalled_for: Optional[float]

    def document(self) -> Dict[str, Any]:
        """For JSON."""
        return {
            **self.seen.document(),
            "at": datetime.fromtimestamp(self.seen.at).astimezone(),
            "recorded_per_second": self.recorded_rate,
            "delivered_per_second": self.delivered_rate,
            "stalled_for": self.stalled_for,
        }

    @property
    def state(self) -> str:
        """In one word: idle, delivering, waiting, or nobody delivers."""
        if not self.seen.counts.pending.events:
            return "idle"
        if self.seen.deliverer is None:
            return "nobody delivers"
        return "waiting" if (self.stalled_for or 0.0) >= _STALLED_AFTER else "delivering"


class Watcher:
    """Puts one look after another together."""

    def __init__(self) -> None:
        self._glances: Deque[Glance] = deque(maxlen=1000)
        self._moved_at: Optional[float] = None
        self.pending: Deque[int] = deque(maxlen=_SAMPLES)
        self.rates: Deque[float] = deque(maxlen=_SAMPLES)

    def add(self, seen: Glance) -> View:
        """What is to be told now that the spool looks like this."""
        last = self._glances[-1] if self._glances else None
        has_moved = last is None or last.counts.delivered != seen.counts.delivered or not seen.counts.pending.events
        if has_moved:
            self._moved_at = seen.at
        self._glances.append(seen)
        while len(self._glances) > 2 and seen.at - self._glances[0].at > _RATE_OVER:
            self._glances.popleft()
        first = self._glances[0]
        seconds = seen.at - first.at
        rates: List[Optional[float]] = [None, None]
        if seconds > 0:
            for at, name in enumerate(("recorded", "delivered")):
                before, now = getattr(first.counts, name), getattr(seen.counts, name)
                rates[at] = max(now.events - before.events, 0) / seconds
        self.pending.append(seen.counts.pending.events)
        self.rates.append(rates[1] or 0.0)
        stalled = seen.at - (self._moved_at or seen.at) if seen.counts.pending.events else None
        return View(seen, rates[0], rates[1], stalled)


@click.command("watch")
@place_options
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, metavar="SECONDS", help="Between looks (default 1)."
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks (default: at Ctrl-C).")
@output_option
def watch(path: Optional[str], store: Optional[str], interval: float, count: Optional[int], output: Output) -> None:
    """Shows how a spool, or what a fleet has on an engine, is worked on, until Ctrl-C.

    In a pipe a line each time; with --json a JSON document a line.
    """
    watcher = Watcher()
    looks = itertools.count(1) if count is None else range(1, count + 1)
    framed = screen.Picture() if output.is_terminal else nullcontext()
    with interruption.noticed() as stop, _looking(path, store) as look, framed as picture:
        for number in looks:
            view = watcher.add(look())
            if picture is not None:
                picture.draw(view.seen.path, _lines(view, watcher))
            else:
                _print(output, view, is_first=number == 1)
            if number == count or stop.wait(interval):
                return


@contextmanager
def _looking(path: Optional[str], store: Optional[str]) -> Iterator[Callable[[], Glance]]:
    """What tells how it is now. A file is opened anew each time, because it may be another one by then."""
    if store is None:
        yield lambda: _look_at_file(path)
        return
    with fleet_view.FleetView(store) as fleet:
        yield lambda: fleet_view.take(fleet)


def _look_at_file(path: Optional[str]) -> Glance:
    assert path is not None
    with SpoolView(path) as spool:
        return glance.take(spool)


def _print(output: Output, view: View, *, is_first: bool) -> None:
    if output.as_json:
        output.json_line(view.document())
        return
    counts = view.seen.counts
    if is_first:
        print(f"{'time':8}  {'pending':>10}  {'delivered/s':>11}  {'dead':>8}  {'oldest':>12}  state")
    rate = "" if view.delivered_rate is None else f"{view.delivered_rate:.1f}"
    age = duration(view.seen.oldest_pending_age)
    clock = time.strftime("%H:%M:%S", time.localtime(view.seen.at))
    line = f"{clock:8}  {counts.pending.events:>10}  {rate:>11}  {counts.dead.events:>8}  {age:>12}  {view.state}"
    print(line, flush=True)


def _lines(view: View, watcher: Watcher) -> List[Any]:
    counts, seen = view.seen.counts, view.seen
    color = {"delivering": "green", "idle": "green", "waiting": "yellow"}.get(view.state, "red")
    state = view.state if view.state != "waiting" else f"waiting, nothing delivered for {duration(view.stalled_for)}"
    lines = [
        screen.styled((f"{'state':<16}", "bold"), (state, color)),
        screen.styled((f"{'delivered by':<16}", "bold"), seen.who_delivers),
        _row("pending", counts.pending, spark([float(one) for one in watcher.pending]), "yellow"),
        _row("delivered", counts.delivered, spark(list(watcher.rates)), "green"),
        screen.styled((f"{'delivered/s':<16}", "bold"), _rate(view.delivered_rate)),
        screen.styled((f"{'recorded/s':<16}", "bold"), _rate(view.recorded_rate)),
        screen.styled((f"{'oldest pending':<16}", "bold"), duration(seen.oldest_pending_age) or "none"),
        _row("dead", counts.dead, "", "red" if counts.dead.events else ""),
        _row("dropped", counts.dropped, "", "red" if counts.dropped.events else ""),
    ]
    shown = dict(seen.tallies())
    lines += [_row(name, tally, "", "") for name, tally in shown.items() if name not in glance.LEDGER]
    if not seen.adds_up:
        lines.append(screen.styled(("the ledger does not add up: x402tools buffer audit", "bold red")))
    return lines


def _row(name: str, tally: Tally, curve: str, style: str) -> Any:
    figure = f"{tally.events:>14,} events"
    return screen.styled((f"{name:<16}", "bold"), (figure, style), "  ", (curve, style))


def _rate(rate: Optional[float]) -> str:
    return "" if rate is None else f"{rate:>14,.1f} events/s"


def spark(values: List[float]) -> str:
    """A small curve of the values, from 0 to the highest of them."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return ""
    return "".join(_STEPS[min(round(value / highest * (len(_STEPS) - 1)), len(_STEPS) - 1)] for value in values)
