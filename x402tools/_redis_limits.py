"""What a store on a server does not do, or need not."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

from x402tools._batch import Post
from x402tools._store import HeldPost, Place
from x402tools.errors import SpoolError


class OnServer:
    """The part of `Store` that needs a file. Attributes: `path`, where the store is."""

    is_shared = True
    path: str

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
