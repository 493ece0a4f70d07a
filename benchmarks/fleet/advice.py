"""Where a fleet outgrows the design, and what has to change there: decisions about a plan, in words."""

from __future__ import annotations

import math
from typing import List

from benchmarks.fleet.costs import MEASURED, Costs
from benchmarks.fleet.plan import Plan
from benchmarks.fleet.shape import HOST, SHARED, Fleet

SMALL_BATCH = 30  # events; below it the engine's cost of a call outweighs that of its events several times
ENGINE_MEMORY = 64 * 2**30  # bytes that one is ready to give to an engine for an hour's backlog
POSTS_FELT = 5000  # a second: more than an API that takes one record a request is likely to allow
WORKERS_FELT = 64
FOLDS_NOT = 0.9  # POSTs an event: hardly two are of one group
FOLDS_POORLY = 0.1  # POSTs an event: folding by ten or less is not worth an engine


def changes(fleet: Fleet, found: Plan, costs: Costs = MEASURED) -> List[str]:
    """What has to change; nothing when the fleet is well as it is."""
    allowed = min(fleet.limit, POSTS_FELT)
    busiest = fleet.rate / math.fsum((rank + 1) ** -fleet.exponent for rank in range(fleet.envelopes))
    needs = {
        "coalesce_by with fewer keys, or an endpoint that takes many records": found.wanted > allowed
        and found.wanted > (FOLDS_POORLY if fleet.folding != HOST else FOLDS_NOT) * fleet.rate,
        "fold centrally: an engine": found.wanted > allowed and fleet.folding == HOST,
        "one reader a partition": fleet.folding == SHARED and found.workers > 1 and found.wanted > allowed,
        "publish more at once (flush_at)": fleet.folding != HOST
        and found.batch < SMALL_BATCH
        and found.engine_cores > costs.busy,
        "fold at the hosts first: one envelope is too much for a worker": busiest * costs.fold_event / 1e6 > costs.busy,
        "a log on disk instead of an engine in memory": found.memory_hour > ENGINE_MEMORY,
        "fold in a compiled language": found.worker_cores > WORKERS_FELT * costs.busy
        and found.posts < FOLDS_POORLY * fleet.rate,
    }
    return [change for change, needed in needs.items() if needed]
