"""The only door to redis-py: runs scripts and commands on one server, or on that node of a cluster which has the key,
in bytes, and turns what goes wrong into `SpoolError`. No secret of the address is in any message.

A command that meets a connection which the server has closed meanwhile is sent once more, by another one; so is one
that a node of a cluster does not take because another has the slot by now. That doubles nothing, because the store asks
for nothing that would, asked twice; see `_redis_scripts`. While a slot is on its way to another node, what needs keys
of both is refused.
"""

from __future__ import annotations

import copy
import re
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

from x402tools._redis_nodes import Address, Nodes, NoNodeError, slot_of
from x402tools.errors import MissingExtraError, SpoolError
from x402tools.redis_store import RedisStore

_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}  # what redis-py calls them
_LONGEST_REASON = 300  # characters
_MOVED = re.compile(r"(^|: )MOVED [0-9]")  # 5.0.0 has no kind of its own for it


class _Time:
    """What all links of a store have in common: until when the server may be asked."""

    give_up_at: Optional[float] = None  # a moment of `time.monotonic()`


class Link:
    """Connections to a server, made when they are needed. On a cluster a link asks one node; see `at`.

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

        def connect(address: Optional[Address]) -> Any:
            return redis.Redis.from_url(
                _url_of(parts, address),
                protocol=2,  # the answers of the third have other shapes
                socket_timeout=store.timeout,
                socket_connect_timeout=store.timeout,
                retry=Retry(NoBackoff(), 1, supported_errors=(self._errors.ConnectionError,)),
                retry_on_error=[self._errors.ConnectionError],
            )

        first = (parts.hostname or "localhost", parts.port or 6379)
        self._nodes = Nodes(connect, first) if store.is_cluster else None
        self._only: Any = None if self._nodes else connect(None)
        self._slot = 0
        self._scripts: Dict[str, Any] = {}
        self._time = _Time()
        self._here = threading.local()

    def at(self, key: str) -> Link:
        """A link to where this key is, by the same connections."""
        return self._to_slot(slot_of(key)) if self._nodes else self

    def primaries(self) -> List[Link]:
        """A link to each node that has keys.

        Raises:
            SpoolError: they cannot be found out.
        """
        nodes = self._nodes
        if nodes is None:
            return [self]
        return [self._to_slot(slot) for slot in self._guarded(lambda _: nodes.primaries())]

    def _to_slot(self, slot: int) -> Link:
        other = copy.copy(self)
        other._slot = slot
        return other

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any] = ()) -> Any:
        """What a script returns.

        Raises:
            SpoolError: it may have been run all the same.
        """
        return self._guarded(lambda client: self._script(script, client)(keys=keys, args=arguments, client=client))

    def run_and_wait(
        self, script: str, keys: Sequence[str], arguments: Sequence[Any], replicas: int, seconds: float
    ) -> Any:
        """The same, and so many replicas have it too.

        Raises:
            SpoolError: fewer have it in that time.
        """
        milliseconds = int(seconds * 1000)
        result, have_it = self._guarded(
            lambda client: self._both(client, script, keys, arguments, replicas, milliseconds)
        )
        if have_it < replicas:
            raise SpoolError(f"{self._place}: {have_it} of {replicas} replicas have it")
        return result

    def command(self, *words: Any) -> Any:
        """What a command returns; raises as `run`."""
        return self._guarded(lambda client: client.execute_command(*words))

    def information(self, section: str) -> Dict[str, Any]:
        """What the server says of itself; empty where it does not let this user ask."""
        try:
            return dict(self._guarded(lambda client: client.info(section)))
        except PermissionError:
            return {}

    def is_in_use_here(self) -> bool:
        """Whether the calling thread is in the middle of asking."""
        return bool(getattr(self._here, "asking", False))

    def give_up_at(self, moment: Optional[float]) -> None:
        """From this moment of `time.monotonic()` on nothing is asked any more; None takes it back."""
        self._time.give_up_at = moment

    def go_on(self, seconds: float) -> None:
        """The server has so long from now on, where `give_up_at` said less."""
        if self._time.give_up_at is not None:
            self._time.give_up_at = max(self._time.give_up_at, time.monotonic() + seconds)

    def close(self) -> None:
        (self._nodes or self._only).close()

    def _script(self, text: str, client: Any) -> Any:
        if text not in self._scripts:
            self._scripts[text] = client.register_script(text)
        return self._scripts[text]

    def _both(
        self, client: Any, script: str, keys: Sequence[str], arguments: Sequence[Any], replicas: int, milliseconds: int
    ) -> Tuple[Any, int]:
        """One connection for both: `WAIT` is for what the same connection has written."""
        with client.pipeline(transaction=False) as pipeline:
            self._script(script, client)(keys=keys, args=arguments, client=pipeline)
            pipeline.execute_command("WAIT", replicas, milliseconds)
            results: List[Any] = pipeline.execute()
        return results[0], int(results[1])

    def _guarded(self, ask: Callable[[Any], Any]) -> Any:
        if self._time.give_up_at is not None and time.monotonic() >= self._time.give_up_at:
            raise SpoolError(f"{self._place}: there is no time left to ask the server")
        outer, self._here.asking = self.is_in_use_here(), True
        try:
            return self._asked(ask)
        except self._errors.NoPermissionError as error:
            raise NoPermissionError(f"{self._place}: {_short(error)}") from None
        except self._errors.AuthenticationError as error:
            raise RefusedError(f"{self._place}: {_short(error)}") from None
        except (self._errors.TimeoutError, self._errors.ConnectionError) as error:
            raise SpoolError(f"{self._place}: the server cannot be reached: {_short(error)}") from None
        except (self._errors.RedisError, NoNodeError) as error:
            if "cluster support disabled" in str(error):
                raise RefusedError(f"{self._place}: the server is not of a cluster; take redis:// for it") from None
            raise SpoolError(f"{self._place}: {_short(error)}") from None
        finally:
            self._here.asking = outer

    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        """On a cluster: the node that has the slot, which may be another one than it was a moment ago."""
        if self._nodes is None:
            return ask(self._only)
        try:
            return ask(self._nodes.client(self._slot))
        except self._errors.RedisError as error:
            if self._is_about_the_map(error):
                self._nodes.forget()
            # Who did not answer in time may have done it, and would have the caller wait for twice as long.
            if not isinstance(error, self._errors.ConnectionError) and not self._has_moved(error):
                raise
        try:
            return ask(self._nodes.client(self._slot))
        except self._errors.RedisError as error:
            if self._is_about_the_map(error):
                self._nodes.forget()
            raise

    def _is_about_the_map(self, error: Exception) -> bool:
        kinds = (self._errors.ConnectionError, self._errors.TimeoutError, self._errors.ClusterDownError)
        return isinstance(error, kinds) or self._has_moved(error) or "CLUSTERDOWN" in str(error)

    def _has_moved(self, error: Exception) -> bool:
        return isinstance(error, self._errors.MovedError) or bool(_MOVED.search(str(error)))


def _url_of(parts: SplitResult, address: Optional[Address]) -> str:
    """The address for redis-py; of another node of the cluster, if one is given."""
    scheme = parts.scheme.partition("+")[0]
    place = parts.netloc
    if address is not None:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        place = f"{place.rpartition('@')[0]}@{host}:{address[1]}" if "@" in place else f"{host}:{address[1]}"
    return urlunsplit((_SCHEMES.get(scheme, scheme), place, *parts[2:]))


class RefusedError(SpoolError):
    """This server must not, or cannot, be used as it is."""


class NoPermissionError(SpoolError, PermissionError):
    """The server does not let this user do that."""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
