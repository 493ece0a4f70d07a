"""`RedisStore`: the Redis or Valkey server on which a `UsageBuffer` keeps its events, without a disk or for a fleet.

Needs the extra `redis`. Only a description: nothing is connected before the buffer that is given it starts.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, Optional, Tuple, Union
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from x402tools.errors import ValidationError

__all__ = ["RedisStore"]

SCHEMES = ("redis", "rediss", "valkey", "valkeys")
_OF_A_CLUSTER = "+cluster"
MOST_PARTITIONS = 256
PARTITIONS_OF_A_CLUSTER = 16
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_LEASE = 86400.0


class _Fields(NamedTuple):
    url: str
    namespace: str
    replicas: int
    allow_eviction: bool
    lease: float
    rate: Optional[float]
    timeout: float
    spill: Optional[str]
    partitions: int


class RedisStore(_Fields):
    """A store on a Redis (6.2 or later) or Valkey server, or on a cluster of them.

    Args:
        url: redis://host:6379/0, rediss:// for TLS, with user and password where it needs them; valkey:// is the same.
            redis+cluster://host:6379 (and rediss+cluster://, ...) names one node of a cluster.
        namespace: keeps several stores on one server apart: 1 to 64 letters, digits, dots, dashes and underscores.
        replicas: so many replicas have to have a batch before it counts as stored (`WAIT`). Default 0.
        allow_eviction: use a server that throws keys away when its memory is full. It would lose usage: for tests.
        lease: seconds after which the work of a process that delivers and gives no sign of life is taken over. A lease
            that is too short costs POSTs that are sent twice under one key, never a wrong sum. Default 60.
        rate: POSTs a second that all processes which deliver from this store may send together. Default: no bound.
        timeout: seconds for one answer of the server. Default 2.
        spill: a local spool file that takes the events while the server is away or full, and hands them on later; any
            number of processes of a machine may share it. Default: they wait in memory.
        partitions: into so many parts, up to 256, the events are split by their envelope; each part is folded by one
            worker and lies on one node of a cluster. It stays what it is when the namespace is first used; `url` may
            say it too, as in redis://host:6379/0?partitions=4. Default: 1, on a cluster 16.

    Raises:
        ValidationError: an argument is not usable.
    """

    __slots__ = ()

    def __new__(
        cls,
        url: str,
        *,
        namespace: str = "x402",
        replicas: int = 0,
        allow_eviction: bool = False,
        lease: float = 60.0,
        rate: Optional[float] = None,
        timeout: float = 2.0,
        spill: Union[str, os.PathLike[str], None] = None,
        partitions: Optional[int] = None,
    ) -> RedisStore:
        if not is_engine(url):
            raise ValidationError(f"url must be an address like redis://host:6379/0 ({', '.join(SCHEMES)})")
        url, partitions = _without_partitions(url, partitions)
        if _is_of_a_cluster(url) and urlsplit(url).path not in ("", "/", "/0"):
            raise ValidationError("url must not name a database: a cluster has the one")
        if type(namespace) is not str or not _NAMESPACE.fullmatch(namespace):
            raise ValidationError("namespace must be 1 to 64 letters, digits, dots, dashes or underscores")
        if type(replicas) is not int or not 0 <= replicas <= 100:
            raise ValidationError("replicas must be a whole number from 0 to 100")
        _check_seconds("lease", lease, 0.05, _LONGEST_LEASE)
        _check_seconds("timeout", timeout, 0.05, 60.0)
        if rate is not None:
            _check_seconds("rate", rate, 0.01, 1e6)
        if spill is not None and (is_engine(spill) or not os.fspath(spill)):
            raise ValidationError("spill must be the path of a file")
        file = None if spill is None else os.path.abspath(os.fspath(spill))
        if partitions is None:
            partitions = PARTITIONS_OF_A_CLUSTER if _is_of_a_cluster(url) else 1
        if type(partitions) is not int or not 1 <= partitions <= MOST_PARTITIONS:
            raise ValidationError(f"partitions must be a whole number from 1 to {MOST_PARTITIONS}")
        return super().__new__(
            cls, url, namespace, replicas, bool(allow_eviction), lease, rate, timeout, file, partitions
        )

    @property
    def is_cluster(self) -> bool:
        """Whether `url` names a node of a cluster."""
        return _is_of_a_cluster(self.url)

    @property
    def place(self) -> str:
        """The address and the namespace, without a secret: for people, log lines and metrics."""
        parts = urlsplit(self.url)
        host = parts.hostname or "localhost"
        where = f"{host}:{parts.port or 6379}"
        return f"{urlunsplit((parts.scheme, where, parts.path or '/0', '', ''))}#{self.namespace}"

    def __repr__(self) -> str:
        return f"<RedisStore {self.place}>"

    def __reduce__(self) -> Union[str, tuple]:  # type: ignore[type-arg]  # object's own signature
        raise TypeError("a RedisStore may hold a password and is not pickled: make one in each process")


def is_engine(path: object) -> bool:
    """Whether this names a server rather than a file."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    scheme = os.fspath(path).partition("://")[0]
    return scheme in SCHEMES or (scheme.endswith(_OF_A_CLUSTER) and scheme[: -len(_OF_A_CLUSTER)] in SCHEMES)


def _is_of_a_cluster(url: str) -> bool:
    return urlsplit(url).scheme.endswith(_OF_A_CLUSTER)


def _without_partitions(url: str, partitions: Optional[int]) -> Tuple[str, Optional[int]]:
    """The address as redis-py understands it, and how many partitions it or the argument asks for."""
    parts = urlsplit(url)
    words = parse_qsl(parts.query, keep_blank_values=True)
    others = [word for word in words if word[0] != "partitions"]
    said = [value for name, value in words if name == "partitions"]
    if not said:
        return url, partitions
    if partitions is not None or len(said) > 1 or not re.fullmatch("[0-9]{1,3}", said[0], re.ASCII):
        raise ValidationError(f"partitions must be said once, as a whole number from 1 to {MOST_PARTITIONS}")
    return urlunsplit((*parts[:3], urlencode(others), parts[4])), int(said[0])


def _check_seconds(argument: str, value: object, least: float, most: float) -> None:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]  # a number by now
        raise ValidationError(f"{argument} must be a number from {least:g} to {most:g}")
