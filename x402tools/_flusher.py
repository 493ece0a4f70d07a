"""Takes the oldest sealed POSTs from the store, has them delivered, and settles them. Knows neither HTTP nor SQLite.

One thread, the flusher, owns everything here and needs no lock. Sender threads only do the waiting:

    store ──load──► ready ──hand out──► senders ──► inbox ──note──► acknowledged, buried, held ──settle──► store
                      ▲                                  └──► waiting (back-off) ──┐
                      └────────────────────────────────────────────────────────────┘

Everything the thread is told comes through the inbox: answers of the senders, and reasons to look up (None). A POST
counts as pending until `settle` has returned; a crash before that sends it again under the same key, or has it held
(`_doubts`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections import deque
from typing import Callable, Deque, List, Optional, Sequence, Tuple, Union

from x402tools._batch import Post
from x402tools._bell import Flag
from x402tools._doubts import Delivery, Doubts
from x402tools._fleet import Fleet
from x402tools._fold import Fold, one_by_one
from x402tools._folder import Folder
from x402tools._folders import Folders
from x402tools._gate import Gate
from x402tools._pace import Pace
from x402tools._retry import Backoff
from x402tools._senders import Answer, Deliver, Senders
from x402tools._store import Acknowledgement, Burial, Holding, Part, Store
from x402tools._threads import LastingThread
from x402tools._verdict import Move, Verdict
from x402tools.errors import SpoolError

log = logging.getLogger("x402tools")

# A process that dies sends again what it had not settled: keep that time short, but a commit for every POST would
# cost as much as the POST. Seconds, POSTs.
SETTLE_EVERY = 0.04
SETTLE_AT = 200

# Read ahead for about a tenth of a second of sending, not further: what is read is held in memory.
_LOW_WATER = 300  # POSTs
_BATCHES_PER_LOAD = 20

# POSTs held in memory at the most, those that wait for their next attempt included.
_MOST_HELD = 20_000

# How long one POST waits after a failure while others pass; in an outage the gate waits, for all of them. Short at
# first, because most failures are passing ones, and never long, because flush() waits for the unluckiest. Seconds.
_FIRST_PAUSE, _LONGEST_PAUSE, _SHORTEST_PAUSE = 0.1, 10.0, 0.01
# The longest while nothing at all gets through: the few POSTs that do not close the gate ask as seldom as it would.
_LONGEST_PAUSE_IN_TROUBLE = 30.0

_SHORTEST_INTERVAL = 0.01  # seconds; an idle flusher looks at the store that often at the most
_STANDBY = 0.5  # seconds between attempts to become the one that delivers
_STORE_TROUBLE = 0.5  # seconds to wait after the store failed
_IDLE = 60.0  # seconds; a wake-up comes through the inbox

# `stop` waits so many seconds beyond its deadline for what was answered by then to be written down: it would be sent
# again otherwise. A commit takes milliseconds.
_LAST_SETTLEMENT = 0.15

# Why a POST is held that no answer of this process is about.
_UNDER_WAY = "it may have been under way when an earlier process ended"
_TOO_OLD = "its outcome has been unknown for longer than idempotency_window"


class Observer:
    """What the flusher tells about; every method is called on its thread and must return at once."""

    def attempted(self, seconds: float) -> None: ...

    def settled(self, delivered: List[Post], buried: List[Burial]) -> None: ...

    def held(self, held: List[Holding]) -> None: ...

    def gate_changed(self, reason: Optional[str]) -> None: ...

    def store_failed(self, error: Optional[SpoolError]) -> None: ...


class Flusher:
    """Delivers from a store, as long as this process has the claim on it.

    Args:
        store: where sealed POSTs come from and are settled.
        deliver: one attempt at one POST, called on sender threads with its body and its key; returns when the service
            has it, raises an `X402Error` otherwise.
        observer: is told what happens.
        concurrency: how many POSTs may be under way at once, at the most; see `_pace`.
        max_attempts: this many 5xx for one POST, while others pass, make it a dead letter.
        flush_at: so many newly stored events start a delivery at once.
        flush_interval: seconds after which a delivery starts anyway.
        new_fold, window: how events are folded that are stored as recorded only; see `_folder`.
        hold_after: seconds after which a POST whose outcome is unknown is held; None: never. See `_doubts`.
        clock: seconds that never go back.
        body: the body of a POST; the same one for every attempt.
        longest_wait: seconds for which what is stored may wait at the most, whatever flush_interval says.
        parts: what of the store is folded apart; all of it together, unless it is said.
    """

    def __init__(
        self,
        store: Store,
        deliver: Deliver,
        observer: Observer,
        *,
        concurrency: int,
        max_attempts: int,
        flush_at: int,
        flush_interval: float,
        hold_after: Optional[float] = None,
        new_fold: Callable[[], Fold] = one_by_one,
        window: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        body: Callable[[Post], bytes] = Post.body,
        longest_wait: Callable[[], float] = lambda: math.inf,
        parts: Optional[Sequence[Part]] = None,
    ) -> None:
        self._longest_wait = longest_wait
        self._store = store
        self._observer = observer
        self._max_attempts = max_attempts
        self._flush_at = flush_at
        self._flush_interval = max(flush_interval, _SHORTEST_INTERVAL)
        self._clock = clock
        self._senders = Senders(deliver, concurrency, body)
        self._doubts = Doubts(store, hold_after, concurrency, clock)
        look_every = self._flush_interval
        folders = [
            Folder(part, new_fold, window=window, look_every=look_every, longest_wait=longest_wait, clock=clock)
            for part in parts or [store]
        ]
        self._folder: Union[Folder, Folders] = folders[0] if len(folders) == 1 else Folders(folders)
        self._gate = Gate()
        self._fleet = Fleet(store, clock)
        self._pace = Pace(concurrency)
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, _SHORTEST_PAUSE)
        self._pauses_in_trouble = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE_IN_TROUBLE, _SHORTEST_PAUSE)
        self._ready: Deque[Delivery] = deque()
        self._waiting: List[Tuple[float, int, Delivery]] = []  # a heap by the moment of the next attempt
        self._tie = itertools.count()
        self._acknowledged: List[Acknowledgement] = []
        self._buried: List[Burial] = []
        self._held: List[Holding] = []
        self._settle_by: Optional[float] = None  # None: nothing to settle
        self._loaded_up_to = 0  # sequence number
        self._load_at = 0.0
        self._found_nothing = False  # by the last load
        self._stored_since_load = 0
        self.store_trouble: Optional[SpoolError] = None  # why the last turn failed at the store
        self._stop_by: Optional[float] = None  # None: not stopping
        self._settled_at_stop = Flag()  # what was answered by the deadline of stop() is written down
        self._looked_since_stop = False
        self._end_lock = threading.RLock()  # guards the two below: who comes last closes the store
        self._ended = False
        self._abandoned = False  # stop() has given up waiting
        self._untidy = False
        self._delivered_count = 0
        self.retries = 0
        self.unknown_resends = 0
        self.delivering = False
        self.thread = LastingThread(self._run, "x402tools-flusher")

    # -- called from other threads -------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, if that is possible; see `LastingThread.start`."""
        self.thread.start()

    def stored(self, events: int) -> None:
        """Tells that events were stored by this process."""
        self._stored_since_load += events  # only a hint: a lost update delays a delivery by flush_interval
        if self._stored_since_load >= self._flush_at:
            self._senders.inbox.put(None)

    def hurry(self) -> None:
        """Has everything that is stored delivered now, rather than after flush_interval or the end of a window."""
        self._folder.hurry()
        self._senders.inbox.put(None)

    def stop(self, deadline: float) -> bool:
        """Delivers what is stored until `deadline` (of the clock), then ends; True when the thread has ended.

        POSTs under way at the deadline are not waited for, only for those answered by then to be written down; the
        thread stays to settle the others as long as the process lives. Called twice, it waits again, and the earlier
        deadline holds.
        """
        self._stop_by = deadline if self._stop_by is None else min(deadline, self._stop_by)
        self.hurry()
        if not self.thread.was_started:
            return True
        self.thread.join(deadline - self._clock())
        if self.thread.is_alive():
            self._settled_at_stop.wait(_LAST_SETTLEMENT)
        with self._end_lock:
            self._abandoned = not self._ended
            return self._ended

    @property
    def ended(self) -> bool:
        """True once the thread does nothing more."""
        return self._ended

    @property
    def in_flight(self) -> int:
        """POSTs under way."""
        return self._senders.busy

    @property
    def in_flight_limit(self) -> int:
        """How many may be, at the moment; 0 while another process delivers."""
        return self._pace.limit if self.delivering else 0

    @property
    def gate_reason(self) -> Optional[str]:
        """Why nothing is sent at the moment, or None."""
        return self._gate.reason or self._fleet.reason

    def turn(self, longest: float) -> None:
        """Does one turn of the thread's work in the calling thread, for at most about `longest` seconds and a POST.

        For a process in which no thread can be started; only one thread may do so at a time.
        """
        self._senders.wait(min(self._safe_step(), longest))

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            stopping = self._is_stopping_now()
            pause = self._safe_step()
            if self._is_finished():
                break
            if stopping and self._settle_by is None:
                self._settled_at_stop.set()
            self._senders.wait(pause)
        self._senders.stop()
        self._store.release()
        with self._end_lock:
            self._ended = True
            nobody_closes = self._abandoned
        if nobody_closes:
            self._store.close()

    def _safe_step(self) -> float:
        try:
            pause = self.step()
            self._set_store_trouble(None)
            return pause
        except SpoolError as error:
            self._set_store_trouble(error)
        except Exception:  # the edge of the thread: it must outlive anything, and what is stored stays stored
            log.exception("the flusher failed unexpectedly; nothing is lost and it tries again")
        return _STORE_TROUBLE

    def step(self) -> float:
        """One turn; returns the seconds until the next, unless the inbox has something before that."""
        told_to_stop = False
        for message in self._senders.messages():
            if message is None:
                self._load_at, self._found_nothing = 0.0, False
                self._folder.look_now()
                told_to_stop = self._stop_by is not None
            else:
                self._note(message)
        self._settle()
        self.delivering = self._store.claim()
        if not self.delivering:
            self._loaded_up_to = 0
            self._folder.reset()
            self._looked_since_stop |= told_to_stop
            return _STANDBY
        if self._is_stopping_now():
            self._doubts.withdraw([*self._ready, *(delivery for _, _, delivery in self._waiting)])
        else:
            if self._folder.turn(self._may_seal()):
                self._load_at = 0.0
            self._load()
            self._gate_noted(self._fleet.tell)
            self._gate_noted(self._hand_out)
        self._looked_since_stop |= told_to_stop
        return self._pause()

    def _note(self, answer: Answer) -> None:
        delivery, verdict, seconds = answer
        self._observer.attempted(seconds)
        now = self._clock()
        if verdict.move is Move.ACKNOWLEDGE:
            self._note_sense(answer, now)
            self._delivered_count += 1
            self._acknowledged.append(Acknowledgement(delivery.place, delivery.post))
        elif verdict.move is Move.BURY or self._is_hopeless(delivery, verdict):
            if verdict.move is Move.BURY:  # the service answered sensibly, so it is there
                self._note_sense(answer, now)
            self._bury(delivery, verdict)
        else:
            self._note_failure(answer, now)
            if self._doubts.failed(delivery, unknown=verdict.unknown):
                self._settle_by = self._settle_by or now + SETTLE_EVERY
            if self._doubts.must_be_held(delivery):
                self._hold(delivery, verdict.reason if verdict.unknown else _TOO_OLD)
                return
            self.retries += 1
            pauses = self._pauses if self._gate.reason is None else self._pauses_in_trouble
            due = now + pauses.seconds(min(delivery.attempts, 20))
            heapq.heappush(self._waiting, (due, next(self._tie), delivery))
            return
        if self._settle_by is None:
            self._settle_by = now + SETTLE_EVERY

    def _note_sense(self, answer: Answer, now: float) -> None:
        """The service dealt with a POST: what that says of how many it may get."""
        self._gate_noted(lambda: self._gate.answered(now))
        self._fleet.answered()
        if not self._gate.trying_out:
            self._pace.answered(now, answer.delivery.sent_at, answer.seconds)

    def _note_failure(self, answer: Answer, now: float) -> None:
        """The same of a POST that has to be tried again."""
        delivery, verdict, _ = answer
        may_be_its_own_fault = verdict.strike and delivery.attempts > 1
        is_too_much = verdict.crowded and not may_be_its_own_fault and self._pace.refused(now, delivery.sent_at)
        was_open = not self._gate.trying_out
        self._gate_noted(lambda: self._gate.failed(verdict, now, delivery.place, is_too_much=is_too_much))
        self._fleet.failed(verdict, self._gate.seconds_closed(now))
        if was_open and self._gate.trying_out:
            self._pace.start_over(now)

    def _is_hopeless(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Counts strikes. In an outage nothing is delivered in between, so that an outage kills nothing."""
        others_pass = self._delivered_count > delivery.delivered_then >= 0
        first_failure = delivery.delivered_then < 0
        if verdict.strike and (others_pass or first_failure):
            delivery.strikes += 1
        delivery.delivered_then = self._delivered_count
        return delivery.strikes >= self._max_attempts and others_pass

    def _bury(self, delivery: Delivery, verdict: Verdict) -> None:
        burial = Burial(delivery.place, delivery.post, verdict.reason, verdict.status_code, delivery.attempts)
        self._buried.append(burial)

    def _hold(self, delivery: Delivery, reason: str) -> None:
        self._held.append(Holding(delivery.place, delivery.post, reason))
        self._settle_by = self._settle_by or self._clock() + SETTLE_EVERY

    def _settle(self) -> None:
        if self._settle_by is None:
            return
        count = len(self._acknowledged) + len(self._buried) + len(self._held)
        is_due = count >= SETTLE_AT or self._clock() >= self._settle_by or self._is_stopping_now()
        if not is_due and self._senders.busy:
            return
        self._doubts.take_back()
        self._store.settle(self._acknowledged, self._buried, self._held)
        acknowledged, buried, held = self._acknowledged, self._buried, self._held
        self._acknowledged, self._buried, self._held, self._settle_by, self._untidy = [], [], [], None, True
        if held:
            self._observer.held(held)
        self._observer.settled([done.post for done in acknowledged], buried)

    def _may_load(self) -> bool:
        held = len(self._ready) + len(self._waiting) + self._senders.busy
        return len(self._ready) < _LOW_WATER and held < _MOST_HELD

    def _may_seal(self) -> bool:
        """Whether what is sealed now could be sent soon."""
        return len(self._ready) < _LOW_WATER and self._gate.seconds_closed(self._clock()) <= 0

    def _load(self) -> None:
        if not self._may_load() or self._clock() < self._load_at:
            return
        self._stored_since_load = 0
        batches = self._store.oldest_sealed(self._loaded_up_to, _BATCHES_PER_LOAD)
        for batch in batches:
            self._loaded_up_to = max(self._loaded_up_to, batch.sequence)  # what is in memory has negative numbers
            for place, post in batch.posts:
                delivery = Delivery(place, post)
                if batch.sent:
                    self._doubts.recall(delivery, batch.sent)
                if self._doubts.must_be_held(delivery):
                    self._hold(delivery, _UNDER_WAY)
                else:
                    self._ready.append(delivery)
        self._found_nothing = not batches
        if not batches:
            self._load_at = self._clock() + min(self._flush_interval, self._longest_wait())
            self._tidy()

    def _tidy(self) -> None:
        idle = not self._ready and not self._waiting and not self._senders.busy and self._settle_by is None
        if idle and self._untidy and self._folder.is_idle:
            self._store.tidy()
            self._untidy = False

    def _hand_out(self) -> None:
        now = self._clock()
        if self._gate.seconds_closed(now) > 0:
            return
        room = self._pace.limit - self._senders.busy
        # What failed before must not be the one to try the gate out as long as there is another: a POST that can never
        # be delivered would keep it closed, and all the others behind it.
        new_ones_first = self._gate.trying_out and bool(self._ready)
        room = self._fleet.allowed(self._due(now, room))
        while room > 0:
            if self._waiting and self._waiting[0][0] <= now and not new_ones_first:
                delivery = heapq.heappop(self._waiting)[2]
            elif self._ready:
                delivery = self._ready.popleft()
            else:
                return
            room -= self._send(delivery, now)

    def _due(self, now: float, most: int) -> int:
        """How many could go out now, up to `most`."""
        count = len(self._ready)
        if count < most and self._waiting and self._waiting[0][0] <= now:
            count += sum(due <= now for due, _, _ in heapq.nsmallest(most - count, self._waiting))
        return min(count, most)

    def _send(self, delivery: Delivery, now: float) -> int:
        """Sends a POST, or holds it, or puts it off when the store has to know of it first and cannot; how many are
        under way more."""
        if self._doubts.must_be_held(delivery):
            self._hold(delivery, _TOO_OLD)
            return 0
        try:
            may_send = self._doubts.may_send(delivery, self._ready)
        except SpoolError:
            self._ready.appendleft(delivery)
            raise
        if not may_send:
            heapq.heappush(self._waiting, (now + _STORE_TROUBLE, next(self._tie), delivery))
            return 0
        if delivery.last_was_unknown:
            self.unknown_resends += 1
        delivery.attempts += 1
        delivery.sent_at = now
        self._senders.send(delivery)
        return 1

    def _pause(self) -> float:
        """Seconds until something is due that no message in the inbox will tell of."""
        now = self._clock()
        moments = [now + _IDLE]
        if self._settle_by is not None:
            moments.append(self._settle_by)
        if self._is_stopping_now():
            return max(min(moments) - now, 0.0)
        if self._stop_by is not None:
            moments.append(self._stop_by)
        if self._may_load():
            moments.append(self._load_at)
        moments.append(self._folder.next_turn(self._may_seal()))
        if self._senders.busy < self._pace.limit:
            gate_opens = now + max(self._gate.seconds_closed(now), self._fleet.seconds_closed())
            if self._ready:
                moments.append(gate_opens)
            elif self._waiting:
                moments.append(max(self._waiting[0][0], gate_opens))
        return max(min(moments) - now, 0.0)

    def _is_stopping_now(self) -> bool:
        return self._stop_by is not None and self._clock() >= self._stop_by

    def _is_finished(self) -> bool:
        if self._stop_by is None:
            return False
        if not self._looked_since_stop and not self._is_stopping_now():
            return False  # what was stored just before the stop is not loaded yet
        if self._senders.busy or (self._settle_by is not None and self.store_trouble is None):
            return False
        nothing_left = not self._ready and not self._waiting and self._found_nothing and not self._folder.is_hurried
        return self._is_stopping_now() or not self.delivering or nothing_left

    def _gate_noted(self, change: Callable[[], None]) -> None:
        before = self.gate_reason is None
        change()
        if before != (self.gate_reason is None):
            self._observer.gate_changed(self.gate_reason)

    def _set_store_trouble(self, error: Optional[SpoolError]) -> None:
        had_none, self.store_trouble = self.store_trouble is None, error
        if had_none != (error is None):
            self._observer.store_failed(error)
