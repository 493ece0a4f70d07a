"""What a server has to be like to be trusted with usage, and into how many partitions it is split there; asked once by
each process.
"""

from __future__ import annotations

import logging
import re

from x402tools import _redis_scripts
from x402tools._redis_link import Link, RefusedError
from x402tools.redis_store import RedisStore

log = logging.getLogger("x402tools")

OLDEST = (6, 2)  # the first that can take over the work of the dead (XAUTOCLAIM)


class Entrance:
    """Lets a process in once, if the servers are as they have to be.

    Args:
        link: to any of them.
        store: which.
    """

    def __init__(self, link: Link, store: RedisStore) -> None:
        self._link = link
        self._store = store
        self._is_in = False

    def enter(self) -> None:
        """Asks all that is asked of servers, unless they have answered well before.

        Raises:
            RefusedError: usage would be lost there, or is split otherwise.
            SpoolError: one cannot be reached.
        """
        if self._is_in:
            return
        for link in self._link.primaries():
            check(link, self._store)
        self.keep_partitions()
        self._is_in = True

    def keep_partitions(self) -> None:
        """Writes down how many partitions there are, where nobody has; raises as `enter`.

        A server of an earlier version has one, and does not say so.
        """
        tag = f"{{x402:{self._store.namespace}}}"
        keys = [f"{tag}:{name}" for name in ("meta", "in", "out", "recorders", "dead")]
        asked = self._store.partitions
        there = int(self._link.at(tag).run(_redis_scripts.PARTITIONS, keys, [asked]))
        if there != asked:
            raise RefusedError(
                f"{self._store.place}: is split into {there} partitions, not into {asked}; say partitions={there} (or "
                f"?partitions={there} in the address), or use another namespace and have a worker empty this one"
            )


def check(link: Link, store: RedisStore) -> None:
    """Refuses a server that would lose usage, and warns of one that may.

    What the server does not let this user ask is taken for good.

    Raises:
        RefusedError: it is too old, or throws keys away when its memory is full.
        SpoolError: it cannot be reached.
    """
    place = store.place
    version = str(link.information("server").get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        raise RefusedError(f"{place}: the server is version {version}; 6.2 or later is needed")
    if not store.is_cluster and int(link.information("cluster").get("cluster_enabled", 0)):
        raise RefusedError(f"{place}: the server is a node of a cluster; take redis+cluster:// for it")
    policy = str(link.information("memory").get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and not store.allow_eviction:
        raise RefusedError(
            f"{place}: the server's maxmemory-policy is {policy}: it would throw usage away when its memory is full; "
            "set it to noeviction, or use another server"
        )
    persistence, replication = link.information("persistence"), link.information("replication")
    weak = []
    if persistence and not int(persistence.get("aof_enabled", 0)):
        weak.append("has no append-only file, so what it holds ends with it (appendonly yes)")
    if replication and not int(replication.get("connected_slaves", 0)):
        weak.append("has no replica")
    if weak:
        log.warning("%s: the server %s", place, " and ".join(weak))
