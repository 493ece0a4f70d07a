"""The chain of steps of a journal, and who may write to its file; see `_journal`, which alone changes them."""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional, Sequence

from x402tools._event import Event
from x402tools._journal_file import Segment

WORKS, FAILS, CLOSED = "works", "fails", "closed"

STUCK_AFTER = 1.0  # seconds; a write takes some microseconds


class Step:
    """What one write added, or a change of the state.

    Args:
        last: the place of the last event up to here.
        segment, end: where the next write goes: behind so many bytes of it.
        is_noted: whether the file has these events; None where a write that was overtaken may still put them there.
    """

    following: Optional[Step] = None  # set by `follow` alone

    def __init__(
        self,
        state: str,
        events: Sequence[Event],
        last: int,
        segment: Optional[Segment],
        end: int,
        is_noted: Optional[bool] = True,
    ) -> None:
        self.state = state
        self.events = events
        self.last = last
        self.segment = segment
        self.end = end
        self.is_noted = is_noted
        self.is_left_out = False  # its events are not among those that are in no step any more

    def but(self, state: str, is_noted: Optional[bool]) -> Step:
        """One that changes the state only."""
        return Step(state, (), self.last, self.segment, self.end, is_noted)

    def follow(self, step: Step) -> bool:
        """Makes it the next one of this; False when there is one already. Atomic: one operation of a dict."""
        return self.__dict__.setdefault("following", step) is step


class Pen:
    """What the thread holds that writes. Another one takes its place when a write does not return."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.waits_since: Optional[float] = None  # moment of time.monotonic(): for the disk

    def is_mine(self) -> bool:
        """Whether the calling thread is in the middle of writing."""
        return bool(self.lock._is_owned())  # type: ignore[attr-defined]  # as FairLock does

    def is_stuck(self) -> bool:
        since = self.waits_since
        return since is not None and time.monotonic() >= since + STUCK_AFTER


class Waiting:
    """How many events wait here: all that is asked of the `events` of an intake by others."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count()
