"""What every store on a server does alike, in one partition or in several; and what it does not do, or need not."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from x402tools._batch import Post
from x402tools._redis_fleet import RedisFleet
from x402tools._redis_link import Link
from x402tools._store import Allowance, HeldPost, Place
from x402tools.errors import SpoolError


class OnServer:
    """The part of `Store` that is the same for all, or needs a file. Attributes: `path`, where the store is."""

    is_shared = True
    path: str
    _link: Link
    _fleet: RedisFleet

    def release(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.release()
        self._link.close()

    def allowance(self, most: int) -> Allowance:
        return self._fleet.allowance(most)

    def shut(self, reason: str, seconds: float) -> None:
        self._fleet.shut(reason, seconds)

    def reopen(self) -> None:
        self._fleet.reopen()

    def give_up_at(self, moment: Optional[float]) -> None:
        self._link.give_up_at(moment)

    def go_on(self, seconds: float) -> None:
        """See `Reserve.go_on`."""
        self._link.go_on(seconds)

    def is_in_use_here(self) -> bool:
        return self._link.is_in_use_here()

    # -- what needs a file -----------------------------------------------------------------------------------------

    def held(self, after: int, limit: int) -> List[HeldPost]:  # noqa: ARG002 - nothing is held, see `note_sending`
        return []

    def has_held(self) -> bool:
        return False

    def note_sending(self, begun: Sequence[Place], ended: Sequence[Place] = ()) -> List[Place]:  # noqa: ARG002 - refused
        raise SpoolError(f"{self.path}: nothing is noted on a server; it needs a spool file")

    def resolve(self, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:  # noqa: ARG002 - see `held`
        return [], []

    def places_of(self, batch_ids: Sequence[str]) -> Dict[str, int]:  # noqa: ARG002 - nothing is handed out from memory
        return {}

    def adopt(self, sequence: int, posts: List[Post]) -> None:  # noqa: ARG002 - never called, see above
        raise AssertionError("nothing is handed out from memory before a store that is shared")

    def sync(self) -> None:
        """The server syncs by itself, as it is set up: see `appendfsync`."""

    def sweep(self) -> bool:
        return False  # sealing leaves nothing behind

    def make_room(self) -> None:
        """The server frees what is deleted by itself."""

    def tidy(self) -> None:
        """Nothing is left behind."""
