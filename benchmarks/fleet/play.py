"""A small fleet gone through event by event: each is drawn, published, folded, posted and booked.

It knows nothing of the closed forms of `plan`: it counts groups as a worker does. So the two can be held against each
other, and this one against a real run with the same parameters. A million events a second are too many for it.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import random
from typing import Dict, List, NamedTuple, Tuple
from zlib import crc32

from benchmarks.fleet.costs import MEASURED, Costs
from benchmarks.fleet.shape import HOST, MOST_EVENTS, MOST_POSTS, OWNED, Fleet
from benchmarks.fleet.traffic import Draw, bytes_per_event, name

_LATE = 0.1  # a worker's look is up to so much later than it would be if it had nothing else to do

Group = Tuple[int, int]  # envelope and value


class _Event(NamedTuple):
    at: float
    group: Group


class _Batch(NamedTuple):
    at: float
    partition: int
    events: List[_Event]
    read_at: float = 0.0


@dataclasses.dataclass(frozen=True)
class Played:
    """What happened.

    Attributes:
        events: recorded, and counted again in the POSTs.
        batches: published.
        posts: sent.
        seconds: from the first event until the last POST was answered.
        memory: the most bytes that were in the engine at a time.
        late_median, late_most: seconds from use to booking.
    """

    events: int
    batches: int
    posts: int
    seconds: float
    memory: float
    late_median: float
    late_most: float


def play(fleet: Fleet, seconds: float, costs: Costs = MEASURED, *, seed: int = 1, flushed: bool = True) -> Played:
    """Records for so many seconds, then waits until all is booked.

    Args:
        fleet: with a number of partitions and of workers; HOST has one worker a host.
        flushed: a flush at the end of the recording ends the last window; otherwise it is waited for.
    """
    partitions = fleet.partitions or 1
    workers = fleet.hosts if fleet.folding == HOST else fleet.workers or 1
    chance = random.Random(seed)
    queues: List[List[_Batch]] = [[] for _ in range(workers)]
    readers = _Readers(fleet, workers, seconds, chance)
    for host in range(fleet.hosts):
        for batch in _batches(_events(fleet, seconds, chance), fleet, partitions, seconds):
            reader, read_at = readers.of(host, batch)
            queues[reader].append(batch._replace(read_at=read_at))
    end = seconds if flushed else math.inf
    found = [
        _Worker(fleet, costs, workers, end).run(sorted(queue, key=lambda one: (one.read_at, one.at)))
        for queue in queues
    ]
    waits = sorted(wait for worker in found for wait in worker.waits)
    batches = [batch for queue in queues for batch in queue]
    return Played(
        events=len(waits),
        batches=len(batches),
        posts=sum(worker.posts for worker in found),
        seconds=max((worker.end for worker in found), default=0.0),
        memory=_most_memory(fleet, costs, [stay for worker in found for stay in worker.stays]),
        late_median=waits[len(waits) // 2],
        late_most=waits[-1],
    )


def _events(fleet: Fleet, seconds: float, chance: random.Random) -> List[_Event]:
    """Of one host, at random moments."""
    envelopes, values = Draw(fleet.envelopes, fleet.exponent), Draw(fleet.metadata.values, fleet.metadata.exponent)
    events: List[_Event] = []
    at, rate = 0.0, fleet.rate / fleet.hosts
    while True:
        at += chance.expovariate(rate)
        if at >= seconds:
            return events
        events.append(_Event(at, (envelopes.rank(chance.random()), values.rank(chance.random()))))


def _batches(events: List[_Event], fleet: Fleet, partitions: int, end: float) -> List[_Batch]:
    """As a host publishes: so many, or so long after the first, split by partition."""
    batches: List[_Batch] = []
    taken: List[_Event] = []

    def publish(at: float) -> None:
        parts: Dict[int, List[_Event]] = {}
        for event in taken:
            partition = crc32(name(event.group[0]).encode()) % partitions if partitions > 1 else 0
            parts.setdefault(partition, []).append(event)
        for partition, part in parts.items():
            for start in range(0, len(part), MOST_EVENTS):
                batches.append(_Batch(at, partition, part[start : start + MOST_EVENTS]))
        taken.clear()

    for event in events:
        if taken and event.at >= taken[0].at + fleet.flush_interval:
            publish(taken[0].at + fleet.flush_interval)
        taken.append(event)
        if len(taken) >= fleet.flush_at:
            publish(event.at)
    if taken:
        publish(min(taken[0].at + fleet.flush_interval, end))
    return batches


class _Readers:
    """Who reads a batch, and when: the host itself at once, or the first worker to look of those that may."""

    def __init__(self, fleet: Fleet, workers: int, seconds: float, chance: random.Random) -> None:
        self._folding, self._workers = fleet.folding, workers
        looks: List[List[Tuple[float, int]]] = [[] for _ in range(workers)]
        for worker in range(workers):
            at = chance.random() * fleet.look_every
            while at < seconds + 3 * fleet.look_every:
                looks[worker].append((at, worker))
                # Its own work comes in between, so no two stay in step.
                at += fleet.look_every * (1 + _LATE * chance.random())
        self._looks = looks if fleet.folding == OWNED else [sorted(look for one in looks for look in one)]

    def of(self, host: int, batch: _Batch) -> Tuple[int, float]:
        if self._folding == HOST:
            return host % self._workers, batch.at
        looks = self._looks[batch.partition % len(self._looks)]
        at, worker = looks[bisect.bisect(looks, (batch.at, -1))]
        return worker, at


class _Worker:
    """Reads, folds until the window ends or the fold is full, posts, and begins again.

    Attributes:
        waits: of every event, from use to booking.
        stays: (from, to, events) of every batch in the engine.
    """

    def __init__(self, fleet: Fleet, costs: Costs, workers: int, end: float) -> None:
        self._fleet = fleet
        self._costs = costs
        self._end = end  # no window is longer, because nothing is recorded after it
        # POSTs a second: by what is in flight, by this one's part of the limit, and by its CPU.
        self._rate = min(
            fleet.concurrency / max(fleet.round_trip, 1e-9), fleet.limit / workers, 1e6 / (costs.post + costs.seal_post)
        )
        self.waits: List[float] = []
        self.stays: List[Tuple[float, float, int]] = []
        self.posts = 0
        self.end = 0.0
        self._sent = 0.0  # when the last POST so far leaves

    def run(self, batches: List[_Batch]) -> _Worker:
        """Everything there is, oldest first."""
        start, now = 0, 0.0
        while start < len(batches):
            due = min(batches[start].at + self._fleet.window, max(self._end, batches[-1].read_at))
            # Nothing is sealed while the POSTs of the window before are still to be sent.
            due = max(due, self._sent)
            groups: Dict[Group, List[float]] = {}
            now, last = max(now, batches[start].read_at), start
            due = max(due, now)
            while last < len(batches) and len(groups) < MOST_POSTS and max(now, batches[last].read_at) <= due:
                now = max(now, batches[last].read_at) + self._read(batches[last], groups)
                last += 1
                due = max(due, now)
            sealed = max(now, self._sent) if len(groups) >= MOST_POSTS else max(due, now)
            self._post(groups, sealed)
            self.stays += [(batch.at, sealed, len(batch.events)) for batch in batches[start:last]]
            start, now = last, sealed
        return self

    def _read(self, batch: _Batch, groups: Dict[Group, List[float]]) -> float:
        """Seconds that it took."""
        before = len(groups)
        for event in batch.events:
            groups.setdefault(event.group, []).append(event.at)
        fresh = len(groups) - before
        costs = self._costs
        return (costs.read_batch + len(batch.events) * costs.fold_event + fresh * costs.fold_group) / 1e6

    def _post(self, groups: Dict[Group, List[float]], sealed: float) -> None:
        for number, moments in enumerate(groups.values(), 1):
            answered = sealed + number / self._rate + self._fleet.round_trip
            self.waits += [answered - at for at in moments]
            self.end = max(self.end, answered)
        self.posts += len(groups)
        self._sent = sealed + len(groups) / self._rate


def _most_memory(fleet: Fleet, costs: Costs, stays: List[Tuple[float, float, int]]) -> float:
    if fleet.folding == HOST:
        return 0.0
    changes: List[Tuple[float, float]] = []
    for begin, end, events in stays:
        size = events * bytes_per_event(fleet.metadata, events) + costs.entry_bytes
        changes += [(begin, size), (end, -size)]
    most = now = 0.0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
