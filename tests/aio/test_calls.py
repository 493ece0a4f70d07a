"""The tests of `tests/client/test_calls.py`, on an event loop."""

from tests.client.test_calls import *  # noqa: F403 - each of its tests, with this folder's `connect`
