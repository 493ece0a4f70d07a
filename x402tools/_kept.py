"""A batch that is in memory behind the spool, and what becomes of it; see `_reserve`, which alone changes it."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._store import Tally


class Kept:
    """A batch in memory."""

    def __init__(self, batch: EncodedBatch) -> None:
        self.batch = batch
        self.posts: Optional[List[Post]] = None  # once handed out
        self.settled = 0  # a bit for each POST that is not pending any more
        self.sending: Dict[int, float] = {}  # positions that were noted as being sent, and since when

    @property
    def left(self) -> List[int]:
        """The positions of the POSTs that are pending, of a batch that was handed out."""
        return [at for at in range(len(self.posts or ())) if not self.settled >> at & 1]

    def pending(self) -> Tally:
        if self.posts is None:
            return Tally(self.batch.events, self.batch.units)
        return sum_of([self.posts[at] for at in self.left])

    def pending_posts(self) -> List[Post]:
        if self.posts is None:
            return _batch.decode(self.batch.value)
        return [self.posts[at] for at in self.left]

    def to_store(self) -> EncodedBatch:
        if self.posts is None:
            return self.batch
        if not self.settled:
            return self.batch._replace(is_sealed=True)  # its POSTs may have been sent, under their keys
        return _batch.encode_posts(self.batch.id, [self.posts[at] for at in self.left])

    def notes(self) -> List[Tuple[str, int, float]]:
        """What `to_store` has to go with it; see `Deposit`."""
        if not self.sending:
            return []
        new = {at: position for position, at in enumerate(self.left)}
        return [(self.batch.id, new[at], since) for at, since in self.sending.items() if at in new]


class Moved(NamedTuple):
    """Where a batch went that was handed out from memory and then stored."""

    sequence: int
    positions: Dict[int, int]


def sum_of(posts: Sequence[Post]) -> Tally:
    return Tally(sum(post.events for post in posts), sum(post.amount for post in posts))
