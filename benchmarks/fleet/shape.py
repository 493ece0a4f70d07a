"""What a fleet is made of, as parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Optional

from benchmarks.fleet.traffic import KINDS, Kind

# How the events reach one who folds them.
HOST = "host"  # each host folds its own, from its own spool: no engine
SHARED = "shared"  # an engine, if each worker read from every partition: then each would fold a part of every group
OWNED = "owned"  # an engine; of each partition one worker folds, so a group is folded in one place. The store has one

MOST_EVENTS = 500  # of a batch
MOST_POSTS = 20_000  # of a fold: then it is sealed before its window ends


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A fleet; the defaults are the one of the README.

    Attributes:
        hosts: that record.
        rate: events a second, of all of them.
        envelopes: that are used, by Zipf's law with this exponent.
        kind: of metadata, a name of `traffic.KINDS`.
        folding: HOST, SHARED or OWNED.
        window: `coalesce_window`, seconds.
        flush_at, flush_interval: when a host publishes: so many events, or so many seconds after the first.
        look_every: seconds between a worker's looks at the engine; each takes what came since anybody looked.
        partitions: of the engine; None takes as many as it needs.
        workers: None takes as many as it needs.
        concurrency: POSTs in flight of a worker.
        round_trip: seconds until a POST is answered.
        limit: POSTs a second that the service takes from the whole fleet.
    """

    hosts: int = 1000
    rate: float = 1e6
    envelopes: int = 10_000
    exponent: float = 1.0
    kind: str = "endpoint"
    folding: str = SHARED
    window: float = 60.0
    flush_at: int = 100
    flush_interval: float = 1.0
    look_every: float = 1.0
    partitions: Optional[int] = None
    workers: Optional[int] = None
    concurrency: int = 32
    round_trip: float = 0.1
    limit: float = math.inf

    @property
    def metadata(self) -> Kind:
        return KINDS[self.kind]

    @property
    def taken(self) -> float:
        """Events that a host publishes at once, before they are split by partition."""
        return max(1.0, min(self.flush_at, self.rate / self.hosts * self.flush_interval))

    def batch(self, partitions: int) -> float:
        """Events of a batch: those of one host that go to one partition at once."""
        reached = partitions * -math.expm1(-self.taken / partitions) if partitions > 1 else 1.0
        return max(1.0, min(MOST_EVENTS, self.taken / reached))

    @property
    def publishing(self) -> float:
        """Seconds that an event waits for others of its host, at the most."""
        return min(self.flush_interval, self.flush_at * self.hosts / self.rate)
