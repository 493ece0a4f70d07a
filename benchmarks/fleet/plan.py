"""What a fleet needs and what it does, in closed form: POSTs, workers, partitions, memory, and how late limits are.

Expected values; traffic is taken to be the same all day. `play` goes through small fleets event by event, and the tests
hold the two against each other.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Sequence, Tuple

from benchmarks.fleet.costs import MEASURED, Costs
from benchmarks.fleet.shape import HOST, MOST_POSTS, OWNED, Fleet
from benchmarks.fleet.traffic import Class, busiest_part, bytes_per_event, distinct, groups

LONGEST = 86_400.0  # seconds: a window that would have to be longer than a day is none
MOST_PARTITIONS = 1024
MOST_WORKERS = 4096
PARTITIONS_FOR_ROOM = 64  # no more than this for the sake of full folds alone
NEARLY = 1.25  # more partitions for less than a quarter are not worth their calls


@dataclasses.dataclass(frozen=True)
class Plan:
    """What comes out.

    Attributes:
        wanted: POSTs a second if windows were as asked for and every POST could be sent.
        posts: a second, in fact.
        window: seconds; longer than asked for where the service takes fewer POSTs, shorter where a fold is full.
        keeps_up: whether the service, the workers and the engine take what comes in.
        workers: processes that fold and POST; of HOST folding those of the hosts, in cores.
        worker_cores: CPU of all of them.
        in_flight: POSTs on their way at a time.
        host_cores: CPU of a host for encoding and publishing; without an engine for encoding alone.
        partitions: of the engine, 0 without one.
        partition_cores: CPU of the engine's busiest partition, one thread.
        engine_cores: of all partitions.
        batch: events of an entry of the engine.
        memory: bytes in the engine while all goes well.
        memory_hour: after an hour in which nothing could be sent.
        late_median, late_most: seconds from the use to the booking, of an event.
        overrun: units by which the busiest envelope may be over its limit before anybody can know.
    """

    wanted: float
    posts: float
    window: float
    keeps_up: bool
    workers: int
    worker_cores: float
    in_flight: float
    host_cores: float
    partitions: int
    partition_cores: float
    engine_cores: float
    batch: float
    memory: float
    memory_hour: float
    late_median: float
    late_most: float
    overrun: float


def plan(fleet: Fleet, costs: Costs = MEASURED) -> Plan:
    """The plan of a fleet."""
    classes = groups(fleet.envelopes, fleet.exponent, fleet.kind)
    partitions, enough = _partitions(fleet, costs, classes)
    workers, folds = _Workers(fleet, costs, classes, partitions).enough()
    has_engine = fleet.folding != HOST
    busiest, engine = _engine(fleet, costs, partitions) if has_engine else (0.0, 0.0)
    batch = fleet.batch(partitions)
    entry = bytes_per_event(fleet.metadata, batch) + costs.entry_bytes / batch if has_engine else 0.0
    # Recorded events wait for the whole window: it begins with the oldest, and all of it goes at once.
    waiting = fleet.rate * folds.window * entry + folds.posts * folds.drain * costs.post_bytes * has_engine
    # Each of the three is anything from 0 to so much, whichever way the others went: half of all events wait for less
    # than half of the sum.
    late = fleet.publishing + folds.window + folds.drain
    return Plan(
        wanted=_wanted(fleet, classes, workers, partitions),
        posts=folds.posts,
        window=folds.window,
        keeps_up=folds.keeps_up and enough,
        workers=workers,
        worker_cores=folds.cores,
        in_flight=folds.posts * fleet.round_trip,
        host_cores=_host(fleet, costs, partitions, has_engine=has_engine),
        partitions=partitions if has_engine else 0,
        partition_cores=busiest,
        engine_cores=engine,
        batch=batch,
        memory=waiting,
        memory_hour=waiting + 3600 * fleet.rate * entry,
        late_median=late / 2 + fleet.round_trip,
        late_most=late + fleet.round_trip,
        overrun=(late + fleet.round_trip)
        * fleet.rate
        / math.fsum((rank + 1) ** -fleet.exponent for rank in range(fleet.envelopes)),
    )


def wanted(fleet: Fleet) -> float:
    """POSTs a second if windows are as asked for; needs the numbers of partitions and workers, but for HOST folding.

    Raises:
        ValueError: they are not given.
    """
    workers, partitions = (fleet.hosts, 1) if fleet.folding == HOST else (fleet.workers, fleet.partitions)
    if workers is None or partitions is None:
        raise ValueError("how many workers and partitions?")
    return _wanted(fleet, groups(fleet.envelopes, fleet.exponent, fleet.kind), workers, partitions)


def _host(fleet: Fleet, costs: Costs, partitions: int, *, has_engine: bool) -> float:
    rate = fleet.rate / fleet.hosts
    return (rate * costs.encode_event + rate / fleet.batch(partitions) * costs.publish_batch * has_engine) / 1e6


# -- the engine --------------------------------------------------------------------------------------------------


def _engine(fleet: Fleet, costs: Costs, partitions: int) -> Tuple[float, float]:
    """Cores of the busiest partition, and of all."""
    batch = fleet.batch(partitions)
    kib = batch * bytes_per_event(fleet.metadata, batch) / 1024
    entries = fleet.rate / batch
    per_entry, per_kib = costs.engine_batch + costs.engine_read_batch, costs.engine_kib * kib
    # What a host publishes reaches every partition; to the busiest it is not more often than to the others, but larger.
    part = busiest_part(fleet.envelopes, fleet.exponent, partitions)
    busiest = entries * (per_entry / partitions + per_kib * part) / 1e6
    return busiest, entries * (per_entry + per_kib) / 1e6


def _busy(fleet: Fleet, costs: Costs, partitions: int) -> float:
    """Of a core, in the busiest partition: what the engine does, or the one worker that may fold it."""
    busy = _engine(fleet, costs, partitions)[0]
    if fleet.folding == OWNED:
        part = busiest_part(fleet.envelopes, fleet.exponent, partitions)
        busy = max(busy, fleet.rate * part * costs.fold_event / 1e6)
    return busy


def _partitions(fleet: Fleet, costs: Costs, classes: Sequence[Class]) -> Tuple[int, bool]:
    """As few as are enough and whether they are; when none are, those with which the busiest is the least busy."""
    if fleet.folding == HOST:
        return 1, True
    if fleet.partitions is not None:
        return fleet.partitions, _busy(fleet, costs, fleet.partitions) <= costs.busy
    choices = {2**power: _busy(fleet, costs, 2**power) for power in range(MOST_PARTITIONS.bit_length())}
    # So many that no fold is full before its window ends, as long as that does not take very many.
    roomy = distinct(classes, fleet.rate * fleet.window) / MOST_POSTS if fleet.folding == OWNED else 1.0
    for partitions, busy in choices.items():
        if busy <= costs.busy and (partitions >= roomy or partitions >= PARTITIONS_FOR_ROOM):
            return partitions, True
    least = min(choices.values())
    return next(partitions for partitions, busy in choices.items() if busy <= least * NEARLY), False


# -- the workers -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Folds:
    """What so many workers make of it."""

    posts: float
    window: float
    keeps_up: bool
    cores: float
    drain: float  # seconds from the end of a window until its last POST is sent


class _Workers:
    def __init__(self, fleet: Fleet, costs: Costs, classes: Sequence[Class], partitions: int) -> None:
        self._fleet = fleet
        self._costs = costs
        self._classes = classes
        self._partitions = partitions

    def enough(self) -> Tuple[int, _Folds]:
        """So many workers as are busy enough, or those that were asked for, and what they do."""
        fleet = self._fleet
        if fleet.folding == HOST:
            return fleet.hosts, self._folds(fleet.hosts)
        if fleet.workers is not None:
            return fleet.workers, self._folds(fleet.workers)
        workers = 1
        while True:
            folds = self._folds(workers)
            flying = folds.posts * fleet.round_trip / fleet.concurrency
            needed = max(folds.cores, flying) / self._costs.busy
            if needed <= workers or workers >= MOST_WORKERS:
                return workers, folds
            # Not straight to what is needed: more workers each have fewer groups, so their folds are full less often.
            workers = min(max(math.ceil(workers * 1.1), workers + 1), MOST_WORKERS)

    def _folds(self, workers: int) -> _Folds:
        fleet = self._fleet
        capacity = min(fleet.limit, workers * fleet.concurrency / fleet.round_trip)

        def posts(window: float) -> float:
            return self._folding(workers) * self._of_one(workers, window) / window

        full = _least(lambda seconds: self._of_one(workers, seconds) >= MOST_POSTS, 0.001)
        ceiling = min(full, LONGEST)
        window = min(fleet.window, ceiling)
        if posts(window) > capacity:
            # Nothing is folded while nothing can be sent: the windows get longer until what is left can be.
            window = min(_least(lambda seconds: posts(seconds) <= capacity, window), ceiling)
        rate = posts(window)
        part = min(rate / capacity, 1.0)  # of the window that the POSTs of the one before take
        return _Folds(rate, window, rate <= capacity * 1.000001, self._cores(rate), part * window)

    def _folding(self, workers: int) -> int:
        return _folding(self._fleet, workers, self._partitions)

    def _of_one(self, workers: int, seconds: float) -> float:
        return _groups_of_one(self._fleet, self._classes, self._folding(workers), seconds)

    def _cores(self, posts: float) -> float:
        costs, rate = self._costs, self._fleet.rate
        reading = rate / self._fleet.batch(self._partitions) * costs.read_batch
        folding = rate * costs.fold_event + posts * costs.fold_group
        return (reading + folding + posts * (costs.seal_post + costs.post)) / 1e6


def _least(enough: Callable[[float], bool], start: float) -> float:
    """The least number of seconds from `start` on with which it is enough, to a thousandth; infinite beyond a day."""
    low = high = start
    while not enough(high):
        if high > LONGEST:
            return math.inf
        low, high = high, high * 2
    while high - low > high / 1000:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _folding(fleet: Fleet, workers: int, partitions: int) -> int:
    """How many of the workers fold; where a partition has one reader, the others only POST."""
    return min(workers, partitions) if fleet.folding == OWNED else workers


def _groups_of_one(fleet: Fleet, classes: Sequence[Class], folding: int, seconds: float) -> float:
    """Groups that one of those who fold has after so many seconds."""
    if fleet.folding == OWNED:
        return distinct(classes, fleet.rate * seconds) / folding
    return distinct(classes, fleet.rate * seconds / folding)


def _wanted(fleet: Fleet, classes: Sequence[Class], workers: int, partitions: int) -> float:
    folding = _folding(fleet, workers, partitions)
    return folding * _groups_of_one(fleet, classes, folding, fleet.window) / fleet.window
