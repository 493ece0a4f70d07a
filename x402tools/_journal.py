"""Memory before the spool of a process that records with `durability="commit"`: an intake whose events are noted in a
file (`_journal_file`) before `record` returns, so that they survive the process. The writer stores them as it stores
all others, some milliseconds later, and then they are taken out of the file. What a killed process left in its file is
stored by another (`_takeover`).

    record ──put──► coming ──write──► steps ──take──► writer ──► spool
                       └─── while the file fails ──────────────► spool, before `record` returns

1. Each event has a place, its number in the order in which they were written. The writer takes them in that order,
   and the number of a batch is the place of its last event. So the one number that the spool keeps of each recorder
   says which of the events in the file it has, and nothing is stored twice or left out.
2. All that changes is one chain of steps. A step is the next one of another only if nobody was quicker (`follow`), so
   whoever is overtaken finds that out, and changes nothing. A step says in which state the file is:

       works ──a write fails, does not return, or is interrupted──► fails ──all before it is stored──► works
         └──────────────────────────close─────────────────────────► closed ◄──────────close─────────────┘

   While it works, every event of the steps is in it. While it fails, those of its steps are not, as far as is known
   (`is_noted`); whoever records waits until the spool has the event, as with "fsync". It works again only when what it
   lacks is stored or written, so nobody takes an event for written that is not.
3. One thread at a time writes to the file, for all: the one that has the pen. It is never the main thread, which a
   signal handler may strike at any point and keep there: that has another thread write, and holds nothing while it
   waits. Of a write that does not return nobody waits for the end. A `__del__` that records in the middle of this
   overtakes what it struck.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import deque
from functools import partial
from typing import Callable, ContextManager, Deque, List, Optional, Sequence, Tuple

from x402tools import _journal_file, _process
from x402tools._batch import MOST_EVENTS
from x402tools._bell import Bell
from x402tools._event import Event
from x402tools._intake import Intake
from x402tools._journal_file import JournalFiles, Segment
from x402tools._journal_steps import CLOSED, FAILS, STUCK_AFTER, WORKS, Pen, Step, Waiting
from x402tools._threads import LastingThread

_LONG = 1024 * 1024  # bytes; then another file is begun although not all of this one is stored
_MOST_FULL = 64  # files of that size; then it counts as failing, because nothing gets into the spool
# Seconds after which another file is begun when all of this one is stored, so that nothing of it lingers. Not after
# each batch, as that costs as much as storing it does.
_ANEW_EVERY = 1.0
_TRY_AGAIN_EVERY = 1.0  # seconds
# Seconds between looks of who waits for the one that writes. It sleeps between them: who waits for the lock gets it
# together with the interpreter, which makes half the events a second of eight threads. Measured, events per second:
# 29,000 waiting for the lock; sleeping 0.2 ms 40,000, 0.5 ms 59,000, 1 ms 63,000.
_LOOK_EVERY = 0.001
_LONGEST_WAIT = 0.1  # seconds between looks of the main thread, which is woken when it is done
_SHORT = 0.005  # seconds that the writer waits for it to begin another file


class JournalledIntake(Intake):
    """An intake with a journal; see there.

    Args:
        limit: as for `Intake`.
        spool: the path of the spool file, beside which the journal is.
        frame: says of these events, of this recorder and of which the first has that place, what is written.
    """

    is_journalled = True

    def __init__(self, limit: int, spool: str, frame: Callable[[str, int, Sequence[Event]], bytes]) -> None:
        super().__init__(limit, attention=True)
        self.recorder = _journal_file.PREFIX + secrets.token_hex(12)
        self._frame = frame
        self._coming: Deque[Event] = deque()
        self.put = self._coming.append
        self.events = Waiting(lambda: self.ready() + len(self._coming))  # type: ignore[assignment]  # see there
        self._files = JournalFiles(spool, self.recorder)
        self._newest = Step(FAILS, (), 0, None, 0, False)
        self._position = self._before = (self._newest, 0)  # of the next event to take: its step, and where in there
        self._pen = Pen()
        self._stored_up_to = 0  # the place: all up to there is in the spool
        self._full: Deque[Tuple[Segment, int]] = deque()  # segments before the one that is written to; their last place
        self._anew_at = self._try_at = 0.0  # moments of time.monotonic()
        self._why: Optional[Exception] = None  # it fails, to be told
        self._untold = [True]  # empty when it was told
        self._work_again(None)
        self._written = Bell()
        self._begin_to_write_for_the_main_thread()
        _process.forget_after_fork(self)

    # -- for who records ---------------------------------------------------------------------------------------------

    def write(self, event: Event) -> bool:
        """Whether the event is in the file; False: it has to wait for a commit.

        Whoever has the pen writes what all have put; the others look now and then whether it is done.
        """
        if threading.get_ident() == threading.main_thread().ident:
            return self._have_written(event)
        pen = self._pen
        if pen.is_mine():
            self._overtake()
            return False
        while not pen.lock.acquire(blocking=False):
            time.sleep(_LOOK_EVERY)
            if event not in self._coming:
                return self._current().state == WORKS
            self._give_up_if_stuck()
            pen = self._pen
        try:
            return self._write_all(pen)
        finally:
            pen.lock.release()

    def _have_written(self, event: Event) -> bool:
        """The same for the main thread, which only waits."""
        if not self._scribe.is_alive():
            self._scribe.start()
        rung, give_up_at = self._written.rung, time.monotonic() + STUCK_AFTER
        self._calls.put(None)
        while event in self._coming and self._current().state == WORKS:
            if not self._scribe.is_alive() or time.monotonic() >= give_up_at:
                self._overtake()
                self._begin_to_write_for_the_main_thread()
                return False
            self._written.wait(rung, _LONGEST_WAIT)
            rung = self._written.rung
            self._give_up_if_stuck()
        return self._current().state == WORKS

    def _begin_to_write_for_the_main_thread(self) -> None:
        """By another thread, when the one that did it does not come back."""
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._scribe = LastingThread(partial(self._write_when_called, self._calls), "x402tools-journal")
        self._scribe.start()

    def _write_when_called(self, calls: queue.SimpleQueue[None]) -> None:
        while self._current().state != CLOSED and self._calls is calls:
            calls.get()
            pen = self._pen
            while not pen.lock.acquire(timeout=_LONGEST_WAIT):
                pen = self._pen
            try:
                self._write_all(pen)
            finally:
                pen.lock.release()
            self._written.ring()

    def is_noted(self, event: Event) -> bool:
        """See `Intake`: not one that was put and neither written nor brought in."""
        return event not in self._coming

    def withdraw(self, event: Event) -> bool:
        """See `Intake`. What is in the file may be stored by whoever finds that, and cannot be taken back."""
        self._overtake()  # or it is in what somebody else is just writing, and goes on from there
        self._new(self._current())
        return _discard(self._coming, event)

    # -- for the writer, with its lock -------------------------------------------------------------------------------

    def bring_in(self, *, everything: bool) -> None:
        """See `Intake`. What was put and is not written yet is left to who has the pen, unless it is `everything`."""
        self._give_up_if_stuck()
        if everything and self._coming:
            self._overtake()
        step = self._current()
        while self._coming and step.state != WORKS:
            events = self._new(step)
            if events:
                last = step.last + len(events)
                self._go_on(step, Step(step.state, events, last, step.segment, step.end, step.is_noted))
            step = self._current()

    def take(self, most: int) -> List[Event]:
        """See `Intake`; `took_noted` is the same for all of them."""
        self._before = step, at = self._position
        taken: List[Event] = []
        while len(taken) < most:
            if at < len(step.events):
                if taken and step.is_noted != self.took_noted:
                    break
                self.took_noted = step.is_noted
                some = step.events[at : at + most - len(taken)]
                taken += some
                at += len(some)
            elif step.following is None:
                break
            else:
                step, at = step.following, 0
        self._position = step, at
        self.taken += len(taken)
        return taken

    def give_back(self, events: List[Event]) -> None:
        self._position = self._before
        self.taken -= len(events)

    def recorded(self) -> List[Event]:
        coming = self._coming.copy()  # first: what goes on meanwhile is found further on
        found = [event for _, events in self._steps() for event in events]
        known = set(map(id, found))
        return found + [event for event in coming if id(event) not in known]

    def ready(self) -> int:
        taken = self.taken  # first: what goes on meanwhile may not make it less than nothing
        return self._current().last - taken

    def stored(self) -> None:
        self._stored_up_to = self.taken

    # -- for the writer's thread, without its lock --------------------------------------------------------------------

    def noted(self) -> int:
        return sum(len(events) for step, events in self._steps() if step.is_noted)

    def take_notice(self) -> Optional[str]:
        if self._why is None or not self._untold:
            return None
        try:
            self._untold.pop()
        except IndexError:
            return None  # another thread came first, and tells it
        return f"the journal beside the spool cannot be written ({self._why}): events wait for a commit"

    def tend(self, writing: ContextManager[object]) -> None:
        """See `Intake`: takes out of the files what is stored, and puts one that failed to work again.

        Nobody waits for this when the disk does not answer, but where a file is to work again.
        """
        if self._current().state == CLOSED:
            return
        stored, now, step = self._stored_up_to, time.monotonic(), self._current()
        self._files.mark(stored)
        if step.state == FAILS and now >= self._try_at:
            self._try_at = now + _TRY_AGAIN_EVERY
            self._work_again(writing)
        elif step.state == WORKS and self._coming:
            self._write_rest()
        is_all_stored = step.last == stored and now >= self._anew_at
        if step.state == WORKS and step.end > 0 and (is_all_stored or step.end >= _LONG):
            self._anew_at = now + _ANEW_EVERY
            self._begin_another(step)
        self._remove(stored)

    def end(self, *, all_stored: bool) -> bool:
        """Nothing more is written. Deletes the files when all of it is in the spool, or else leaves them to be found.

        Returns:
            Whether the spool may forget the number of the last batch.
        """
        step = self._current()
        while not self._go_on(step, step.but(CLOSED, False)):
            step = self._current()
        self._files.mark(self._stored_up_to)
        self._calls.put(None)
        pen = self._pen
        # In the middle of a write, its descriptor must not become that of another file.
        is_free = not pen.is_mine() and pen.lock.acquire(timeout=_SHORT)
        is_empty = is_free and all_stored and step.last == self.taken
        if is_free and step.segment is not None:
            step.segment.cut(step.end)  # what an exception left there, of which somebody was told that it is lost
        for segment in self._segments(step):
            segment.may_be_closed &= is_free
            if is_empty:
                segment.remove()
            else:
                segment.close()
        self._files.release(empty=is_empty)
        if is_free:
            pen.lock.release()
        return is_empty and step.last > 0

    def forget(self) -> None:
        """In a forked child, which makes an intake of its own."""
        step = self._current()
        self._newest = step.but(CLOSED, False)
        for segment in self._segments(step):
            segment.close()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _current(self) -> Step:
        step = self._newest
        while step.following is not None:
            step = step.following
        self._newest = step  # or an older one, if another thread came in between: there is a way from there
        return step

    def _steps(self) -> List[Tuple[Step, Sequence[Event]]]:
        """Those with events that are not taken, and these events."""
        step, at = self._position
        found: List[Tuple[Step, Sequence[Event]]] = []
        following: Optional[Step] = step
        while following is not None:
            events = following.events[at:]
            if events:
                found.append((following, events))
            following, at = following.following, 0
        return found

    def _segments(self, step: Step) -> List[Segment]:
        return [segment for segment, _ in list(self._full)] + ([step.segment] if step.segment is not None else [])

    def _new(self, step: Step) -> List[Event]:
        """What was put and is not in a step yet, if that one is still the current one."""
        if not step.is_left_out:
            self._leave_out(step)
        return list(self._coming)[:MOST_EVENTS]

    def _go_on(self, step: Step, following: Step) -> bool:
        """Makes it the current one after that one; False when another one is by now."""
        if not following.events:
            self._new(step)  # the last moment for what an exception left there: only the current step is looked at
        if not step.follow(following):
            return False
        self._leave_out(following)
        return True

    def _leave_out(self, step: Step) -> None:
        """Takes the events of the step out of what was put and is in no step."""
        for event in step.events:
            if not self._coming:
                break
            _discard(self._coming, event)
        step.is_left_out = True  # not if an exception came in between: the next one to look does it once more

    def _overtake(self) -> None:
        """Goes on without the write that is under way, if there is one; it may still reach the file."""
        step = self._current()
        if step.state == WORKS:
            self._go_on(step, step.but(FAILS, None))

    def _give_up_if_stuck(self) -> None:
        pen, step = self._pen, self._current()
        if not pen.is_stuck():
            return
        for segment in self._segments(step):
            segment.may_be_closed = False
        self._why = OSError("the disk does not answer")
        self._overtake()
        self._pen = Pen()

    # -- the file ----------------------------------------------------------------------------------------------------

    def _write_all(self, pen: Pen) -> bool:
        """Writes what was put, with the pen. Whether all of it is in the file that was put before this call."""
        step = self._current()
        while step.state == WORKS and self._pen is pen:
            events = self._new(step)
            if step.following is None:  # or they have another place, or one already
                if not events:
                    return True
                self._write_some(step, events, pen)
            step = self._current()
        return False

    def _write_rest(self) -> None:
        """What was put by somebody who did not come to write it, because of an exception."""
        pen = self._pen
        if not pen.is_mine() and pen.lock.acquire(blocking=False):
            try:
                self._write_all(pen)
            finally:
                pen.lock.release()

    def _write_some(self, step: Step, events: List[Event], pen: Pen) -> None:
        segment = step.segment
        assert segment is not None
        try:
            data = self._frame(self.recorder, step.last + 1, events)
            pen.waits_since = time.monotonic()
            segment.write(data, step.end)
        except (OSError, MemoryError) as error:
            self._fail(step, error)
            return
        finally:
            pen.waits_since = None
        is_current = self._go_on(step, Step(WORKS, events, step.last + len(events), segment, step.end + len(data)))
        if is_current:
            return
        current = self._current()
        if current.state != WORKS or current.segment is not segment:
            segment.cut(step.end)  # it was overtaken, and nobody writes there any more
        if self._pen is not pen:
            segment.may_be_closed = True
            segment.close()

    def _fail(self, step: Step, error: Exception) -> None:
        self._try_at = time.monotonic() + _TRY_AGAIN_EVERY
        self._why = error
        if step.state == WORKS:
            self._go_on(step, step.but(FAILS, False))

    def _begin_another(self, step: Step) -> None:
        if len(self._full) >= _MOST_FULL:
            self._fail(step, OSError(f"{_MOST_FULL} MiB of it are not in the spool"))
            return
        try:
            segment = self._files.new_segment()
        except OSError as error:
            if not self._files.are_ours:  # others may take what is written for that of a process that is gone
                self._fail(step, error)
            return
        pen = self._pen
        is_begun = False
        if pen.lock.acquire(timeout=_SHORT):
            try:
                step = self._current()
                is_begun = step.state == WORKS and self._begin(step, segment, 0)
            finally:
                pen.lock.release()
        if not is_begun:
            segment.remove()

    def _work_again(self, writing: Optional[ContextManager[object]]) -> None:
        """Has the file work, another one, if all that was taken is stored.

        Args:
            writing: the writer's lock; None where there is no writer yet.
        """
        segment = None
        try:
            segment = self._files.new_segment()
            with writing or contextlib.nullcontext():
                is_begun = self._write_again(self._current(), segment)
        except (OSError, MemoryError) as error:
            self._why = error
            is_begun = False
        if segment is not None and not is_begun:
            segment.remove()

    def _write_again(self, step: Step, segment: Segment) -> bool:
        if step.state != FAILS or self.taken != self._stored_up_to:
            return False
        end, place, steps = 0, self.taken + 1, self._steps()
        for _, events in steps:
            data = self._frame(self.recorder, place, events)
            segment.write(data, end)
            end, place = end + len(data), place + len(events)
        if not self._begin(step, segment, end):
            return False
        for lacking, _ in steps:
            lacking.is_noted = True
        return True

    def _begin(self, step: Step, segment: Segment, end: int) -> bool:
        """Goes on in that one, which is written up to that byte."""
        if not self._go_on(step, Step(WORKS, (), step.last, segment, end)):
            return False
        if step.segment is not None:
            self._full.append((step.segment, step.last))
            step.segment.close()
        return True

    def _remove(self, stored: int) -> None:
        """Deletes the files before the current one of which all is stored."""
        gone: List[Segment] = []
        pen = self._pen
        if self._full and not pen.is_mine() and pen.lock.acquire(timeout=_SHORT):
            try:
                while self._full and self._full[0][1] <= stored:
                    gone.append(self._full.popleft()[0])
            finally:
                pen.lock.release()
        for segment in gone:
            segment.remove()


def _discard(events: Deque[Event], event: Event) -> bool:
    try:
        events.remove(event)
    except ValueError:
        return False
    return True
