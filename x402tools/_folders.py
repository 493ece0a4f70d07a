"""The folders of a store: one for each part of it that is folded apart, and one where it has no parts.

To the flusher they are one. One of them seals in a turn, and each in turn: sealing waits for what can be sent, and what
is sealed is to be sent before more is. While a part fails, the others are worked on.
"""

from __future__ import annotations

from typing import List, Optional

from x402tools._folder import Folder
from x402tools.errors import SpoolError


class Folders:
    """As `Folder`, for several.

    Args:
        folders: at least one.
    """

    def __init__(self, folders: List[Folder]) -> None:
        self._folders = folders
        self._next = 0  # whose turn it is to be the first

    def hurry(self) -> None:
        """See `Folder`; as are all of these."""
        for folder in self._folders:
            folder.hurry()

    @property
    def is_hurried(self) -> bool:
        return any(folder.is_hurried for folder in self._folders)

    @property
    def is_idle(self) -> bool:
        return all(folder.is_idle for folder in self._folders)

    def reset(self) -> None:
        for folder in self._folders:
            folder.reset()

    def look_now(self) -> None:
        for folder in self._folders:
            folder.look_now()

    def turn(self, may_seal: bool) -> bool:
        """One step of each; whether something was sealed.

        Raises:
            SpoolError: of the last one that failed, when all have had their turn.
        """
        failed: Optional[SpoolError] = None
        count, first, sealed = len(self._folders), self._next, False
        for step in range(count):
            at = (first + step) % count
            try:
                if self._folders[at].turn(may_seal and not sealed):
                    sealed, self._next = True, (at + 1) % count
            except SpoolError as error:
                failed = error
        if failed is not None and not sealed:
            raise failed
        return sealed

    def next_turn(self, may_seal: bool) -> float:
        return min(folder.next_turn(may_seal) for folder in self._folders)
