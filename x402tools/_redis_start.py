"""What a server has to be like to be trusted with usage; asked once by each process."""

from __future__ import annotations

import logging
import re

from x402tools._redis_link import Link, RefusedError

log = logging.getLogger("x402tools")

OLDEST = (6, 2)  # the first that can take over the work of the dead (XAUTOCLAIM)


def check(link: Link, place: str, *, allow_eviction: bool) -> None:
    """Refuses a server that would lose usage, and warns of one that may.

    What the server does not let this user ask is taken for good.

    Raises:
        RefusedError: it is too old, or throws keys away when its memory is full.
        SpoolError: it cannot be reached.
    """
    version = str(link.information("server").get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        raise RefusedError(f"{place}: the server is version {version}; 6.2 or later is needed")
    policy = str(link.information("memory").get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and not allow_eviction:
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
