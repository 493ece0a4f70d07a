"""A server that refuses only what delivering needs: whoever looks is told, though nothing is wrong with storing."""

from __future__ import annotations

import pathlib

from tests.buffer.helpers import URL, wait_until
from tests.stores import servers
from tests.stores.servers import Server
from x402tools import UsageBuffer, X402Client


def test_trouble_of_delivering_alone_is_told_until_it_is_over(tmp_path: pathlib.Path) -> None:
    """In the statistics and in the health, in the server's own words; and on_error is called once."""
    servers.require(servers.REDIS)
    problems = []
    with Server(tmp_path / "server") as server:
        buffer = UsageBuffer(server.url, deliver=True, flush_interval=0.05, on_error=problems.append)
        with X402Client("sk_1", URL, buffer=buffer):
            wait_until(lambda: buffer.health().flusher.state == "delivering", "it delivers")
            before = buffer.stats().problem

            server.ask("ACL", "SETUSER", "default", "-xautoclaim", "-xreadgroup")
            wait_until(lambda: buffer.stats().problem is not None, "the statistics say so")
            problem, health = str(buffer.stats().problem), buffer.health()
            server.ask("ACL", "SETUSER", "default", "+xautoclaim", "+xreadgroup")
            wait_until(lambda: buffer.stats().problem is None, "they say that it is over")

            assert before is None
            assert "xreadgroup" in problem or "xautoclaim" in problem
            assert (health.spool.state, health.spool.ok, health.ok) == ("failing", False, False)
            assert health.spool.reason is not None
            wait_until(buffer.health, "it is healthy again")
    assert len(problems) == 1
