"""Everything that puts events on this disk: ours, queues that others publish, and the least there is.

A store has `put(count)`, which records and commits so many events, `settle()`, after which all of them are on disk,
and `size()`, the bytes it takes. What is committed one by one is; what can take many at a time is given 500.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import sqlite3
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

from benchmarks.peers import events

BATCH = 500


class Store:
    """What they share: a folder, and events to store.

    Attributes:
        step: events that are put between two looks at the clock.
    """

    step = BATCH

    def __init__(self, options: Dict[str, Any]) -> None:
        self.folder = pathlib.Path(options["folder"])
        self.metadata = events.wide(options["keys"]) if "keys" in options else events.metadata()
        self._numbers = itertools.count()

    def put(self, count: int) -> None:
        """Records and commits so many events."""
        raise NotImplementedError

    def settle(self) -> None:
        """Everything that was put is on disk when it returns."""

    def size(self) -> int:
        """Bytes of all its files, once what is in an SQLite log is where it belongs."""
        for file in self.folder.rglob("*"):
            if file.is_file() and _is_database(file):
                connection = sqlite3.connect(str(file))
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.close()
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def _events(self, count: int) -> Iterator[Tuple[str, str]]:
        """A key and the JSON of an event, which is what every store but ours is given."""
        for number in itertools.islice(self._numbers, count):
            usage = {"envelopeId": events.ENVELOPE, "amount": 1, "metadata": self.metadata[number % events.USERS]}
            yield f"key-{number}", json.dumps(usage)


class Ours(Store):
    """UsageBuffer, with nobody who delivers; `options["buffer"]` are its arguments."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        from x402tools import UsageBuffer

        arguments = {"on_queue_full": "block", "max_disk_bytes": 64 * 1024**3, **options.get("buffer", {})}
        self.buffer = UsageBuffer(str(self.folder / "usage.db"), **arguments)

    def put(self, count: int) -> None:
        record, metadata = self.buffer.record, self.metadata
        for number in range(count):
            record(events.ENVELOPE, 1, metadata[number % events.USERS])

    def settle(self) -> None:
        while True:
            self.buffer.flush(0)  # nobody delivers here: it waits for the commit alone
            if self.buffer.stats().in_memory == 0:
                return
            time.sleep(0.001)

    def size(self) -> int:
        return self.buffer.stats().spool_bytes

    def _files(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def drain(self) -> Dict[str, Any]:
        """Delivers everything to a service that takes no time at all; returns the size of the files after it."""
        self.settle()
        self.buffer.attach(lambda _body, _key: None, "http://127.0.0.1:9")
        drained = bool(self.buffer.flush(None))
        deadline = time.monotonic() + 10  # a file is given back a moment after it is empty
        while self._files() > 2**20 and time.monotonic() < deadline:
            time.sleep(0.05)
        return {"drained": drained, "bytes": self._files()}


class RawSqlite(Store):
    """sqlite3 with WAL and synchronous=FULL, `executemany` of 500 rows a transaction."""

    ready = False

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        self.connection = sqlite3.connect(str(self.folder / "raw.db"), isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, key TEXT, body TEXT)")
        self._ready = list(self._events(BATCH))

    def put(self, count: int) -> None:
        for _ in range(count // BATCH):
            rows = self._ready if self.ready else self._events(BATCH)
            self.connection.execute("BEGIN")
            self.connection.executemany("INSERT INTO events (key, body) VALUES (?, ?)", rows)
            self.connection.execute("COMMIT")

    def settle(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class ReadySqlite(RawSqlite):
    """The same with rows that were encoded before."""

    ready = True


class RawFile(Store):
    """Lines of JSON appended to a file, and fdatasync after 500."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        self.file = os.open(self.folder / "raw.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put(self, count: int) -> None:
        sync = getattr(os, "fdatasync", os.fsync)
        for _ in range(count // BATCH):
            os.write(self.file, "".join(f"{key} {body}\n" for key, body in self._events(BATCH)).encode())
            sync(self.file)


class OneByOne(Store):
    """A queue that commits each event."""

    step = 50


class PersistQueue(OneByOne):
    """SQLiteQueue of persist-queue, each put committed."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import persistqueue

        self.queue = persistqueue.SQLiteQueue(str(self.folder), auto_commit=True, multithreading=True)

    def put(self, count: int) -> None:
        for _, body in self._events(count):
            self.queue.put(body)


class LiteQueue(OneByOne):
    """litequeue, each put committed; it syncs only at checkpoints (synchronous=NORMAL)."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import litequeue

        self.queue = litequeue.LiteQueue(str(self.folder / "lite.db"))

    def put(self, count: int) -> None:
        for _, body in self._events(count):
            self.queue.put(body)


class DiskCache(OneByOne):
    """Deque of diskcache, each append committed; it syncs only at checkpoints (synchronous=NORMAL)."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        import diskcache

        self.queue = diskcache.Deque(directory=str(self.folder))

    def put(self, count: int) -> None:
        for _, body in self._events(count):
            self.queue.append(body)


class Huey(OneByOne):
    """The SQLite storage of huey, each enqueue committed and synced."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__(options)
        from huey.storage import SqliteStorage

        self.queue = SqliteStorage("usage", filename=str(self.folder / "huey.db"), fsync=True)

    def put(self, count: int) -> None:
        for _, body in self._events(count):
            self.queue.enqueue(body.encode())


def _is_database(file: pathlib.Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(15) == b"SQLite format 3"


STORES: Dict[str, Callable[[Dict[str, Any]], Store]] = {
    "ours": Ours,
    "sqlite3": RawSqlite,
    "sqlite3-ready": ReadySqlite,
    "file": RawFile,
    "persist-queue": PersistQueue,
    "litequeue": LiteQueue,
    "diskcache": DiskCache,
    "huey": Huey,
}
REQUIRES = {name: name for name in ("persist-queue", "litequeue", "diskcache", "huey")}
SLOW: List[str] = list(REQUIRES)  # a commit for each event


def make(options: Dict[str, Any]) -> Store:
    """The store named by `options["peer"]`; the other options are the store's: folder, buffer, keys (of metadata)."""
    return STORES[options["peer"]](options)
