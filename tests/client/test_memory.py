"""A list of a million records: read one by one in flat memory, and as a list in hardly more than the list takes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Callable, Iterator

import pytest

from tests.client.conftest import KEY, Serve
from tests.client.scripted_server import generated

FULL, REDUCED = 1_000_000, 100_000
PER_CHUNK = 1000

MEBIBYTE = 1 << 20

# What the interpreter and the libraries need to warm up beyond what they have after the first small call.
FLAT = 24 * MEBIBYTE

# Each way to get the records runs in a process of its own, whose peak is nobody else's. The growth of the resident
# memory is what is measured, as the system sees it: it counts what the allocator wastes too.
PROGRAM = """
import json, sys
from x402tools import Usage, X402Client

way, url, key, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def record(i):
    return json.loads(sys.argv[5] % {"i": i})

client = X402Client(key, url, timeout=(10, 60, 100))
assert client.get_usage("warm_up") == [Usage.from_dict(record(0))]
before = memory("VmRSS")
if way == "iterate":
    total = sum(usage.amount for usage in client.iter_usage())
elif way == "list":
    kept = client.get_usage()
    total = sum(usage.amount for usage in kept)
else:
    kept = [Usage.from_dict(record(i)) for i in range(count)]
    total = sum(usage.amount for usage in kept)
assert total == count * (count - 1) // 2, total
print(memory("VmHWM") - before)
"""

TEMPLATE = (
    '{"id": "use_%(i)012d", "envelopeId": "env_1", "amount": %(i)d, "timestamp": "2025-11-05T12:34:56.789Z",'
    ' "metadata": {"endpoint": "/api/users", "n": %(i)d}}'
)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.parametrize(
        "count",
        [
            pytest.param(REDUCED, id="reduced", marks=pytest.mark.full),
            pytest.param(FULL, id="full", marks=pytest.mark.proof),
        ],
    ),
    pytest.mark.timeout(400),  # three million records are made and read; on a busy machine that takes its time
    pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


def records(count: int) -> Iterator[bytes]:
    """The whole list, a thousand records a chunk."""
    for start in range(0, count, PER_CHUNK):
        text = ",".join(TEMPLATE % {"i": number} for number in range(start, start + PER_CHUNK))
        yield (("," if start else "[") + text).encode("ascii")
    yield b"]"


@pytest.fixture
def growth(serve: Serve, count: int) -> Callable[[str], int]:
    """`growth(way)`: by how many bytes a process grows that gets the records in this way."""

    def measure(way: str) -> int:
        warm_up = generated(lambda: [b"[" + (TEMPLATE % {"i": 0}).encode("ascii") + b"]"])
        server = serve(warm_up, generated(lambda: records(count)))
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM, way, server.url, KEY, str(count), TEMPLATE],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return int(finished.stdout)

    return measure


def test_iterating_takes_flat_memory(growth: Callable[[str], int]) -> None:
    """All the records pass through, and the process is no larger than before."""
    assert growth("iterate") < FLAT


def test_list_takes_hardly_more_than_its_records(growth: Callable[[str], int]) -> None:
    """At its peak `get_usage` takes at most half as much again as a list of the same records made by hand."""
    by_hand = growth("by hand")

    as_list = growth("list")

    print(f"\nby hand {by_hand / MEBIBYTE:.0f} MiB, get_usage {as_list / MEBIBYTE:.0f} MiB: {as_list / by_hand:.2f}")
    assert as_list <= 1.5 * by_hand
