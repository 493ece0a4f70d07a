"""Clients with a pace and a gate before one service that is made up, event by event; the time of it is made up too."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any, Callable, Dict, Iterator, List, Tuple

from x402tools._gate import Gate
from x402tools._pace import Pace
from x402tools._verdict import Move, Verdict

REFUSED = Verdict(Move.TRY_AGAIN, "too many", 429, crowded=True)
AWAY = Verdict(Move.TRY_AGAIN, "no connection")


class Client:
    """Has always something to send. What failed is sent again after some time; others go before it."""

    def __init__(self, most: int, chance: random.Random) -> None:
        self.pace = Pace(most, chance.random)
        self.gate = Gate(chance.random)
        self.busy = 0

    def note(self, verdict: object, now: float, sent_at: float, post: int) -> None:
        """As the flusher does it."""
        self.busy -= 1
        if verdict is None:
            self.gate.answered(now)
            if not self.gate.trying_out:
                self.pace.answered(now, sent_at, now - sent_at)
            return
        assert isinstance(verdict, Verdict)
        is_too_much = verdict.crowded and self.pace.refused(now, sent_at)
        was_open = not self.gate.trying_out
        self.gate.failed(verdict, now, post, is_too_much=is_too_much)
        if was_open and self.gate.trying_out:
            self.pace.start_over(now)


class Service:
    """Works on each POST for `latency` seconds; its answer takes up to a tenth of that besides.

    Args:
        workers: POSTs it works on at the same time.
        queue: POSTs that may wait for a worker; more are refused at once.
        jitter: the part of the latency by which it varies.
    """

    def __init__(
        self, chance: random.Random, *, latency: float, workers: int = 10**6, queue: int = 0, jitter: float = 0.1
    ) -> None:
        self.latency, self.workers, self.queue, self.jitter = latency, workers, queue, jitter
        self.is_away = False
        self.way = latency / 10
        self._chance = chance
        self._free_at = [0.0] * min(workers, 10_000)  # a heap
        self._ends: List[float] = []  # a heap: of what it has taken

    def lose_workers(self, count: int) -> None:
        """From now on there are so many fewer."""
        self.workers -= count
        self._free_at = heapq.nlargest(self.workers, self._free_at)
        heapq.heapify(self._free_at)

    @property
    def capacity(self) -> float:
        """POSTs a second."""
        return self.workers / self.latency

    def answer(self, now: float) -> Tuple[object, float]:
        """None or what is wrong, and when it says so."""
        if self.is_away:
            return AWAY, now + self.way
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        if len(self._ends) >= self.workers + self.queue:
            return REFUSED, now + self.way
        takes = self.latency * (1 + self.jitter * (2 * self._chance.random() - 1))
        end = max(heapq.heappop(self._free_at), now) + takes
        heapq.heappush(self._free_at, end)
        heapq.heappush(self._ends, end)
        return None, end + self.way * self._chance.random()


class Traffic:
    """What happened: `booked`, `refused` and `sent` have the moments."""

    def __init__(self, service: Service, clients: List[Client]) -> None:
        self.service, self.clients = service, clients
        self.now = 0.0
        self.booked: List[float] = []
        self.refused: List[float] = []
        self.sent: List[float] = []
        self._posts = itertools.count()
        self._tie = itertools.count()
        self._events: List[Tuple[float, int, Callable[..., None], Tuple[Any, ...]]] = []
        for client in clients:
            self._at(0.0, self._send, client)

    def run_until(self, end: float) -> None:
        while self._events[0][0] <= end:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        self.now = end

    def _at(self, moment: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._tie), act, arguments))

    def _send(self, client: Client) -> None:
        closed = client.gate.seconds_closed(self.now)
        if closed > 0:
            if client.busy == 0:  # or the next answer looks again
                self._at(self.now + closed, self._send, client)
            return
        while client.busy < client.pace.limit:
            client.busy += 1
            self.sent.append(self.now)
            verdict, end = self.service.answer(self.now)
            self._at(end, self._note, client, verdict, self.now, next(self._posts))

    def _note(self, client: Client, verdict: object, sent_at: float, post: int) -> None:
        (self.booked if verdict is None else self.refused).append(self.now)
        client.note(verdict, self.now, sent_at, post)
        self._send(client)


def between(moments: List[float], start: float, end: float) -> int:
    """How many of them are."""
    return sum(start <= moment < end for moment in moments)


def per_slice(moments: List[float], start: float, end: float, seconds: float) -> Iterator[int]:
    """How many are in each slice of so many seconds."""
    counts: Dict[int, int] = {}
    for moment in moments:
        if start <= moment < end:
            counts[int((moment - start) / seconds)] = counts.get(int((moment - start) / seconds), 0) + 1
    return (counts.get(at, 0) for at in range(int((end - start) / seconds)))
