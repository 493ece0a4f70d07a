"""`connect` for the tests of the client, with every call made through `client.aio` on an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from typing import Any, Iterator

import pytest

from tests.client.conftest import KEY, TIMEOUT, Connect, clean_environment, serve
from x402tools import X402Client

__all__ = ["clean_environment", "connect", "serve"]

# Seconds; far above what any call of these tests may take.
LONGEST = 60.0


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def run(self, awaitable: Any) -> Any:
        """What it returns or raises."""

        async def awaited() -> Any:
            return await awaitable

        future = asyncio.run_coroutine_threadsafe(awaited(), self.loop)
        return future.result(LONGEST)

    def stop(self) -> None:
        """Ends the loop and its thread."""
        if sys.version_info >= (3, 9):
            self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LONGEST)
        self.loop.close()


class OnALoop:
    """A client whose calls are those of its `aio`; everything else is the client's own."""

    def __init__(self, client: X402Client, loop: Loop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client.aio, name, None)
        if name == "iter_usage":
            return lambda *arguments, **named: self._iterate(found(*arguments, **named))
        if inspect.iscoroutinefunction(found):
            return lambda *arguments, **named: self._loop.run(found(*arguments, **named))
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._client, name, value)

    def __repr__(self) -> str:
        return repr(self._client)

    def __reduce__(self) -> Any:
        return self._client.__reduce__()

    def _iterate(self, iterator: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._loop.run(iterator.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run(iterator.aclose())


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(server_or_url, **settings)`: as in the tests of the client."""
    loop = Loop()
    with contextlib.ExitStack() as clients:
        clients.callback(loop.stop)

        def make(where: Any, api_key: Any = KEY, **settings: Any) -> Any:
            url = where if isinstance(where, str) else getattr(where, "url", None) or where.base_url
            client = X402Client(api_key, url, **{"timeout": TIMEOUT, **settings})
            clients.callback(lambda: loop.run(client.aio.close()))
            return OnALoop(client, loop)

        yield make
