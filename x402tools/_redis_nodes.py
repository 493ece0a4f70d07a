"""Which node of a Redis Cluster has which hash slot.

The map is read when it is first needed and again after `forget`, which whoever was sent elsewhere or not answered
calls. Here and not in redis-py, whose own client for clusters connects when it is made, chooses how often to try again,
and cannot send `WAIT` after a script by the same connection.
"""

from __future__ import annotations

import binascii
import bisect
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

SLOTS = 16384

Address = Tuple[str, int]
Connect = Callable[[Address], Any]  # a client of one node; connects when it is asked something


class NoNodeError(Exception):
    """No node has that slot, as far as is known."""


def slot_of(key: str) -> int:
    """The hash slot of a key: of what stands in its first braces."""
    tag = key.partition("{")[2].partition("}")[0]
    return binascii.crc_hqx((tag or key).encode("utf-8"), 0) % SLOTS


class Nodes:
    """The primaries of a cluster.

    Args:
        connect: makes a client.
        first: a node of the cluster; the others are learned from it.
    """

    def __init__(self, connect: Connect, first: Address) -> None:
        self._connect = connect
        self._lock = threading.RLock()  # guards all below, also while the map is read: whoever waits needs it too
        self._clients: Dict[Address, Any] = {first: connect(first)}
        self._first = first
        self._ask: List[Address] = [first]  # in the order in which they are asked for the map
        self._map: Optional[List[Tuple[int, int, Address]]] = None  # first and last slot of each range, in order

    def client(self, slot: int) -> Any:
        """A client of the primary that has this slot.

        Raises:
            NoNodeError: none has it.
            Exception: no node could be asked; what the client of the last one raised.
        """
        with self._lock:
            ranges = self._map if self._map is not None else self._read()
            at = bisect.bisect_right(ranges, (slot, SLOTS, ("", 0))) - 1
            if at < 0 or not ranges[at][0] <= slot <= ranges[at][1]:
                self._map = None
                raise NoNodeError(f"no node of the cluster has slot {slot}")
            return self._client(ranges[at][2])

    def primaries(self) -> List[int]:
        """A slot of each; raises as `client`."""
        with self._lock:
            ranges = self._map if self._map is not None else self._read()
            return list({address: first for first, _, address in ranges}.values())

    def forget(self) -> None:
        """The map may be wrong by now."""
        with self._lock:
            self._map = None

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()

    def _client(self, address: Address) -> Any:
        if address not in self._clients:
            self._clients[address] = self._connect(address)
        return self._clients[address]

    def _read(self) -> List[Tuple[int, int, Address]]:
        failed: Exception = NoNodeError("no node of the cluster is known")
        for address in list(self._ask):
            try:
                answer = self._client(address).execute_command("CLUSTER", "SLOTS")
            except Exception as error:  # noqa: BLE001 - the client's kinds are not known here; the last is raised
                failed = error
                # It is asked last the next time: each time-out is waited for.
                self._ask.remove(address)
                self._ask.append(address)
                continue
            self._map = _ranges(answer, address)
            self._ask = list(dict.fromkeys([address, *(owner for _, _, owner in self._map), self._first]))
            return self._map
        raise failed


def _ranges(answer: Any, asked: Address) -> List[Tuple[int, int, Address]]:
    """The answer to CLUSTER SLOTS; a node that does not know how it is called is the one that was asked."""
    ranges = []
    for first, last, (host, port, *_), *_ in answer:
        name = host.decode("utf-8") if host else ""
        ranges.append((int(first), int(last), (asked[0] if name in ("", "?") else name, int(port))))
    return sorted(ranges)
