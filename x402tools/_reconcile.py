"""Finds out what became of POSTs whose outcome is unknown, by what the service says it has, and moves them on.

What is held was sent once, or may have been. Found in `get_usage` by its key it is delivered; not found there, a while
after it was held, it never arrived and is sent again. Knows neither HTTP nor SQLite.

Each envelope's list is read once, as a stream: memory holds no more than what is held. What was found out for one
envelope is written down before the next is asked for, so a failure in between costs nothing but another call.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence

from x402tools._batch import Post, has_key
from x402tools._store import HeldPost, Store
from x402tools.errors import NotFoundError
from x402tools.models import Usage

ReadUsage = Callable[[str], Iterable[Usage]]
Run = Callable[[Callable[[], Any]], Any]  # does work on the store, see `_desk`

_PAGE = 500  # POSTs read, and moved, at a time


class Reconciliation(NamedTuple):
    """What `reconcile` did, in events.

    Attributes:
        settled: the service has them: delivered.
        resent: the service has them not: they are sent again, under their old keys.
        left: held at the end: too young to be judged, without their key in the metadata, found with another amount, or
            held since this began.
    """

    settled: int
    resent: int
    left: int


class _Held(NamedTuple):
    """What has to be known of a held POST while its envelope's list is read."""

    id: int
    amount: int
    is_old: bool


class Reconciler:
    """One run over everything that is held.

    Args:
        store, run: where it is held; `run` does what is given to it on the store.
        min_age: seconds; a POST that has been held for less is not sent again: it may still be on its way.
        on_settled: is told of POSTs that turned out to be delivered.
    """

    def __init__(self, store: Store, run: Run, min_age: float, on_settled: Callable[[List[Post]], None]) -> None:
        self._store = store
        self._run = run
        self._min_age = min_age
        self._on_settled = on_settled
        self._settled = self._resent = 0

    def compare(self, read_usage: ReadUsage, key_field: str) -> Reconciliation:
        """Settles or resends each by what `read_usage` yields for its envelope.

        Raises:
            X402Error: usage could not be read, or the store fails; what was moved before stays moved.
        """
        envelopes: Dict[str, Dict[str, _Held]] = {}
        for held in self._all():
            post = held.post
            keys = envelopes.setdefault(post.envelope_id, {})
            if has_key(post, key_field):
                keys.setdefault(post.key, _Held(held.id, post.amount, self._is_old(held)))
        for envelope_id, keys in envelopes.items():
            if keys:
                self._compare_one(keys, read_usage(envelope_id), key_field)
        return self._result()

    def resend_all(self) -> Reconciliation:
        """Takes it that the service has none of them."""
        for some in _chunks(list(self._light())):
            self._move([], [one.id for one in some if one.is_old])
        return self._result()

    def settle_all(self) -> Reconciliation:
        """Takes it that the service has all of them."""
        for some in _chunks(list(self._light())):
            self._move([one.id for one in some], [])
        return self._result()

    def _compare_one(self, keys: Dict[str, _Held], usage: Iterable[Usage], key_field: str) -> None:
        found: List[_Held] = []
        try:
            for record in usage:
                key = (record.metadata or {}).get(key_field)
                if not isinstance(key, str) or key not in keys:
                    continue
                held = keys.pop(key)
                if record.amount == held.amount:
                    found.append(held)
        except NotFoundError:
            pass  # no envelope, no usage of it; when it is sent again it becomes a dead letter that says so
        absent = [held for held in keys.values() if held.is_old]
        for some in _chunks(found):
            self._move([held.id for held in some], [])
        for some in _chunks(absent):
            self._move([], [held.id for held in some])

    def _move(self, booked: List[int], absent: List[int]) -> None:
        settled, resent = self._run(lambda: self._store.resolve(booked, absent))
        self._settled += sum(post.events for post in settled)
        self._resent += sum(post.events for post in resent)
        if settled:
            self._on_settled(settled)

    def _all(self) -> Iterator[HeldPost]:
        after = 0
        while True:
            some: List[HeldPost] = self._run(partial(self._store.held, after, _PAGE))
            if not some:
                return
            yield from some
            after = some[-1].id

    def _light(self) -> Iterator[_Held]:
        for held in self._all():
            yield _Held(held.id, held.post.amount, self._is_old(held))

    def _is_old(self, held: HeldPost) -> bool:
        return time.time() - held.held_at >= self._min_age

    def _result(self) -> Reconciliation:
        left = self._run(self._store.counts).held.events
        return Reconciliation(self._settled, self._resent, left)


def _chunks(held: Sequence[_Held]) -> Iterator[Sequence[_Held]]:
    for start in range(0, len(held), _PAGE):
        yield held[start : start + _PAGE]
