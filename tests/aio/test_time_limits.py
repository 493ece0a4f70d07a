"""The tests of `tests/client/test_time_limits.py`, on an event loop."""

import pytest

from tests.client.test_time_limits import *  # noqa: F403 - each of its tests, with this folder's `connect`

pytest.importorskip("httpx", reason="needs the extra `async`")
pytestmark = pytest.mark.full
