"""Shows that the sink is faster than anything measured against it: its own rate under raw load, before the sections."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Dict, List

from benchmarks.harness.figures import distribution
from benchmarks.harness.load import post_request
from benchmarks.harness.service import Service
from benchmarks.harness.size import Size

_LOAD = pathlib.Path(__file__).with_name("load.py")
BODY = {
    "envelopeId": "env_1",
    "amount": 1,
    "metadata": {"endpoint": "/api/users", "method": "GET", "user_id": "user_1"},
}
CONNECTIONS = 16


def measure(size: Size) -> Dict[str, Any]:
    """Answers a second of the sink to POST /usage, and CPU microseconds of the sink for each."""
    seconds = size.pick(0.5, 2.0, 5.0)
    with Service() as service, tempfile.TemporaryDirectory() as folder:
        request = pathlib.Path(folder, "request")
        request.write_bytes(post_request("/proof/usage", json.dumps(BODY).encode()))
        before = service.report()["cpu"]
        command: List[str] = [sys.executable, str(_LOAD), "127.0.0.1", str(service.port), str(request)]
        command += ["--connections", str(CONNECTIONS), "--seconds", str(seconds)]
        loaded = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        report = service.report()
    posts = report["tallies"]["proof"]["posts"]
    return {
        "rate": loaded["requests"] / loaded["seconds"],
        "cpu": (report["cpu"] - before) / posts * 1e6,
        "p50": distribution(loaded["latencies"])["p50"],
    }


def show(measured: Dict[str, Any]) -> str:
    """One line."""
    return (
        f"the sink alone answers {measured['rate']:,.0f} POSTs/s to {CONNECTIONS} raw sockets "
        f"(p50 {measured['p50']:.0f} us), "
        f"at {measured['cpu']:.0f} us of its own CPU each: {1e6 / measured['cpu']:,.0f}/s when it has a core to itself"
    )
