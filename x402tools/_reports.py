"""Tells people what happens: one log line for a change of state, never one for an event, and the user's callbacks."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from typing import Callable, List, Optional, Sequence

from x402tools._batch import Post
from x402tools._callbacks import Callbacks
from x402tools._flusher import Observer
from x402tools._settings import UserCallbacks
from x402tools._store import Burial, Holding
from x402tools._timings import Stopwatch
from x402tools.errors import SpoolError
from x402tools.models import Usage

log = logging.getLogger("x402tools")

# At the most one line in so many seconds about losses and dead letters, with the number since the last one.
_LINE_EVERY = 10.0


class Reports(Observer):
    """Where the parts of a buffer report to.

    Args:
        user: the callbacks.
        name: the spool, for the log.
        on_settled: is called after POSTs were settled.
        stopwatch: is told how long attempts take.
        on_delivered: is called with those that were delivered.
    """

    def __init__(
        self,
        user: UserCallbacks,
        name: str,
        on_settled: Callable[[], None],
        stopwatch: Stopwatch,
        on_delivered: Callable[[List[Post]], None] = lambda _: None,
    ) -> None:
        self.calls = Callbacks(any(callback is not None for callback in user))
        self.last_error: Optional[str] = None
        self._user = user
        self._name = name
        self._on_settled = on_settled
        self._on_delivered = on_delivered
        self.attempted = stopwatch.add  # type: ignore[method-assign]  # once a POST, so without a call in between
        self._dead = _Line("%d POSTs became dead letters; the last because: %s; see UsageBuffer.dead_letters()")
        self._unknown = _Line(
            "%d POSTs have an unknown outcome and are held until UsageBuffer.reconcile(), neither lost nor sent again; "
            "the last because: %s"
        )
        self._lost = _Line("%d events were dropped: %s")

    def settled(self, delivered: List[Post], buried: List[Burial]) -> None:
        self._on_delivered(delivered)
        if self._user.on_delivery is not None:
            for post in delivered:
                self.calls.call(self._user.on_delivery, usage_of(post))
        for burial in buried:
            self._dead.count(burial.reason)
            callback = self._user.on_dead_letter
            if callback is not None:
                self.calls.call(lambda both, call=callback: call(*both), (usage_of(burial.post), burial.reason))
        self._on_settled()

    def held(self, held: List[Holding]) -> None:
        self._unknown.count(held[-1].reason, len(held))

    def gate_changed(self, reason: Optional[str]) -> None:
        if reason is None:
            log.info("deliveries from %s go on", self._name)
            return
        self._problem(f"deliveries from {self._name} wait, everything is kept: {reason}")

    def store_failed(self, error: Optional[SpoolError]) -> None:
        if error is None:
            log.info("the spool %s works again", self._name)
            return
        self._problem(f"the spool fails, events are kept in memory as long as there is room: {error}")

    def mended(self, notice: str) -> None:
        """The spool was damaged or gone, and is usable again; or a journal is not, and the spool does its work."""
        self._problem(notice)

    def dropped(self, usage: Usage, why: str) -> None:
        """An event was lost."""
        self._lost.count(why)
        self.calls.call(self._user.on_drop, usage)

    def given_up(self, posts: Sequence[Post], why: str) -> None:
        """What the end of the buffer could not store is lost: one line for all of it, because no later one comes."""
        if posts:
            self._lost.say_now(why, len(posts))
        for post in posts:
            self.calls.call(self._user.on_drop, usage_of(post))

    def _problem(self, message: str) -> None:
        self.last_error = message
        log.error("%s", message)
        self.calls.call(self._user.on_error, message)


def usage_of(post: Post) -> Usage:
    """A POST as the caller's own kind of record; `pending` is False, because it is settled."""
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    moment = datetime.fromtimestamp(post.recorded_at, timezone.utc)
    return Usage(post.key, post.envelope_id, post.amount, moment, metadata)


class _Line:
    """A log line that comes at once and then only now and then, with a count."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._count = 0
        self._next = 0.0

    def say_now(self, why: str, number: int) -> None:
        self._next = 0.0
        self.count(why, number)

    def count(self, why: str, number: int = 1) -> None:
        self._count += number
        if time.monotonic() >= self._next:
            count, self._count, self._next = self._count, 0, time.monotonic() + _LINE_EVERY
            log.error(self._text, count, why)  # last, because a log handler may record usage and come back here
