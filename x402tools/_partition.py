"""Which partition of a store an event belongs to. Pure.

All events of an envelope are of one partition, so that one worker folds them.
"""

from __future__ import annotations

import zlib
from typing import List, Sequence

from x402tools._batch import MOST_EVENTS
from x402tools._event import Event


def partition_of(envelope_id: str, partitions: int) -> int:
    """The number of the partition, from 0. It must never change: what is stored of an envelope lies there."""
    return zlib.crc32(envelope_id.encode("utf-8", "surrogatepass")) % partitions


def split(events: Sequence[Event], partitions: int) -> List[List[Event]]:
    """The events by partition, in the order in which they were recorded, none longer than a batch may be."""
    parts: List[List[Event]] = [[] for _ in range(partitions)]
    crc32 = zlib.crc32
    for event in events:
        parts[crc32(event[1].encode("utf-8", "surrogatepass")) % partitions].append(event)
    return [part[at : at + MOST_EVENTS] for part in parts for at in range(0, len(part), MOST_EVENTS)]
