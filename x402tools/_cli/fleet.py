"""What `x402tools buffer status|dead|requeue|drain` do with --store: an engine that a fleet shares, in place of a file.

An engine is asked through a buffer that only stores, as any process of the fleet may have one.
"""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from x402tools import UsageBuffer
from x402tools._cli import codes
from x402tools._cli.delivery import fleet_client
from x402tools._cli.meter import Meter
from x402tools._cli.options import Service
from x402tools._cli.output import Column, Output, amount_of_bytes, duration, first, say
from x402tools._store import DeadLetter, Tally
from x402tools.buffer import BufferStats
from x402tools.demo import interruption

_LEDGER = ("recorded", "delivered", "pending", "dead", "dropped")
_PAGE = 1000  # dead letters
_TICK = 0.25  # seconds between two looks


def shown(store: str) -> str:
    """A store's URL as it may be shown: without user name, password and options."""
    parts = urlsplit(store)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def opened(store: str) -> UsageBuffer:
    """A buffer that looks at this store and delivers nothing.

    Raises:
        X402Error: the engine cannot be reached or used.
    """
    return UsageBuffer(store=store, deliver=False)


def status(store: str, output: Output) -> int:
    """The ledger, and since when something waits."""
    with opened(store) as buffer:
        stats = buffer.stats()
    tallies = [(name, getattr(stats, name)) for name in _LEDGER]
    adds_up = _adds_up(stats)
    pairs: List[Tuple[str, Any]] = [(name, output.tally(tally)) for name, tally in tallies]
    pairs += [
        ("oldest pending", duration(stats.oldest_pending_age) or "none"),
        ("size", f"{amount_of_bytes(stats.spool_bytes)} in use"),
        *(() if adds_up else (("problem", "the ledger does not add up"),)),
    ]
    document: Dict[str, Any] = {
        "store": shown(store),
        **dict(tallies),
        "oldest_pending_age": stats.oldest_pending_age,
        "adds_up": adds_up,
        "store_bytes": stats.spool_bytes,
    }
    output.facts(pairs, document)
    return codes.NEEDS_A_LOOK if stats.dead.events or stats.dropped.events or not adds_up else codes.DONE


def dead(store: str, columns: Sequence[Column], limit: Optional[int], output: Output) -> int:
    """The dead letters, oldest first."""
    with opened(store) as buffer:
        count = output.table(columns, first(_letters(buffer), limit), empty="There are no dead letters.")
    return codes.NEEDS_A_LOOK if count else codes.DONE


def requeue(store: str, ids: Sequence[int], output: Output, *, everything: bool) -> int:
    """Has dead letters delivered again."""
    with opened(store) as buffer:
        wanted = buffer.stats().dead.events if everything else len(set(ids))
        count = buffer.requeue(None if everything else sorted(set(ids)))
        left = buffer.stats().dead
    output.facts([("requeued", count), ("still dead", output.tally(left))], {"requeued": count, "dead": left})
    if count < wanted and not everything:
        say("Some were not there; see `x402tools buffer dead`.")
        return codes.NEEDS_A_LOOK
    return codes.DONE


def drain(store: str, timeout: float, concurrency: int, service: Service, output: Output) -> int:
    """Delivers beside the workers there are, until nothing is pending."""
    give_up = time.monotonic() + timeout
    with interruption.noticed() as stop:
        with fleet_client(store, service, max_concurrency=concurrency) as client, Meter("delivering") as meter:
            buffer = client.buffer
            assert buffer is not None
            before = buffer.stats()
            while True:
                result = client.flush(min(_TICK, timeout))
                stats = buffer.stats()
                done, left = stats.delivered.events - before.delivered.events, stats.pending.events
                meter.show(f"{done:,} delivered, {left:,} left", done, done + left)
                if left == 0 or stop.is_set() or time.monotonic() >= give_up:
                    break
        interrupted = stop.is_set()
    problem = (result.problem or "time is up") if left else None
    delivered: Tally = stats.delivered.minus(before.delivered)
    pairs: List[Tuple[str, Any]] = [("delivered", done), ("still pending", left), ("dead", stats.dead.events)]
    output.facts(
        pairs + ([("because", problem)] if problem else []),
        {"delivered": delivered, "pending": stats.pending, "dead": stats.dead, "problem": problem},
    )
    if interrupted:
        return codes.INTERRUPTED
    return codes.NEEDS_A_LOOK if left or stats.dead.events > before.dead.events else codes.DONE


def _adds_up(stats: BufferStats) -> bool:
    return stats.recorded == stats.delivered.plus(stats.pending).plus(stats.dead).plus(stats.dropped)


def _letters(buffer: UsageBuffer) -> Iterator[DeadLetter]:
    after = 0
    while True:
        page = buffer.dead_letters(_PAGE, after=after)
        if not page:
            return
        yield from page
        after = page[-1].id
