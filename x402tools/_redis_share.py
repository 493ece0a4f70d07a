"""Which partitions this worker folds: about as many as each of the others.

A partition is folded by whoever holds its key `folder` (`_redis_store`). Each worker says now and then that it is there
and learns how many there are. It takes no more than its share of partitions, and lets one go of which it has nothing in
hand when it has more: a moment after it has sealed, so that nothing is read twice.

That two think for a moment that their shares are larger than they are costs nothing: the key decides.
"""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from x402tools import _redis_scripts
from x402tools._redis_link import Link
from x402tools.errors import SpoolError

_ASK_EVERY = 1.0  # seconds, or a quarter of a lease
_MISSED = 5  # signs of life that somebody has not given who does not count any more


class Foldable(Protocol):
    """A partition, as this process sees it."""

    @property
    def folds(self) -> bool:
        """Whether this process is the one that folds it."""

    @property
    def is_folding(self) -> bool:
        """Whether this process has some of it in hand."""

    def fold_elsewhere(self) -> None:
        """Lets another process fold it."""


class FoldShare:
    """This worker among the others.

    Args:
        link: to where the namespace's own keys are.
        namespace: of the store.
        name: this worker's.
        partitions: all of them.
        lease: seconds.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        link: Link,
        namespace: str,
        name: str,
        partitions: Sequence[Foldable],
        lease: float,
        clock: Callable[[], float],
    ) -> None:
        self._link = link
        self._keys = [f"{{x402:{namespace}}}:workers"]
        self._name = name
        self._partitions = partitions
        self._every = min(_ASK_EVERY, lease / 4)
        self._clock = clock
        self._ask_at = 0.0
        self._share = 0

    def may_fold(self, partition: Foldable) -> bool:
        """Whether this worker may fold this one, or try to; lets it go when it is one too many.

        Raises:
            SpoolError: it could not be let go.
        """
        if self._clock() >= self._ask_at:
            self._count_workers()
        count = sum(one.folds for one in self._partitions)
        if not partition.folds:
            return count < self._share
        if count > self._share and not partition.is_folding:
            partition.fold_elsewhere()
            return False
        return True

    def _count_workers(self) -> None:
        began = self._clock()
        words = [self._name, int(self._every * _MISSED * 1000)]
        try:
            workers = int(self._link.run(_redis_scripts.WORKERS, self._keys, words))
            self._share = share_of(len(self._partitions), workers)
            self._ask_at = self._clock() + self._every
        except SpoolError:  # it stays what it was; each time-out is waited for
            self._ask_at = self._clock() + max(self._every, 10 * (self._clock() - began))

    def leave(self) -> None:
        """This worker ends.

        Raises:
            SpoolError: nobody was told; it is noticed all the same.
        """
        self._link.run(_redis_scripts.NO_WORKER, self._keys, [self._name])


def share_of(partitions: int, workers: int) -> int:
    """How many each of so many workers folds at the most: all of them together no fewer than there are."""
    return -(-partitions // max(workers, 1))
