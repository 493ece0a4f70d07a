"""The tests of `tests/client/test_calls.py`, on an event loop."""

import pytest

from tests.client.test_calls import *  # noqa: F403 - each of its tests, with this folder's `connect`

pytest.importorskip("httpx", reason="needs the extra `async`")
