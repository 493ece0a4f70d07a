"""One client serves many threads, and a forked child goes its own way: nobody gets somebody else's answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List

import pytest

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import Exchange, chunked, says
from x402tools import X402Client
from x402tools.testing import Emulator

THREADS = 8
POSTS = 50


def echo(exchange: Exchange) -> bool:
    """Answers a POST with a record of what was posted."""
    posted = exchange.request.json
    return says(documents.usage(**posted, id=f"use_{posted['amount']}"), 201)(exchange)


def post_and_compare(client: X402Client, envelope: str, amounts: range) -> List[str]:
    """The ids of the records; raises when an answer is that of another POST."""
    ids = []
    for amount in amounts:
        usage = client.record_usage(envelope, amount, {"amount": amount})
        assert (usage.amount, usage.metadata) == (amount, {"amount": amount})
        ids.append(usage.id)
    return ids


def test_threads_get_their_own_answers(emulator: Emulator, connect: Connect) -> None:
    """Eight threads, fifty POSTs each, one client: every answer is to the POST that was made."""
    client = connect(emulator, emulator.api_key)
    envelope = emulator.create_envelope()
    amounts = [range(thread * 1000, thread * 1000 + POSTS) for thread in range(THREADS)]

    with ThreadPoolExecutor(THREADS) as threads:
        done = list(threads.map(lambda mine: post_and_compare(client, envelope, mine), amounts, timeout=60))

    ids = [made for some in done for made in some]
    assert len(set(ids)) == THREADS * POSTS
    assert emulator.ledger().events == THREADS * POSTS
    assert emulator.ledger().repeats_dropped == 0


def test_threads_share_connections(serve: Serve, connect: Connect) -> None:
    """No more connections than there are threads, however many requests."""
    server = serve(always=echo)
    client = connect(server)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: post_and_compare(client, "env_1", range(i * 100, i * 100 + 20)), range(4)))

    assert len(server.requests) == 80
    assert server.connections <= 4


def test_lists_and_posts_do_not_mix(emulator: Emulator, connect: Connect) -> None:
    """A list that is read slowly and POSTs in between keep apart, on one client in one thread."""
    client = connect(emulator, emulator.api_key)
    envelope = emulator.create_envelope()
    post_and_compare(client, envelope, range(100))

    listed = []
    for record in client.iter_usage():
        listed.append(record.amount)
        client.record_usage(envelope, 1000 + record.amount)

    assert listed[:100] == list(range(100))


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_list_can_be_left_early(taken: int, serve: Serve, connect: Connect) -> None:
    """What was not read is not taken for the next answer."""
    record = json.dumps(documents.usage()).encode()
    server = serve(chunked(b"[" + record, *[b"," + record] * 5000, b"]"), says(documents.stats()), always=echo)
    client = connect(server)
    records = client.iter_usage()

    for _ in range(taken):
        next(records)
    records.close()  # type: ignore[attr-defined]  # a generator, typed as an iterator

    if taken == 0:  # no request was made
        assert server.requests == []
        return
    assert client.get_usage_stats().total_usage == 150
    assert post_and_compare(client, "env_1", range(3)) == ["use_0", "use_1", "use_2"]


def test_list_can_be_forgotten(serve: Serve, connect: Connect) -> None:
    """As `for record in client.iter_usage(): break` does."""
    record = json.dumps(documents.usage()).encode()
    server = serve(chunked(b"[" + record, *[b"," + record] * 5000, b"]"), says(documents.stats()))
    client = connect(server)

    for _ in client.iter_usage():
        break

    assert client.get_usage_stats().total_usage == 150


# Run in a process of its own, because a fork copies whatever threads the tests around it have.
FORK = """
import os, sys, threading
import requests
from x402tools import X402Client

url, key, own = sys.argv[1:]
session = requests.Session() if own == "own session" else None
client = X402Client(key, url, session=session, timeout=(5, 5, 20))

def post(start):
    for amount in range(start, start + 10):
        usage = client.record_usage("env_1", amount, {"pid": os.getpid()})
        assert usage.amount == amount, (usage.amount, amount)
        assert usage.metadata == {"pid": os.getpid()}, usage.metadata

post(0)
children = []
for number in range(1, 4):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            post(number * 100)
            status = 0
        finally:
            os._exit(status)
    children.append(child)
post(1000)
for child in children:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
post(2000)
client.close()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize("session", ["no session", "own session"])
def test_forked_children_use_connections_of_their_own(session: str, serve: Serve) -> None:
    """Parent and children at the same time: no connection is used by two of them, and the parent keeps its own."""
    server = serve(always=echo)

    finished = subprocess.run(
        [sys.executable, "-c", FORK, server.url, KEY, session],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stdout) == (0, "done\n"), finished.stderr
    ports: Dict[int, Any] = {}
    for request in server.requests:
        ports.setdefault(request.json["metadata"]["pid"], set()).add(request.client_port)
    assert len(server.requests) == 60
    assert [len(used) for used in ports.values()] == [1, 1, 1, 1]
    assert len(set.union(*ports.values())) == 4
