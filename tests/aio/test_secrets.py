"""The tests of `tests/client/test_secrets.py`, on an event loop."""

import pytest

from tests.client.test_secrets import *  # noqa: F403 - each of its tests, with this folder's `connect`

# There Ctrl-C ends the loop's own thread, and nobody is left to tell.
del test_callable_may_end_the_program  # noqa: F821 - it came in with the star

pytest.importorskip("httpx", reason="needs the extra `async`")
pytestmark = pytest.mark.full
