"""The fleet's show, short: hosts, an engine, workers, one of them killed, and the bill."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from tests.stores import servers

DEADLINE = 100.0  # seconds


@pytest.mark.full
def test_the_bill_is_what_the_hosts_recorded(tmp_path: pathlib.Path) -> None:
    """To the event and to the unit, whichever worker was killed; and every process has ended."""
    servers.require(servers.REDIS)
    pytest.importorskip("click", reason="its workers are the command line, the extra `cli`")
    command = [sys.executable, "-m", "x402tools.demo.fleet", "--seconds", "6", "--keep", str(tmp_path / "kept")]

    ended = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE
    )

    assert ended.returncode == 0, ended.stdout
    total = re.search(r"^all +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +0 +0$", ended.stdout, re.MULTILINE)
    assert total is not None, ended.stdout
    assert total.group(1, 2) == total.group(3, 4)
    assert total.group(1) == "1,200"
    assert "is killed by SIGKILL" in ended.stdout
    assert "Proved:" in ended.stdout
