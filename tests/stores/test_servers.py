"""The network of the other tests is cut when it is told to be, and the engines come back with what they had."""

from __future__ import annotations

import pathlib
import socket
from typing import Iterator

import pytest

from tests.stores import servers
from tests.stores.servers import HOST, Proxy, Server


@pytest.fixture(params=[servers.REDIS, servers.VALKEY])
def server(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Server]:
    servers.require(request.param)
    with Server(tmp_path / "engine", request.param, ("--appendfsync", "always")) as started:
        yield started


def test_an_engine_that_was_killed_comes_back_with_what_it_acknowledged(server: Server) -> None:
    """On the same port, and it evicts nothing."""
    server.ask("SET", "a", "1")

    server.kill()
    server.start()

    assert server.ask("GET", "a") == b"1"
    assert server.ask("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"


def test_a_cut_network_lets_nobody_through_until_it_is_mended() -> None:
    """What was connected is cut off, and so is who connects meanwhile."""
    with socket.create_server((HOST, 0)) as listener, Proxy(listener.getsockname()[1]) as proxy:
        client = socket.create_connection((HOST, proxy.port), timeout=10)
        served, _ = listener.accept()
        client.sendall(b"before")
        before = served.recv(6)

        proxy.cut()
        during = client.recv(1)
        with socket.create_connection((HOST, proxy.port), timeout=10) as other:
            others = other.recv(1)
        proxy.mend()
        again = socket.create_connection((HOST, proxy.port), timeout=10)
        served_again, _ = listener.accept()
        served_again.sendall(b"after")
        after = again.recv(5)
        for one in (client, served, again, served_again):
            one.close()

        assert (before, during, others, after) == (b"before", b"", b"", b"after")
