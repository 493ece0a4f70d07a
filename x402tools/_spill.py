"""A local spool behind a server: while the server is away, or full, batches go to a file, and are handed on later.

    deposit ──► server                       the ordinary way
         └────► file ──hand on──► server     while the server does not take it, and until the file has nothing of ours

A batch is handed on under the id it was recorded with, and the server adds no batch twice. It takes a lower number of
the same recorder for one that it has; so as long as anything of this process lies in the file, what comes later goes
there too. Several processes may share the file: the one that holds its claim hands on, for all.

In the ledger of the file "delivered" means handed on. A batch of which nobody knows whether the server has it is
counted in both until it is handed on. What was dropped has no id: while nobody knows whether the server has counted it,
it is counted here, in memory.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

from x402tools._batch import EncodedBatch
from x402tools._redis_link import RefusedError
from x402tools._redis_partitions import Partitions
from x402tools._redis_store import Engine
from x402tools._spool import Deposit, Spool
from x402tools._store import Acknowledgement, Counts, Tally
from x402tools.errors import SpoolError

# Seconds for which a server that did not answer is not asked by who stores: each time-out is waited for.
_LEFT_ALONE = 1.0

_AT_ONCE = 20  # batches
_TURNS = 50  # of so many batches, before a caller is let go on

# In the file everything is frozen, and in one part; before the id of a batch stands what is still to be folded on the
# server, and in which partition it belongs: "fold|p3|<recorder>/<number>".
_TO_FOLD = "fold"

_NOTHING = Counts(Tally(), Tally(), Tally(), Tally(), Tally(), None, 0)


class Spilling:
    """A server, and a file for when it is away. What is not told here is the server's own.

    Raises:
        SpoolError: the file holds what is for another server.
    """

    is_shared = True

    def __init__(
        self, engine: Union[Engine, Partitions], spool: Spool, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._spool = spool
        self._mine_up_to: Optional[int] = None  # in the file: the last batch of this process; None: it has none
        self._unsure: Optional[Tuple[int, Tally]] = None  # a deposit the server may have, and what was dropped with it
        self._may_hold = True  # the file may have something to hand on
        self._known = _NOTHING
        self._is_away = False
        self._clock = clock
        self._ask_at = 0.0
        self.path = engine.path
        self.notices: List[str] = engine.notices
        spool.bind(engine.path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    # -- writing -------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        self.deposit(Deposit(0, batches, dropped=dropped))

    def deposit(self, deposit: Deposit) -> None:
        """Stores all of it on the server, or else in the file.

        Raises:
            SpoolError: neither takes it.
        """
        is_asked = False
        if self._clock() >= self._ask_at and not self._has_mine():
            try:
                self._find_out_dropped()
                is_asked = True
                self._engine.deposit(deposit)
            except RefusedError:
                raise
            except SpoolError as error:
                self._note_away(str(error))
            else:
                self._note_back()
                return
        self._spill(deposit._replace(dropped=Tally()) if is_asked else deposit)
        if is_asked and deposit.dropped.events:
            self._unsure = deposit.number, deposit.dropped

    def has_deposit(self, number: int) -> bool:
        """See `Spool.has_deposit`. Where nobody can say: no, because doing it again doubles nothing here."""
        if self._spool.has_deposit(number):
            return True
        try:
            return self._engine.has_deposit(number)
        except SpoolError:
            return False

    def append_alone(self, batch: EncodedBatch) -> None:
        try:
            self._engine.append_alone(batch)
        except SpoolError:
            self._spool.append_alone(_for_the_file(batch))

    def look(self) -> None:
        """Hands on what lies in the file, if the server is there again; about once a second."""
        try:
            self._engine.look()
            self._find_out_dropped()
            if self._may_hold:
                self._hand_on()
        except RefusedError:
            raise
        except SpoolError as error:
            self._note_away(str(error))
            self._spool.look()
        else:
            self._note_back()

    def _find_out_dropped(self) -> None:
        """Takes to the file what was dropped with the last deposit that the server did not answer, unless it has it."""
        if self._unsure is None:
            return
        number, dropped = self._unsure
        if not self._engine.has_deposit(number):
            self._spool.append([], dropped)
        self._unsure = None

    def sync(self) -> None:
        if self._mine_up_to is not None:
            self._spool.sync()

    def make_room(self) -> None:
        self._spool.make_room()

    def _spill(self, deposit: Deposit) -> None:
        self._spool.deposit(deposit._replace(batches=[_for_the_file(batch) for batch in deposit.batches]))
        self._may_hold = True
        if deposit.batches:
            self._mine_up_to = self._spool.last_sequence()

    def _has_mine(self) -> bool:
        """Whether something of this process is still in the file, after an attempt to hand it on."""
        if self._mine_up_to is None:
            return False
        try:
            self._hand_on()
        except RefusedError:
            raise
        except SpoolError as error:
            self._note_away(str(error))
        oldest = self._spool.first_sequence()
        if oldest is None or oldest > self._mine_up_to:
            self._mine_up_to = None
        return self._mine_up_to is not None

    def _hand_on(self) -> None:
        """Takes batches from the file to the server, oldest first.

        Raises:
            SpoolError: one of the two does not work; nothing is lost and nothing doubled.
        """
        if not self._spool.claim():
            return  # another process hands on, also what is ours
        for _ in range(_TURNS):
            batches = self._spool.oldest_sealed(0, _AT_ONCE)
            if not batches:
                self._may_hold = False
                self._spool.tidy()
                self._spool.release()  # whoever has something to hand on next takes it
                return
            raw = self._spool.encoded([batch.sequence for batch in batches])
            self._engine.deposit(Deposit(0, [_for_the_server(batch) for batch in raw]))
            done = [Acknowledgement(place, post) for batch in batches for place, post in batch.posts]
            self._spool.settle(done, [])

    # -- looking -------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """The server's, as far as it is known, and what is only in the file."""
        try:
            self._known = self._engine.counts()
        except SpoolError as error:
            self._note_away(str(error))
        here, known = self._spool.counts(), self._known
        dropped = here.dropped.plus(self._unsure[1]) if self._unsure is not None else here.dropped
        oldest = [at for at in (known.oldest_pending_at, here.oldest_pending_at) if at is not None]
        return known._replace(
            recorded=known.recorded.plus(here.pending).plus(dropped).plus(here.dead),
            pending=known.pending.plus(here.pending),
            dropped=known.dropped.plus(dropped),
            dead=known.dead.plus(here.dead),
            oldest_pending_at=min(oldest, default=None),
            size=known.size + here.size,
        )

    def _note_away(self, why: str) -> None:
        self._ask_at = self._clock() + _LEFT_ALONE
        if not self._is_away:
            self._is_away = True
            self.notices.append(f"{why}; events go to {self._spool.path} until it is back")

    def _note_back(self) -> None:
        self._ask_at = 0.0
        if self._is_away:
            self._is_away = False
            self.notices.append(f"{self.path}: the server is back; what {self._spool.path} has is handed on")

    # -- both ------------------------------------------------------------------------------------------------------

    def give_up_at(self, moment: Optional[float]) -> None:
        self._engine.give_up_at(moment)
        self._spool.give_up_at(moment)

    def go_on(self, seconds: float) -> None:
        self._engine.go_on(seconds)
        self._spool.go_on(seconds)

    def close(self) -> None:
        try:
            self._find_out_dropped()
        except SpoolError:  # it is away; rather count a loss twice than not at all
            if self._unsure is not None:
                with contextlib.suppress(SpoolError):
                    self._spool.append([], self._unsure[1])
        self._spool.close()
        self._engine.close()

    def is_in_use_here(self) -> bool:
        return self._engine.is_in_use_here() or self._spool.is_in_use_here()


def _for_the_file(batch: EncodedBatch) -> EncodedBatch:
    words = [] if batch.is_sealed else [_TO_FOLD]
    if batch.partition:
        words.append(f"p{batch.partition}")
    return batch._replace(id="|".join([*words, batch.id]), is_sealed=True, partition=0)


def _for_the_server(batch: EncodedBatch) -> EncodedBatch:
    *words, id_ = batch.id.split("|")
    partitions = [int(word[1:]) for word in words if word != _TO_FOLD]
    return batch._replace(id=id_, is_sealed=_TO_FOLD not in words, partition=partitions[0] if partitions else 0)
