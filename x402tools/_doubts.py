"""What becomes of a POST that may have been booked although its answer never came.

By default it is sent again under its key, which costs nothing until it happens and is right where the service honours
keys. Where it may not, or not for ever, `hold_after` says for how many seconds after the first attempt of unknown
outcome it may be sent again; then it is held, and only `reconcile` moves it. With 0 it is never sent again.

A process may die while it sends, so with `hold_after` each POST is noted in the store before it goes out:

1. A note is committed before the first byte of the POST is sent. A POST that could not be noted is not sent.
2. It is taken back when an attempt certainly booked nothing and none before it may have; it goes with the POST when
   that is settled. Both may be late, never early.
3. So what was under way at the moment of a crash has a note. What has one may not have been sent at all: notes are
   written for a group at a time, because each costs a commit. It is at most one group of `group` POSTs in addition.

A note is safe from a power cut: it is synced with its commit.

Used by the flusher's thread alone.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Callable, Dict, Iterable, List, Mapping, Optional

from x402tools._batch import Post
from x402tools._store import Place, Store


class Delivery:
    """A sealed POST in the hands of the flusher."""

    __slots__ = (
        "attempts",
        "delivered_then",
        "is_noted",
        "last_was_unknown",
        "place",
        "post",
        "sent_at",
        "strikes",
        "unknown_since",
    )

    def __init__(self, place: Place, post: Post) -> None:
        self.place = place
        self.post = post
        self.attempts = 0
        self.strikes = 0
        self.delivered_then = -1  # how many POSTs had been delivered when this one last failed
        self.sent_at = 0.0  # the last time, by the flusher's clock
        self.unknown_since: Optional[float] = None  # when the first attempt of unknown outcome was made
        self.last_was_unknown = False
        self.is_noted = False


class Doubts:
    """Notes what is sent, and says what is to be held.

    Args:
        store: where the notes go.
        hold_after: seconds; None never holds, and notes nothing.
        group: how many are noted with one commit.
        clock: the flusher's.
    """

    def __init__(self, store: Store, hold_after: Optional[float], group: int, clock: Callable[[], float]) -> None:
        self._store = store
        self._hold_after = hold_after
        self._group = group
        self._clock = clock
        self._booked_nothing: Dict[Place, Delivery] = {}  # their notes are to be taken back

    def recall(self, delivery: Delivery, sent: Mapping[int, float]) -> None:
        """Of a POST from the store: whether it was noted before, so that it may have been sent; see `SealedBatch`."""
        since = sent.get(delivery.place.position) if self._hold_after is not None else None
        if since is not None:
            delivery.is_noted = True
            delivery.unknown_since = self._clock() - max(time.time() - since, 0.0)

    def must_be_held(self, delivery: Delivery) -> bool:
        """Whether it may not be sent any more."""
        if self._hold_after is None or delivery.unknown_since is None:
            return False
        return self._clock() - delivery.unknown_since >= self._hold_after

    def may_send(self, delivery: Delivery, coming: Iterable[Delivery]) -> bool:
        """Has a POST noted, unless it is, and some of those that come after it; False when that failed.

        Raises:
            SpoolError: it failed, and so will the next ones.
        """
        if self._hold_after is None:
            return True
        self._booked_nothing.pop(delivery.place, None)
        if delivery.is_noted:
            return True
        group = [delivery, *islice((one for one in coming if not one.is_noted), self._group - 1)]
        noted = set(self._store.note_sending([one.place for one in group], list(self._booked_nothing)))
        self._forget_notes()
        for one in group:
            one.is_noted = one.place in noted
        return delivery.is_noted

    def failed(self, delivery: Delivery, *, unknown: bool) -> bool:
        """Remembers how an attempt ended; True when there is a note for `take_back` to take back."""
        delivery.last_was_unknown = unknown
        if unknown and delivery.unknown_since is None:
            delivery.unknown_since = delivery.sent_at
        if not delivery.is_noted or delivery.unknown_since is not None:
            return False
        self._booked_nothing[delivery.place] = delivery
        return True

    def take_back(self) -> None:
        """Takes back the notes about what certainly was not booked.

        Raises:
            SpoolError: it failed; a crash now would have them held.
        """
        if self._booked_nothing:
            self._store.note_sending([], list(self._booked_nothing))
            self._forget_notes()

    def withdraw(self, unsent: Iterable[Delivery]) -> None:
        """Takes back the notes about what will not be sent by this process any more; see `take_back`."""
        if self._hold_after is not None:
            waiting: List[Delivery] = [one for one in unsent if one.is_noted and one.unknown_since is None]
            self._booked_nothing.update((one.place, one) for one in waiting)
            self.take_back()

    def _forget_notes(self) -> None:
        for delivery in self._booked_nothing.values():
            delivery.is_noted = False
        self._booked_nothing.clear()
