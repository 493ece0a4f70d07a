"""The usual faults around the engine of a fleet, as findings. Nothing here changes anything."""

from __future__ import annotations

import re
import time
from collections import deque
from typing import Any, Dict, Iterator, List, Optional, Tuple

from x402tools import RedisStore
from x402tools._cli import fleet_view
from x402tools._cli.checks import Finding
from x402tools._cli.fleet_view import ALIVE, FleetView
from x402tools._cli.output import amount_of_bytes, duration
from x402tools._redis_link import Link
from x402tools._redis_start import OLDEST
from x402tools._redis_store import prefix_of
from x402tools.errors import SpoolError

_LITTLE_ROOM = 0.9  # of the memory that the server may use
_CLOCK_SLACK = 60.0  # seconds; billing periods do not mind less
_OLD = 15 * 60.0  # seconds; what waits for longer waits for somebody
_SHOWN = 3  # workers by name


def check_fleet(url: str) -> Tuple[List[Finding], Optional[str]]:
    """Everything about the engine at this address that can be seen without the service, and the fingerprint of the base
    URL that what lies there is for, as far as it is known."""
    store = RedisStore(url)
    link = Link(store)
    try:
        findings = list(dict.fromkeys(one for node in _nodes(link) for one in _check_server(node)))
        if any(one.level == "fault" and one.about == "server" for one in findings):
            return findings, None
        for node in link.primaries():
            told = [*_check_memory(node), *_check_persistence(node), *_check_replication(node), _check_clock(node)]
            findings += [one for one in told if one not in findings]
        # Is there anything at all? Opening an empty namespace makes its streams.
        meta, ledger = (f"{prefix_of(store)}:{name}" for name in ("meta", "ledger"))
        if not link.at(meta).command("EXISTS", meta, ledger):
            return [*findings, Finding("note", "store", "nothing was ever stored here")], None
        destination = link.at(meta).command("HGET", meta, "destination")
        with FleetView(url) as view:
            findings += _check_content(view)
        return findings, destination.decode("ascii", "replace") if destination else None
    except SpoolError as error:
        # Not asked further: what one question meets, the others meet too.
        return [*findings, Finding("fault", "store", str(error))], None
    finally:
        link.close()


def _nodes(link: Link) -> List[Link]:
    """Those of a cluster; what cannot be found out, the first question meets too."""
    try:
        return link.primaries()
    except SpoolError:
        return [link]


# -- the server --------------------------------------------------------------------------------------------------


def _check_server(link: Link) -> Iterator[Finding]:
    try:
        told = link.information("server")
        link.command("PING")
    except SpoolError as error:
        advice = "see that the address, the password and the network are right; what is recorded waits meanwhile"
        yield Finding("fault", "server", str(error), advice)
        return
    version = str(told.get("redis_version", ""))
    name = f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {version}"
    if not version:
        yield Finding("note", "server", "this user may not ask what it is (INFO)", "see that it is 6.2 or later")
    elif tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        yield Finding("fault", "server", name, "take 6.2 or later, or Valkey")
    else:
        yield Finding("ok", "server", name)


def _check_memory(link: Link) -> Iterator[Finding]:
    told = link.information("memory")
    policy = told.get("maxmemory_policy")
    if policy is None:
        yield Finding("note", "eviction", "this user may not ask for it (INFO)", "see that it is noeviction")
        return
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction: usage is thrown away when its memory is full"
        yield Finding("fault", "eviction", f"maxmemory-policy is {policy}", advice)
    else:
        yield Finding("ok", "eviction", "maxmemory-policy is noeviction")
    used, most = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    if most and used > _LITTLE_ROOM * most:
        advice = "raise maxmemory, or start more workers; when it is full, usage waits where it is recorded"
        yield Finding("fault", "memory", f"{amount_of_bytes(used)} of {amount_of_bytes(most)} in use", advice)
    else:
        what = f"{amount_of_bytes(used)} in use, " + (f"of {amount_of_bytes(most)}" if most else "no maxmemory is set")
        yield Finding("ok", "memory", what)


def _check_persistence(link: Link) -> Iterator[Finding]:
    told = link.information("persistence")
    if "aof_enabled" not in told:
        return
    if not int(told["aof_enabled"]):
        advice = "appendonly yes: what it holds is lost when it ends"
        yield Finding("note", "append-only", "it has no append-only file", advice)
    elif told.get("aof_last_write_status", "ok") != "ok":
        yield Finding("fault", "append-only", "the last write to its append-only file failed", "see its disk and log")
    else:
        yield Finding("ok", "append-only", f"on, appendfsync {_setting(link, 'appendfsync') or 'cannot be asked for'}")


def _check_replication(link: Link) -> Iterator[Finding]:
    told = link.information("replication")
    if told.get("role") == "slave":
        where = f"{told.get('master_host')}:{told.get('master_port')}"
        yield Finding("fault", "replicas", f"this is a replica itself, of {where}", "give the address of the primary")
        return
    count = int(told.get("connected_slaves", 0))
    if not told:
        return
    if not count:
        advice = "what the server has is lost with it; with one, RedisStore(url, replicas=1) waits for it"
        yield Finding("note", "replicas", "it has none", advice)
    else:
        behind = [_bytes_behind(told, at) for at in range(count)]
        yield Finding("ok", "replicas", f"{count}, the last one {amount_of_bytes(max(behind))} behind")


def _bytes_behind(told: Dict[str, Any], at: int) -> int:
    replica = told.get(f"slave{at}")
    has = replica.get("offset", 0) if isinstance(replica, dict) else 0
    return max(int(told.get("master_repl_offset", 0)) - int(has), 0)


def _check_clock(link: Link) -> Finding:
    before = time.time()
    told = link.command("TIME")
    moment = int(told[0]) + int(told[1]) / 1e6
    ahead = (before + time.time()) / 2 - moment
    if abs(ahead) > _CLOCK_SLACK:
        what = f"this machine is {duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the server"
        return Finding("fault", "server clock", what, "set the clocks (NTP): windows and ages are wrong by as much")
    return Finding("ok", "server clock", "agrees with this machine's")


def _setting(link: Link, name: str) -> str:
    try:
        told = link.command("CONFIG", "GET", name)
    except SpoolError:  # not allowed, as on many hosted servers
        return ""
    return str(told[1].decode("ascii", "replace")) if told else ""


# -- what is on it -----------------------------------------------------------------------------------------------


def _check_content(view: FleetView) -> Iterator[Finding]:
    seen = fleet_view.take(view)
    if not seen.adds_up:
        yield Finding("fault", "ledger", "does not add up", "report it, with the output of `x402tools buffer status`")
    yield _check_workers(view.workers(), seen.counts.pending.events, seen.oldest_pending_age)
    if seen.counts.dead.events:
        last = deque(view.dead_letters(), maxlen=1)
        why = f"; the last: {last[0].reason}" if last else ""
        advice = "mend the cause, then `x402tools buffer requeue --store URL --all`; see `x402tools buffer dead`"
        yield Finding("fault", "dead letters", f"{seen.counts.dead.events} events{why}", advice)
    if seen.counts.dropped.events:
        what = f"{seen.counts.dropped.events} events of {seen.counts.dropped.units} units were lost, some time"
        yield Finding(
            "note", "dropped", what, "memory was full while the server was away: see spill and max_queue_size"
        )


def _check_workers(workers: List[str], pending: int, age: Optional[float]) -> Finding:
    names = ", ".join(workers[:_SHOWN]) + (" and others" if len(workers) > _SHOWN else "")
    who = f"{len(workers)} deliver: {names}" if workers else f"none gave a sign of life within {ALIVE:g} s"
    if not pending:
        return Finding("ok" if workers else "note", "workers", f"{who}; nothing is pending")
    what = f"{who}; {pending} events are pending, the oldest for {duration(age)}"
    if not workers:
        return Finding("fault", "workers", what, "start one: `x402tools worker --store URL`")
    if age is not None and age > _OLD:
        return Finding("fault", "workers", what, "see below what the service says, and the logs of the workers")
    return Finding("ok", "workers", what)
