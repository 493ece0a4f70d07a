"""Memory between the callers of `record_usage` and the writer thread.

Guarantees, in the order in which they matter to a caller:

1. `put` takes no lock and makes no system call: beside a busy thread either could cost it the interpreter for 5 ms.
   No caller waits for a lock here: a signal handler may record in the middle of a record.
2. An event that was put is taken by exactly one `take`, in the order of putting.
3. Nothing put after `close` stays behind unnoticed: `put` looks at `attention` after it has appended, so either the
   writer's last look finds the event, or the caller finds that the intake is closed.

`attention` is the one flag the request path reads; it is set when there is any reason to do more than append: the
writer sleeps and must be woken, the caller has to wait for a commit, or the intake is closed.
"""

from __future__ import annotations

import itertools
import queue
import secrets
from collections import deque
from typing import Callable, ContextManager, Deque, List, Optional

from x402tools._bell import Bell
from x402tools._event import Event
from x402tools._store import Tally

# Seconds between looks of a caller that waits for room, which is woken when there is any.
_LONGEST_WAIT = 60.0


class Intake:
    """The events of one process that are not in the store yet.

    Args:
        limit: how many events may wait here.
        attention: the flag as it is when the writer is awake; True when every caller has to see its event stored.
    """

    is_journalled = False  # see `_journal`
    # Whether the journal has what the last `take` took; None where nobody knows.
    took_noted: Optional[bool] = False

    def __init__(self, limit: int, attention: bool) -> None:
        # 96 random bits tell apart the ids of every process there will ever be; a forked child makes a new intake.
        self.recorder = secrets.token_hex(12)
        self.limit = limit
        self.attention = attention
        self.closed = False
        self.sleeps = False  # the writer does, and has to be woken
        self.taken = 0  # events, in all; the number of the last batch
        self.events: Deque[Event] = deque()
        self.put: Callable[[Event], None] = self.events.append
        self.next_number: Callable[[], int] = itertools.count(1).__next__
        # A SimpleQueue, because a signal handler may record while the main thread is just waking the writer: its put
        # can be entered twice, the set of an Event cannot.
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._attention_when_awake = attention
        self._drops: Deque[int] = deque()  # amounts that are not added up yet: no lock, as for events
        self._dropped = Tally()  # guarded by the writer's lock
        self._room = Bell()  # rings when events were taken

    def take(self, most: int) -> List[Event]:
        """Up to `most` of the oldest events. Only the holder of the writer's lock takes."""
        pop = self.events.popleft
        taken = [pop() for _ in range(min(most, len(self.events)))]
        self.taken += len(taken)
        return taken

    def held_elsewhere(self, events: int) -> None:
        """So many more (or fewer) taken events are still in memory: they count towards the limit too."""
        self.limit -= events

    def give_back(self, events: List[Event]) -> None:
        """Undoes `take`, for events that could not be handled."""
        self.events.extendleft(reversed(events))
        self.taken -= len(events)

    def withdraw(self, event: Event) -> bool:
        """Takes this very event back, if nobody has taken it yet."""
        try:
            self.events.remove(event)
        except ValueError:
            return False
        return True

    def sleep(self, seconds: float) -> None:
        """The writer waits here for the next event."""
        while not self._wake_ups.empty():
            self._wake_ups.get()
        self.sleeps = self.attention = True
        if not self.recorded() and not self.closed:  # looked at after the flag is up, so that no event slips through
            try:
                self._wake_ups.get(timeout=seconds)
            except queue.Empty:
                pass
        self.sleeps = False
        if not self.closed:
            self.attention = self._attention_when_awake

    def rest(self, seconds: float) -> None:
        """Where callers commit, the writer waits here: whatever they put, unless it is woken."""
        try:
            self._wake_ups.get(timeout=seconds)
        except queue.Empty:
            pass

    def wake(self) -> None:
        """Ends the writer's sleep, or its rest."""
        self._wake_ups.put(None)

    def wait_for_room(self) -> None:
        """Returns when fewer events than the limit wait here, or when the intake is closed."""
        while True:
            rung = self._room.rung
            if self.closed or len(self.events) < self.limit:
                return
            self._room.wait(rung, _LONGEST_WAIT)

    def made_room(self) -> None:
        """Wakes the callers that wait for room; the writer calls it after each commit."""
        self._room.ring()

    def close(self) -> None:
        """From now on every caller notices that it is too late."""
        self.closed = True
        self.attention = True
        self.wake()
        self.made_room()

    def drop(self, event: Event) -> None:
        """Counts an event that was not kept."""
        self._drops.append(event[2])

    def take_dropped(self) -> Tally:
        """What was dropped since this was last asked. Only the holder of the writer's lock asks."""
        taken, self._dropped = self.dropped(), Tally()
        return taken

    def give_back_dropped(self, taken: Tally) -> None:
        """Undoes `take_dropped` when the count could not be stored. Only the holder of the writer's lock does."""
        self._dropped = self._dropped.plus(taken)

    def write(self, event: Event) -> bool:  # noqa: ARG002 - see `_journal`
        """Whether this event, which was put, is as safe as `record` promises, or is made so here; False: it has to
        wait for a commit."""
        return not self._attention_when_awake

    def is_noted(self, event: Event) -> bool:  # noqa: ARG002 - see `_journal`
        """Whether this event, which was put, went on from here after `write` said that it has to wait."""
        return True

    def ready(self) -> int:
        """How many events there are to take."""
        return len(self.events)

    def bring_in(self, *, everything: bool) -> None:
        """The writer begins a turn: what was put and is not on its way by itself is to be in `events`.

        Args:
            everything: also what is on its way; nobody else will see to it.
        """

    def stored(self) -> None:
        """The writer ends a turn, and everything that was taken is in the spool."""

    def tend(self, writing: ContextManager[object]) -> None:
        """What has to be done now and then, by the writer's thread without its lock, which this is."""

    def take_notice(self) -> Optional[str]:
        """What people should know, once. Takes no lock: the main thread asks too, see `_desk`."""
        return None

    def noted(self) -> int:
        """How many of the events waiting here a journal has."""
        return 0

    def end(self, *, all_stored: bool) -> bool:  # noqa: ARG002 - see `_journal`
        """Nothing is put any more that anybody stores. Whether the store had to remember what it has of this."""
        return False

    def recorded(self) -> List[Event]:
        """The events waiting here, oldest first."""
        return list(self.events)

    def waiting(self) -> Tally:
        """How many those are, and their units."""
        events = self.recorded()
        return Tally(len(events), sum(event[2] for event in events))

    def dropped(self) -> Tally:
        """What was dropped and is not in the store's count yet. Only the holder of the writer's lock asks.

        What is dropped meanwhile is left to the next time. Counting is several times as fast as dropping, also of eight
        threads that do nothing else: there would be more to count each time, and nobody stores anything meanwhile.
        """
        pop = self._drops.popleft
        amounts = [pop() for _ in range(len(self._drops))]
        if amounts:
            self._dropped = self._dropped.plus(Tally(len(amounts), sum(amounts)))
        return self._dropped
