"""The fixtures, as they are found by somebody else's tests in a pytest of their own."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys
from typing import List

import pytest

import x402tools
from x402tools import UsageBuffer, X402Client
from x402tools.testing import Emulator

ENTRY_POINT = ("x402tools", "x402tools._pytest_plugin")

SOMEBODYS_TEST = """
import x402tools

def test_the_order_is_billed(x402_emulator, x402_client, x402_buffer):
    envelope_id = x402_emulator.create_envelope(limit=1000)
    x402_client.record_usage(envelope_id, 5)
    x402_buffer.record(envelope_id, 6)
    assert x402_buffer.flush(30)
    assert x402_emulator.ledger().units == 11
"""

WITHOUT_THE_EXTRA = """
import sys
import pytest

@pytest.fixture(autouse=True)
def no_starlette(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)  # as if it were not installed

def test_that_needs_it(x402_client):
    assert False, "it never gets here"

def test_that_does_not():
    from x402tools.testing import RecordingClient
    assert RecordingClient().record_usage("env_1", 1).amount == 1
"""

WHAT_IT_IMPORTS = """
import sys, pytest
before = set(sys.modules)
import x402tools._pytest_plugin
print(*sorted(set(sys.modules) - before))
"""


def entry_points() -> List[str]:
    """The modules that pytest loads because this package is installed; none in a bare checkout."""
    try:
        found = importlib.metadata.distribution("x402tools").entry_points
    except importlib.metadata.PackageNotFoundError:
        return []
    return [point.value for point in found if point.group == "pytest11"]


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with this package importable, in a folder of somebody else."""
    here = str(pathlib.Path(x402tools.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": here}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_somebody_elses_tests_find_the_fixtures(tmp_path: pathlib.Path) -> None:
    """With no more than the package installed. Without the extra only what needs it fails, and says what to install."""
    (tmp_path / "test_somebodys.py").write_text(SOMEBODYS_TEST, encoding="utf-8")
    (tmp_path / "test_without.py").write_text(WITHOUT_THE_EXTRA, encoding="utf-8")
    loaded_by_hand = [] if entry_points() else ["-p", "x402tools._pytest_plugin"]

    finished = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *loaded_by_hand)

    assert "2 passed, 1 error" in finished.stdout, finished.stdout + finished.stderr
    assert 'pip install "x402tools[emulator]"' in finished.stdout


def test_loading_the_plugin_imports_nothing_else(tmp_path: pathlib.Path) -> None:
    """Every pytest of that environment loads it, whether it tests usage or not."""
    finished = run(tmp_path, "-c", WHAT_IT_IMPORTS)

    assert finished.stdout.split() == ["x402tools", "x402tools._pytest_plugin"], finished.stderr


def test_the_installed_package_names_the_plugin() -> None:
    """As an entry point of pytest."""
    found = entry_points()
    if not found:
        pytest.skip("the package is not installed here, or was before it had the plugin")

    assert found == [ENTRY_POINT[1]]


def test_the_fixtures_belong_together(
    x402_emulator: Emulator, x402_client: X402Client, x402_buffer: UsageBuffer
) -> None:
    """One emulator in one test; the client has no buffer, so that its calls are answered."""
    envelope = x402_client.create_envelope("One", 100, "MONTHLY")

    x402_buffer.record(envelope.id, 5)

    assert x402_client.buffer is None
    assert x402_buffer.flush(30)
    assert x402_emulator.ledger().envelopes[envelope.id].units == 5
