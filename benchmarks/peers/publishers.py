"""Everything that puts events into a Redis server: ours, task queues that others publish, and the least there is.

A publisher has `put(count)`, which hands so many events over, `settle()`, after which the server has all of them, and
`close()`. What can take many at a time is given 500.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import Any, Callable, Dict, List

from benchmarks.fleet.traffic import Draw, name
from benchmarks.peers import events

BATCH = 500
_PIPELINE = 20  # batches in one round trip, where they are ready


class Publisher:
    """What they share.

    Attributes:
        step: events that are put between two looks at the clock.
    """

    step = BATCH

    def __init__(self, options: Dict[str, Any]) -> None:
        self.url: str = options.get("engine", "")
        self.metadata = events.metadata()
        self.numbers = itertools.count()

    def put(self, count: int) -> None:
        """Hands so many events over."""
        raise NotImplementedError

    def settle(self) -> None:
        """The server has everything when it returns; so it has at once where every call waits for its answer."""

    def close(self) -> None:
        """Ends it."""

    def _json(self) -> str:
        number = next(self.numbers)
        return events.as_json(number, self.metadata[number % events.USERS])


class Ours(Publisher):
    """UsageBuffer on the server, which only publishes; `options["buffer"]` are its arguments.

    With `options["envelopes"]` the events are those of the fleet's model: so many envelopes by Zipf's law, and
    `options["values"]` endpoints, drawn with `options["seed"]`. With `options["folder"]` it is a host that has a spool
    there and delivers by itself, instead of the server.
    """

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        from x402tools import UsageBuffer, X402Client

        arguments = {"on_queue_full": "block", **options.get("buffer", {})}
        self._is_host = "folder" in options
        if self._is_host:
            self.buffer = UsageBuffer(os.path.join(options["folder"], "usage.db"), **arguments)
        else:
            self.buffer = UsageBuffer(store=self.url, **arguments)
        # Where events go is checked by the store, so it is said here as the workers will say it.
        self.client = X402Client("key", options.get("url", "http://127.0.0.1:9/none"), buffer=self.buffer)
        self.envelopes = [events.ENVELOPE]
        if "envelopes" in options:
            self.envelopes, self.metadata = _drawn(options["envelopes"], options["values"], options.get("seed", 1))

    def put(self, count: int) -> None:
        record, metadata, envelopes = self.client.record_usage, self.metadata, self.envelopes
        for number in itertools.islice(self.numbers, count):
            record(envelopes[number % len(envelopes)], 1, metadata[number % len(metadata)])

    def settle(self) -> None:
        if self._is_host:
            self.buffer.flush(None)
        while self.buffer.stats().in_memory:
            self.buffer.flush(0)  # nobody delivers here: it waits for the engine's answer alone
            time.sleep(0.001)

    def close(self) -> None:
        self.client.close()


class ReadyBatches(Publisher):
    """The store's own script, given batches that were encoded before: what is left is the client and the server."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        from x402tools import RedisStore
        from x402tools._redis_store import Engine

        self._store: Any = Engine(RedisStore(self.url), max_bytes=64 * 1024**3)
        self._ready = _ready(self.metadata)

    def put(self, count: int) -> None:
        from x402tools._store import Tally

        for _ in range(count // BATCH):
            batch = self._ready._replace(id=f"ready/{next(self.numbers) + 1}")
            self._store.append([batch], Tally())

    def close(self) -> None:
        self._store.close()


class Client(Publisher):
    """One that uses redis-py itself."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import redis

        self.client: Any = redis.Redis.from_url(self.url, protocol=2)

    def close(self) -> None:
        self.client.close()


class PipelinedBatches(Client):
    """XADD of batches that were encoded before, many in a round trip: the server can do no better."""

    step = BATCH * _PIPELINE

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        self._ready = _ready(self.metadata).value

    def put(self, count: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for _ in range(count // BATCH):
            pipeline.xadd("ready", {"b": self._ready})
        pipeline.execute()


class PipelinedEvents(Client):
    """XADD of each event, encoded before, 500 in a round trip."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        self._ready = [{"d": self._json()} for _ in range(BATCH)]

    def put(self, count: int) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for number in range(count):
            pipeline.xadd("events", self._ready[number % BATCH])
        pipeline.execute()


class EachEvent(Client):
    """XADD of each event as it comes, with json.dumps: what one would write first."""

    step = 20

    def put(self, count: int) -> None:
        for _ in range(count):
            self.client.xadd("each", {"d": self._json()})


class Celery(Publisher):
    """`send_task` of Celery, its defaults, Redis as the broker and no results."""

    step = 20

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import celery

        self._app: Any = celery.Celery("usage", broker=self.url)
        self._app.conf.task_ignore_result = True

    def put(self, count: int) -> None:
        for number in itertools.islice(self.numbers, count):
            self._app.send_task("usage.post", (events.ENVELOPE, 1, self.metadata[number % events.USERS]))

    def close(self) -> None:
        self._app.close()


class Rq(Client):
    """`enqueue` of RQ, its defaults."""

    step = 20

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import rq

        self._queue: Any = rq.Queue("usage", connection=self.client)

    def put(self, count: int) -> None:
        for number in itertools.islice(self.numbers, count):
            self._queue.enqueue("usage.post", events.ENVELOPE, 1, self.metadata[number % events.USERS])


PUBLISHERS: Dict[str, Callable[[Dict[str, Any]], Publisher]] = {
    "ours": Ours,
    "ready": ReadyBatches,
    "pipelined-batches": PipelinedBatches,
    "pipelined-events": PipelinedEvents,
    "each": EachEvent,
    "celery": Celery,
    "rq": Rq,
}
REQUIRES = {
    "ours": "redis",
    "ready": "redis",
    "pipelined-batches": "redis",
    "pipelined-events": "redis",
    "each": "redis",
    "celery": "celery",
    "rq": "rq",
}


def make(options: Dict[str, Any]) -> Publisher:
    """The publisher named by `options["peer"]`; the other options are the publisher's own."""
    return PUBLISHERS[options["peer"]](options)


def _ready(metadata: List[Dict[str, Any]]) -> Any:
    """A batch as ours encodes it."""
    from x402tools import _batch

    now = time.time()
    rows: Any = [(number, events.ENVELOPE, 1, metadata[number], now) for number in range(BATCH)]
    return _batch.encode("ready", 1, rows)


def _drawn(envelopes: int, values: int, seed: int) -> Any:
    """Envelopes and metadata as the model draws them, so many that they do not come again in step."""

    chance = random.Random(seed)
    ranks, endpoints = Draw(envelopes, 1.0), Draw(values, 1.0)
    return (
        [name(ranks.rank(chance.random())) for _ in range(100_003)],
        [{"endpoint": f"/api/resource/{endpoints.rank(chance.random())}"} for _ in range(99_991)],
    )
