"""The HTTP load: a few threads with a connection each, at an even pace, for a time, on this machine only."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from typing import Sequence

HOST = "127.0.0.1"
TIMEOUT = 10.0  # seconds
PATHS = ("/compress", "/digest")
BODY = b"The quick brown fox jumps over the lazy dog. " * 64
LENGTHS = (40, 333, 1200, 75, 2500, 610)  # bytes of BODY that a request sends

# After so many requests a thread connects anew, so that a worker that came later gets its share.
_REQUESTS_PER_CONNECTION = 50


class Load:
    """Clients of the service. A context manager: they run inside it, and for `seconds` at the longest.

    Args:
        port: of the service, on 127.0.0.1.
        customers: whom the requests come from, in turn.
        rate: requests a second, of all threads together; fewer when the service is slower than that.
        seconds: how long.
        threads: how many requests may be under way at once.
    """

    def __init__(self, port: int, customers: Sequence[str], *, rate: int, seconds: float, threads: int = 6) -> None:
        self._port = port
        self._pause = threads / rate
        self._most = int(seconds / self._pause)
        self._stopping = threading.Event()
        self._users = [_User(customers, first) for first in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(user,), name=f"demo-load-{number}", daemon=True)
            for number, user in enumerate(self._users, 1)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def answered(self) -> int:
        """Requests that were answered with 200."""
        return sum(user.answered for user in self._users)

    @property
    def refused(self) -> int:
        """Requests that got another answer."""
        return sum(user.refused for user in self._users)

    @property
    def broken(self) -> int:
        """Requests that got no answer, as those to a worker that is killed."""
        return sum(user.broken for user in self._users)

    def stop(self) -> None:
        """Ends the load; requests under way get their answers first. May be called twice."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT + 1)

    def _run(self, user: _User) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=TIMEOUT)
        due = time.monotonic()
        for number in range(1, self._most + 1):
            if self._stopping.wait(max(due - time.monotonic(), 0.0)):
                break
            user.send(connection)
            if number % _REQUESTS_PER_CONNECTION == 0:
                connection.close()
            due += self._pause
        connection.close()


class _User:
    """Sends the requests of one thread, and counts what became of them."""

    def __init__(self, customers: Sequence[str], first: int) -> None:
        self.answered = self.refused = self.broken = 0
        self._customers = itertools.islice(itertools.cycle(customers), first, None)
        self._paths = itertools.cycle(PATHS)
        self._lengths = itertools.islice(itertools.cycle(LENGTHS), first, None)

    def send(self, connection: http.client.HTTPConnection) -> None:
        body = BODY[: next(self._lengths)]
        try:
            connection.request("POST", next(self._paths), body, {"X-Customer": next(self._customers)})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self.broken += 1
            connection.close()  # the next request connects again
            return
        if response.status == http.client.OK:
            self.answered += 1
        else:
            self.refused += 1
