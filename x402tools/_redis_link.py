"""The only door to redis-py: runs scripts and commands on one server, in bytes, and turns what goes wrong into
`SpoolError`. No secret of the address is in any message.

A command that meets a connection which the server has closed meanwhile is sent once more, by another one. That doubles
nothing, because the store asks for nothing that would, asked twice; see `_redis_scripts`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from urllib.parse import urlsplit, urlunsplit

from x402tools.errors import MissingExtraError, SpoolError
from x402tools.redis_store import RedisStore

_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}  # what redis-py calls them
_LONGEST_REASON = 300  # characters


class Link:
    """Connections to a server, made when they are needed.

    Args:
        store: which.

    Raises:
        MissingExtraError: redis-py is not installed.
    """

    def __init__(self, store: RedisStore) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise MissingExtraError("RedisStore", "redis") from None
        self._errors = redis.exceptions
        self._place = store.place
        parts = urlsplit(store.url)
        self._client = redis.Redis.from_url(
            urlunsplit((_SCHEMES.get(parts.scheme, parts.scheme), *parts[1:])),
            protocol=2,  # the answers of the third have other shapes
            socket_timeout=store.timeout,
            socket_connect_timeout=store.timeout,
            retry=Retry(NoBackoff(), 1, supported_errors=(self._errors.ConnectionError,)),
            retry_on_error=[self._errors.ConnectionError],
        )
        self._scripts: Dict[str, Any] = {}
        self._give_up_at: Optional[float] = None
        self._here = threading.local()

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
        """What a script returns.

        Raises:
            SpoolError: it may have been run all the same.
        """
        return self._guarded(lambda: self._script(script)(keys=keys, args=arguments))

    def run_and_wait(
        self, script: str, keys: Sequence[str], arguments: Sequence[Any], replicas: int, seconds: float
    ) -> Any:
        """The same, and so many replicas have it too.

        Raises:
            SpoolError: fewer have it in that time.
        """
        result, have_it = self._guarded(lambda: self._both(script, keys, arguments, replicas, int(seconds * 1000)))
        if have_it < replicas:
            raise SpoolError(f"{self._place}: {have_it} of {replicas} replicas have it")
        return result

    def command(self, *words: Any) -> Any:
        """What a command returns; raises as `run`."""
        return self._guarded(lambda: self._client.execute_command(*words))  # type: ignore[no-untyped-call]  # redis-py's

    def information(self, section: str) -> Dict[str, Any]:
        """What the server says of itself; empty where it does not let this user ask."""
        try:
            return dict(self._guarded(lambda: self._client.info(section)))
        except PermissionError:
            return {}

    def is_in_use_here(self) -> bool:
        """Whether the calling thread is in the middle of asking."""
        return bool(getattr(self._here, "asking", False))

    def give_up_at(self, moment: Optional[float]) -> None:
        """From this moment of `time.monotonic()` on nothing is asked any more; None takes it back."""
        self._give_up_at = moment

    def go_on(self, seconds: float) -> None:
        """The server has so long from now on, where `give_up_at` said less."""
        if self._give_up_at is not None:
            self._give_up_at = max(self._give_up_at, time.monotonic() + seconds)

    def close(self) -> None:
        self._client.close()

    def _script(self, text: str) -> Any:
        if text not in self._scripts:
            self._scripts[text] = self._client.register_script(text)
        return self._scripts[text]

    def _both(
        self, script: str, keys: Sequence[str], arguments: Sequence[Any], replicas: int, milliseconds: int
    ) -> Tuple[Any, int]:
        """One connection for both: `WAIT` is for what the same connection has written."""
        with self._client.pipeline(transaction=False) as pipeline:
            self._script(script)(keys=keys, args=arguments, client=pipeline)
            pipeline.execute_command("WAIT", replicas, milliseconds)  # type: ignore[no-untyped-call]  # redis-py's
            results: List[Any] = pipeline.execute()
        return results[0], int(results[1])

    def _guarded(self, ask: Callable[[], Any]) -> Any:
        if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
            raise SpoolError(f"{self._place}: there is no time left to ask the server")
        outer, self._here.asking = self.is_in_use_here(), True
        try:
            return ask()
        except self._errors.NoPermissionError as error:
            raise NoPermissionError(f"{self._place}: {_short(error)}") from None
        except self._errors.AuthenticationError as error:
            raise RefusedError(f"{self._place}: {_short(error)}") from None
        except (self._errors.TimeoutError, self._errors.ConnectionError) as error:
            raise SpoolError(f"{self._place}: the server cannot be reached: {_short(error)}") from None
        except self._errors.RedisError as error:
            raise SpoolError(f"{self._place}: {_short(error)}") from None
        finally:
            self._here.asking = outer


class RefusedError(SpoolError):
    """This server must not, or cannot, be used as it is."""


class NoPermissionError(SpoolError, PermissionError):
    """The server does not let this user do that."""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
