"""What the tests of the command line share; they run where the extra `cli` is installed."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Iterator

import pytest

pytest.importorskip("click", reason="the command line is the extra `cli`")
pytest.importorskip("rich", reason="the command line is the extra `cli`")

from tests.cli.running import Shell

if TYPE_CHECKING:
    from x402tools.testing import Emulator


@pytest.fixture
def shell(emulator: Emulator, tmp_path: pathlib.Path) -> Iterator[Shell]:
    """A shell in an empty folder, whose environment names the emulator; what still runs at the end is killed."""
    running = Shell(tmp_path, X402TOOLS_API_KEY=emulator.api_key, X402TOOLS_BASE_URL=emulator.base_url)
    yield running
    running.end()
