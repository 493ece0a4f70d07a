"""`x402tools buffer drain`: delivers a spool until it is empty."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Tuple

import click

from x402tools._cli import codes, fleet, glance
from x402tools._cli.delivery import delivering_client
from x402tools._cli.glance import Glance
from x402tools._cli.meter import Meter
from x402tools._cli.options import Service, output_option, place_options, service_options
from x402tools._cli.output import Output, say
from x402tools._inspect import SpoolView
from x402tools.buffer import BufferStats
from x402tools.demo import interruption

_TICK = 0.25  # seconds between two looks


@click.command("drain")
@place_options
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400),
    default=60.0,
    metavar="SECONDS",
    help="Give up after so long (default 60).",
)
@click.option("--concurrency", type=click.IntRange(1, 1000), default=8, help="POSTs at once (default 8).")
@service_options
@output_option
def drain(
    path: Optional[str], store: Optional[str], timeout: float, concurrency: int, service: Service, output: Output
) -> int:
    """Delivers what is pending, until nothing is.

    While another process delivers, it only waits for that one. Exits with 4 when something is left, or became a dead
    letter meanwhile, and with 130 when it was interrupted; what is left stays in the spool.
    """
    if store is not None:
        return fleet.drain(store, timeout, concurrency, service, output)
    assert path is not None
    with SpoolView(path) as view:
        before = glance.take(view)
    if before.deliverer is not None:
        say(f"Waiting for {glance.process_name(before.deliverer)}, which delivers this spool.")
    give_up = time.monotonic() + timeout
    with interruption.noticed() as stop:
        with delivering_client(path, service, max_concurrency=concurrency) as client, Meter("delivering") as meter:
            spool = client.buffer
            assert spool is not None
            while True:
                result = client.flush(min(_TICK, timeout))
                stats = spool.stats()
                done = stats.delivered.events - before.counts.delivered.events
                left = stats.pending.events
                meter.show(f"{done:,} delivered, {left:,} left", done, done + left)
                if result or stop.is_set() or time.monotonic() >= give_up:
                    break
        return _tell(output, before, stats, result.problem, interrupted=stop.is_set())


def _tell(output: Output, before: Glance, stats: BufferStats, problem: Optional[str], *, interrupted: bool) -> int:
    delivered = stats.delivered.minus(before.counts.delivered)
    is_left = stats.pending.events > 0
    document: Dict[str, Any] = {
        "delivered": delivered,
        "pending": stats.pending,
        "dead": stats.dead,
        "problem": problem if is_left else None,
    }
    pairs: List[Tuple[str, Any]] = [
        ("delivered", delivered.events),
        ("still pending", stats.pending.events),
        ("dead", stats.dead.events),
    ]
    if is_left:
        pairs.append(("because", problem or "time is up"))
    output.facts(pairs, document)
    if interrupted:
        return codes.INTERRUPTED
    has_died = stats.dead.events > before.counts.dead.events
    return codes.NEEDS_A_LOOK if is_left or has_died else codes.DONE
