"""A primary and its replica, as a failover finds them: the replica can be cut off, the primary die, the replica take
over. Who uses them finds the new primary under the old address, behind a `Proxy`, as behind a name that is moved.
"""

from __future__ import annotations

import pathlib
from typing import List, Optional

from tests.stores import servers
from tests.stores.servers import HOST, Proxy, Server


class Pair:
    """A primary and a replica that is up to date. A context manager.

    Args:
        folder: where the files of both go, and of those that come later.
        kind: "redis" or "valkey".

    Attributes:
        network: between everybody and the primary.
        primary, replica: who is it now; no replica between a failover and `renew`.
    """

    def __init__(self, folder: pathlib.Path, kind: str = servers.REDIS) -> None:
        self._folder = folder
        self._kind = kind
        self._servers: List[Server] = []
        self.primary = self._new(())
        self.replica: Optional[Server] = None
        self.network = Proxy(self.primary.port)
        self._link = Proxy(self.primary.port)  # between the two

    def __enter__(self) -> Pair:
        try:
            self.primary.start()
            self.renew()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.kill()
        self.network.close()
        self._link.close()

    def cut_off_replica(self) -> None:
        """The replica gets nothing more, and the primary knows it."""
        self._link.cut()

    def mend_replica(self) -> None:
        """It catches up, and this returns when it has."""
        self._link.mend()
        assert self.replica is not None
        servers.wait_for_replica(self.primary, self.replica)

    def lose_primary(self) -> None:
        """SIGKILL; nobody gets through any more."""
        self.network.cut()
        self.primary.kill()

    def promote(self) -> None:
        """The replica is the primary, with what it had, and everybody finds it. It has no replica."""
        assert self.replica is not None
        self.replica.ask("REPLICAOF", "NO", "ONE")
        self.primary, self.replica = self.replica, None
        self.network.target = self._link.target = self.primary.port
        self.network.mend()

    def renew(self) -> None:
        """The primary has a replica again, a new one; returns when that is up to date."""
        self._link.mend()
        options = ("--replicaof", f"{HOST} {self._link.port}")
        self.replica = self._new(options).start()
        servers.wait_for_replica(self.primary, self.replica)

    def _new(self, options: servers.Options) -> Server:
        self._servers.append(Server(self._folder / f"server-{len(self._servers) + 1}", self._kind, options))
        return self._servers[-1]
