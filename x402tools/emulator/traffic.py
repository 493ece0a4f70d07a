"""What became of the requests to the API: second by second for the page, and how many POSTs of usage were refused."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any, Callable, Deque, Dict, List, Optional

SECONDS = 90  # What the page shows of the past.
OK, REFUSED, FAILED = range(3)
# Refusals of a POST that say nothing of the record in it: a key that is wrong, a client that came too often or too
# slowly. Everything else below 500 refuses the record itself, and sending it again cannot help.
NOT_FOR_GOOD = (401, 403, 408, 429)
SAME_AS_FAILED = (408, 429)


class Traffic:
    """Counts answers. Not safe for threads: the emulator counts in its event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: Deque[List[int]] = deque(maxlen=SECONDS + 1)  # and the second that is under way
        self._newest = int(clock())
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._seconds.clear()
        self._seconds.extend([0, 0, 0] for _ in range(SECONDS + 1))
        self._refused: Counter[str] = Counter()

    def count(self, method: str, path: str, status: Optional[int]) -> None:
        """Count one answer; None stands for a connection that ended without one."""
        self._go_on()
        self._seconds[-1][_outcome(status)] += 1
        is_record = method == "POST" and path == "/usage"
        if is_record and status is not None and 400 <= status < 500 and status not in NOT_FOR_GOOD:
            self._refused[str(status)] += 1

    def to_json(self) -> Dict[str, Any]:
        """``seconds``: answers that were fine, refusals and failures in each of the last seconds, the newest, which is
        over, last. ``refused``: POSTs of usage that were refused for good since the start, by status."""
        self._go_on()
        return {"seconds": list(self._seconds)[:-1], "refused": dict(self._refused)}

    def _go_on(self) -> None:
        now = int(self._clock())
        for _ in range(min(now - self._newest, SECONDS + 1)):
            self._seconds.append([0, 0, 0])
        self._newest = now


def _outcome(status: Optional[int]) -> int:
    """Refused: as it is, it will never be taken. Failed: it may be, another time."""
    if status is None or status >= 500 or status in SAME_AS_FAILED:
        return FAILED
    return OK if status < 400 else REFUSED
