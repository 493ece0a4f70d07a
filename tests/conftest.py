"""What the tests of several folders share: an emulator, a place for a spool, a deadline for what may hang."""

from __future__ import annotations

import pathlib
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Callable, Dict

import pytest

# By name, so that they are here in a checkout too, where the package is not installed and pytest does not find them.
from x402tools._pytest_plugin import x402_buffer, x402_client, x402_emulator  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from x402tools.testing import Emulator

# Seconds. Far above what anything here needs on a busy machine, far below the deadline of a whole test, so that the
# failure names what hung.
DEFAULT_DEADLINE = 20.0


@pytest.fixture
def emulator(x402_emulator: Emulator) -> Emulator:  # noqa: F811 - a fixture is asked for by its name
    """A fresh emulator of the API in a thread of this process, on a port of its own and with empty books."""
    return x402_emulator


@pytest.fixture
def tmp_spool(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where a test may put a spool; nothing is there yet."""
    return tmp_path / "usage.db"


@pytest.fixture
def deadline() -> Callable[..., Any]:
    """`deadline(function, *arguments, seconds=20)`: what the function returns or raises, or a failure that names it."""
    return run_with_deadline


def run_with_deadline(function: Callable[..., Any], *arguments: Any, seconds: float = DEFAULT_DEADLINE) -> Any:
    """Calls the function in a thread and fails the test, with that thread's stack, when it has not come back in time.

    A function that hangs is left behind in its daemon thread: Python cannot end it.
    """
    outcome: Dict[str, Any] = {}

    def call() -> None:
        try:
            outcome["returned"] = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller of the deadline gets it
            outcome["raised"] = error

    name = getattr(function, "__qualname__", repr(function))
    thread = threading.Thread(target=call, name=f"deadline: {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "(no stack)"
        pytest.fail(f"{name} did not come back within {seconds:g} s; it is at\n{stack}", pytrace=False)
    if "raised" in outcome:
        raise outcome["raised"]
    return outcome["returned"]
