"""The script of the show: what the billing service suffers when, and what is killed."""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional, Tuple

from x402tools.testing import Fault


class Act(enum.Enum):
    """Something done once, at the beginning of a scene."""

    KILL_DELIVERING_WORKER = "kill the worker that delivers"
    KILL_OTHER_WORKER = "kill another worker"
    KILL_EMULATOR = "kill the emulator"
    RESTART_EMULATOR = "restart the emulator"


class Scene(NamedTuple):
    """From a moment on, until the next scene.

    Attributes:
        at: the moment, as a share of the whole run.
        weather: what the emulator does now, in at most 33 characters.
        faults: in force now.
        act: done at the beginning.
    """

    at: float
    weather: str
    faults: Tuple[Fault, ...] = ()
    act: Optional[Act] = None


_CALM = "answers as it should"
_LOSING = "books, and its answers get lost"
_LOST_ANSWERS = (
    Fault.reset_after_commit(share=0.08),
    Fault.truncated(share=0.05),
    Fault.html_ok(share=0.05),
)
_EVERYTHING = (
    Fault.status(500, share=0.1),
    Fault.unavailable(1, share=0.005, times=2),
    Fault.html_error(share=0.05),
    Fault.reset_before_commit(share=0.05),
    Fault.latency(0.2, share=0.05),
    *_LOST_ANSWERS,
)

# The worker that delivers is killed while answers get lost: it leaves POSTs that were booked and not settled, which
# is where a careless successor bills twice. Another one is killed while nothing can be delivered, so that all it ever
# recorded in that time stands on disk alone. The last scene is calm: a bill is looked at when the storm is over.
SCRIPT = (
    Scene(0.00, _CALM),
    Scene(0.10, "answers every fifth with 500", (Fault.status(500, share=0.2),)),
    Scene(0.22, "429 now and then: wait for 1 s", (Fault.rate_limited(1, share=0.02, times=3),)),
    Scene(0.34, _LOSING, _LOST_ANSWERS),
    Scene(0.42, _LOSING, _LOST_ANSWERS, Act.KILL_DELIVERING_WORKER),
    Scene(0.54, "is gone", (), Act.KILL_EMULATOR),
    Scene(0.60, "is gone", (), Act.KILL_OTHER_WORKER),
    Scene(0.66, "is back", (), Act.RESTART_EMULATOR),
    Scene(0.74, "all of these faults at once", _EVERYTHING),
    Scene(0.92, _CALM),
)
