"""What the tests of the fault catalogue share: scripted servers, reporters that are closed, a clean environment."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any, Iterator, Tuple

import pytest

from tests.client.conftest import clean_environment, serve
from tests.faults.reporting import Books, MakeReporter, Reporter
from x402tools.testing import Emulator

__all__ = ["books", "clean_environment", "reporter", "serve"]


@pytest.fixture
def spool(tmp_spool: pathlib.Path, emulator: Emulator) -> Tuple[str, str, str]:
    """The arguments of every program of `process_child`: path, base URL, envelope."""
    return str(tmp_spool), emulator.base_url, emulator.create_envelope()


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def reporter(tmp_spool: pathlib.Path) -> Iterator[MakeReporter]:
    """`reporter(server_or_url, **options)`: a client with a buffer, for this service."""
    with contextlib.ExitStack() as open_ones:

        def make(where: Any, **options: Any) -> Reporter:
            url = where if isinstance(where, str) else getattr(where, "url", None) or where.base_url
            return open_ones.enter_context(Reporter(url, tmp_spool, **options))

        yield make
