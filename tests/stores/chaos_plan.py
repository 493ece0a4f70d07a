"""What happens in a round, drawn from a seed. Pure: the same store, seed and number always give the same plan.

The plan repeats exactly; which instruction a worker is at when it is killed is the machine's.
"""

from __future__ import annotations

import random
from typing import NamedTuple, Optional, Tuple

from tests.conservation.plan import FaultPlan

SQLITE, REDIS, VALKEY = "sqlite", "redis", "valkey"
CLUSTER = "cluster"  # of three Redis nodes
STORES = (SQLITE, REDIS, VALKEY, CLUSTER)

# What happens to the engine while workers are killed; in turn, so that a few rounds meet all of it.
FAILOVER = "failover"
WEATHERS = ("calm", "killed", "cut off", "full", FAILOVER)
WEATHERS_OF_A_CLUSTER = ("killed", "slots moved")

# An amount is this and a little more, so that a sum of amounts tells how many they were: of events folded into one POST
# the service sees only the sum.
UNIT = 1_000_000
_LARGEST_MORE = 30

# Seconds. Far shorter than anybody's real lease, so that stalls outlast it and leases are stolen.
LEASE = 0.6


class Blow(NamedTuple):
    """What is done to a worker, so many seconds after the blow before: SIGKILL, or a stall of so many seconds."""

    after: float
    stall: float  # 0 for SIGKILL


class Plan(NamedTuple):
    """One round."""

    store: str
    seed: int
    number: int
    events: int
    kills: int
    workers: int
    weather: str
    recorders: Tuple[Tuple[bool, int], ...]  # whether it coalesces, and how many events it records
    seconds: float  # that recording takes
    blows: Tuple[Blow, ...]
    faults: FaultPlan
    partitions: Optional[int] = None  # the store's own default


def amount_of(rng: random.Random) -> int:
    """The amount of one event."""
    return UNIT + rng.randrange(_LARGEST_MORE)


def draw(
    store: str, seed: int, number: int, *, events: int, kills: int, workers: int = 3, weather: Optional[str] = None
) -> Plan:
    """The plan of this round; the weather of a server can be chosen."""
    rng = random.Random(f"{store}/{seed}/{number}")
    weathers = {SQLITE: ("calm",), CLUSTER: WEATHERS_OF_A_CLUSTER}.get(store, WEATHERS)
    if weather not in weathers:
        weather = weathers[(seed + number) % len(weathers)]
    # Most coalesce: what does not costs a POST an event, and a round shall take seconds.
    one_by_one = events // 10
    rest = events - 2 * one_by_one
    stalls = max(kills // 4, 1)
    blows = [Blow(rng.uniform(0.05, 0.5), 0.0) for _ in range(kills)]
    blows += [Blow(rng.uniform(0.05, 0.5), LEASE * rng.uniform(1.1, 2.5)) for _ in range(stalls)]
    rng.shuffle(blows)
    shares = {"500": 0.02, "429 at once": 0.01, "reset before": 0.01, "reset after": 0.02, "slow": 0.05}
    return Plan(
        store,
        seed,
        number,
        events,
        kills,
        workers,
        weather,
        recorders=((True, rest // 2), (True, rest - rest // 2), (False, one_by_one), (False, one_by_one)),
        seconds=0.8 * sum(blow.after + blow.stall for blow in blows),
        blows=tuple(blows),
        faults=FaultPlan(f"{store}/{seed}/{number}", shares),
    )
