"""Who uses what: envelopes by Zipf's law, the kinds of metadata, and how many groups a number of events has.

How many POSTs folding leaves is about groups (an envelope with one metadata), not about events: a group costs one POST
a window however often it was used, and one that was not used in the window costs none.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import zlib
from typing import Dict, List, NamedTuple, Sequence, Tuple

# Ranks up to here are taken one by one, those after it in steps of a fiftieth of themselves, and groups that differ by
# no more than that are taken together: the sums differ by less than a thousandth from the exact ones.
_EXACT = 100
_STEP = 0.02

Class = Tuple[float, float]  # so many groups, and for each of them the part of the events that are of it


class Kind(NamedTuple):
    """Metadata of the events.

    Attributes:
        title: for people.
        values: how many different ones an envelope has.
        exponent: of Zipf's law among them; 0 is all equally often.
        sizes: bytes in the engine of an event, by the number of events that were compressed together (measured).
    """

    title: str
    values: int
    exponent: float
    sizes: Dict[int, float]


# The sizes were measured with `_batch.encode` on events of this model; see `costs`.
KINDS = {
    "none": Kind("no metadata", 1, 0.0, {1: 73, 5: 28, 20: 16.6, 62: 5.5, 125: 4.9, 500: 4.9}),
    "endpoint": Kind("endpoint (20)", 20, 1.0, {1: 99, 5: 47, 20: 11.5, 62: 7.8, 125: 7.1, 500: 6.8}),
    "user": Kind("endpoint and user (100,000)", 100_000, 1.0, {1: 120, 5: 58, 20: 15.0, 62: 10.9, 125: 10.2, 500: 9.5}),
    # More values than any fleet has events: none ever comes twice.
    "request": Kind("request id (all differ)", 10**15, 0.0, {1: 147, 5: 83, 20: 31.6, 62: 28.0, 125: 27.6, 500: 26.4}),
}


def bytes_per_event(kind: Kind, together: float) -> float:
    """In the engine, of events of which so many stand in one batch: fewer together compress worse."""
    sizes = sorted(kind.sizes.items())
    if together <= sizes[0][0]:
        return sizes[0][1]
    for (few, more_bytes), (many, less_bytes) in zip(sizes, sizes[1:]):
        if together <= many:
            part = math.log(together / few) / math.log(many / few)
            return more_bytes + (less_bytes - more_bytes) * part
    return sizes[-1][1]


def zipf(count: int, exponent: float) -> List[Class]:
    """Classes of about equal members: the first hundred one by one, then in growing steps."""
    if exponent == 0:
        return [(float(count), 1.0 / count)]
    classes: List[Class] = []
    rank = 1
    while rank <= count:
        step = 1 if rank <= _EXACT else max(int(rank * _STEP), 1)
        last = min(rank + step - 1, count)
        weight = math.fsum(one**-exponent for one in range(rank, last + 1))
        classes.append((float(last - rank + 1), weight))
        rank = last + 1
    total = math.fsum(weight for _, weight in classes)
    return [(members, weight / total / members) for members, weight in classes]


@functools.lru_cache(maxsize=32)
def groups(envelopes: int, exponent: float, kind: str) -> List[Class]:
    """The groups of all envelopes, with a kind of metadata of this name."""
    values = zipf(KINDS[kind].values, KINDS[kind].exponent)
    alike: Dict[int, List[float]] = {}
    for (members, part), (many, share) in itertools.product(zipf(envelopes, exponent), values):
        found = alike.setdefault(round(math.log(part * share) / _STEP), [0.0, 0.0])
        found[0] += members * many
        found[1] += members * many * part * share
    return [(members, weight / members) for members, weight in alike.values()]


def distinct(classes: Sequence[Class], events: float) -> float:
    """How many groups so many events are expected to be of, when they come independently of each other."""
    return math.fsum(-members * math.expm1(-events * part) for members, part in classes)


@functools.lru_cache(maxsize=64)
def busiest_part(envelopes: int, exponent: float, partitions: int) -> float:
    """The part of the events that the busiest partition gets, by the CRC32 of the envelope's name."""
    if partitions == 1:
        return 1.0
    weights = [0.0] * partitions
    for rank in range(envelopes):
        weights[zlib.crc32(name(rank).encode()) % partitions] += (rank + 1) ** -exponent
    return max(weights) / math.fsum(weights)


def name(rank: int) -> str:
    """Of the envelope of this rank, from 0."""
    return f"env_{rank:05d}"


class Draw:
    """Draws envelopes or values one by one, for the fleet that is played event by event."""

    def __init__(self, count: int, exponent: float) -> None:
        self._count = count
        self._sums = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(count))) if exponent else []

    def rank(self, chance: float) -> int:
        """From a random number of 0 to 1."""
        if not self._sums:
            return int(chance * self._count)
        return bisect.bisect(self._sums, chance * self._sums[-1])
