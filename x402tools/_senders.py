"""Threads that make attempts at POSTs for the flusher, and tell it what came of them. They only do the waiting."""

from __future__ import annotations

import queue
import threading
import time
from typing import Callable, List, NamedTuple, Optional

from x402tools._batch import Post
from x402tools._doubts import Delivery
from x402tools._verdict import DELIVERED, Verdict, judge
from x402tools.errors import APIConnectionError, X402Error

Deliver = Callable[[bytes, str], None]


class Answer(NamedTuple):
    """What a sender puts into the inbox."""

    delivery: Delivery
    verdict: Verdict
    seconds: float = 0.0  # that the attempt took


class Senders:
    """Threads that make attempts and put the verdicts into the inbox; started one by one as they are needed."""

    def __init__(self, deliver: Deliver, most: int, body: Callable[[Post], bytes] = Post.body) -> None:
        self.inbox: queue.SimpleQueue[Optional[Answer]] = queue.SimpleQueue()
        self.busy = 0  # attempts under way; changed by the flusher's thread alone
        self._deliver = deliver
        self._body = body
        self._most = most
        self._threads: List[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Optional[Delivery]] = queue.SimpleQueue()
        self._kept: List[Optional[Answer]] = []  # what `wait` took out of the inbox

    def send(self, delivery: Delivery) -> None:
        self.busy += 1
        if len(self._threads) < min(self.busy, self._most):
            self._add_thread()
        if self._threads:
            self._jobs.put(delivery)
        else:
            self._attempt(delivery)  # no thread can be started (the interpreter is ending): do it here

    def wait(self, seconds: float) -> None:
        """Returns when something is in the inbox, or after the seconds."""
        try:
            self._kept.append(self.inbox.get(timeout=seconds) if seconds > 0 else self.inbox.get_nowait())
        except queue.Empty:
            return

    def messages(self) -> List[Optional[Answer]]:
        """Takes everything that has come."""
        taken, self._kept = self._kept, []
        while True:
            try:
                taken.append(self.inbox.get_nowait())
            except queue.Empty:
                break
        self.busy -= sum(message is not None for message in taken)
        return taken

    def stop(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=f"x402tools-sender-{len(self._threads) + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is ending: those that run do the work
            return
        self._threads.append(thread)

    def _run(self) -> None:
        while True:
            delivery = self._jobs.get()
            if delivery is None:
                return
            self._attempt(delivery)

    def _attempt(self, delivery: Delivery) -> None:
        began = time.perf_counter()
        verdict = self._verdict(delivery.post)
        self.inbox.put(Answer(delivery, verdict, time.perf_counter() - began))

    def _verdict(self, post: Post) -> Verdict:
        try:
            self._deliver(self._body(post), post.key)
        except X402Error as error:
            return judge(error)
        except BaseException as error:  # noqa: BLE001 - a session of the user's own may raise anything; it is kept
            return judge(APIConnectionError(f"delivering raised {type(error).__name__}"))
        return DELIVERED
