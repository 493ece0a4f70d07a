"""A service with books behind a scripted server, and a client with a buffer that reports to it.

What the tests of the network and of the service share: the script says what goes wrong, the books say what that cost.
"""

from __future__ import annotations

import pathlib
import threading
from typing import Any, Callable, Dict, List, Optional

from tests.buffer.helpers import assert_adds_up, wait_until
from tests.client import documents
from tests.client.scripted_server import Behaviour, Exchange, ScriptedServer, says
from x402tools import UsageBuffer, X402Client
from x402tools.buffer import BufferStats

KEY = "sk_live_4c1b7e09d2a84fdd"

# Seconds to connect and to wait for an answer: short, because the tests have the service keep silent.
TIMEOUT = (1.0, 1.0, 5.0)

# Seconds. Each attempt over TLS reads the whole bundle of authorities, which takes its time beside other work.
PATIENCE = 40.0


class Books:
    """What the service booked: each key once, and every key always with the same body."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self.booked: Dict[str, bytes] = {}
        self.repeats = 0
        self.faults: List[str] = []

    def behaviour(self, then: Optional[Behaviour] = None) -> Behaviour:
        """Books the request, and then answers like this; by default 201 and the record."""
        after = then or says(documents.usage(), 201)

        def behave(exchange: Exchange) -> bool:
            self._book(exchange.request.headers["idempotency-key"], exchange.request.body)
            return after(exchange)

        return behave

    def _book(self, key: str, body: bytes) -> None:
        with self._lock:
            self.repeats += key in self.booked
            if self.booked.setdefault(key, body) != body:
                self.faults.append(f"{key} came with another body")


class Reporter:
    """A client with a buffer, all that it told, and the ids of what was recorded; a context manager."""

    def __init__(self, url: str, spool: pathlib.Path, api_key: Any = KEY, **options: Any) -> None:
        self.errors: List[str] = []
        self.dead: List[str] = []
        settings: Dict[str, Any] = {"flush_interval": 0.05, "exit_timeout": 0.2, **options}
        timeout = settings.pop("timeout", TIMEOUT)
        session = settings.pop("session", None)
        self.buffer = UsageBuffer(
            spool,
            on_error=self.errors.append,
            on_dead_letter=lambda _, reason: self.dead.append(reason),
            **settings,
        )
        self.client = X402Client(
            api_key, url, timeout=timeout, session=session, buffer=self.buffer, max_retries=0, allow_http=True
        )
        self.ids: List[str] = []

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()

    def record(self, count: int = 1, envelope: str = "env_1") -> None:
        self.ids += [self.client.record_usage(envelope, 1).id for _ in range(count)]

    def stats(self) -> BufferStats:
        """How things stand; the ledger adds up."""
        stats = self.buffer.stats()
        assert_adds_up(stats)
        return stats

    def wait_for_problem(self, word: str) -> None:
        """Until the buffer says what is wrong, and has told whoever wants to hear of it."""
        wait_until(lambda: word in str(self.stats().problem), f"the problem names {word!r}", PATIENCE)
        wait_until(lambda: self.errors, "on_error was called")

    def check_delivered_once(self, books: Books) -> None:
        """Everything recorded is booked, nothing else, and nothing is dead, dropped or left."""
        assert self.client.flush(PATIENCE), self.stats()
        stats = self.stats()
        assert books.faults == []
        assert sorted(books.booked) == sorted(self.ids)
        assert (stats.delivered.events, stats.dead.events, stats.dropped.events) == (len(self.ids), 0, 0)


MakeReporter = Callable[..., Reporter]


def sent_keys(server: ScriptedServer) -> List[str]:
    """The idempotency keys of every request, in their order."""
    return [request.headers["idempotency-key"] for request in server.requests]
