"""The spool file that is open: always the one at the path, and never a damaged one for long.

Before every operation the path is looked at (a `stat`, some microseconds). When the file was deleted or replaced under
us, the one that is there now is used, or a new one is made. When an operation hits upon damage, the file is set aside
under a name that says so and a new one is made. Either way what can be read of the old one is carried over before
anything else happens (`_carry`). A file that nobody can reach by a name any more is still read through the connection
that is open on it, so usage is not lost with it as long as the process lives.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from x402tools import _spool_file
from x402tools._carry import Reader, carry_over
from x402tools._connection import Connection, DamagedError, plain
from x402tools._fair_lock import FairLock
from x402tools._spool_rows import ARRIVING
from x402tools._spool_setup import Aside, alone, make_ready
from x402tools.errors import SpoolError

log = logging.getLogger("x402tools")

_LOOK_EVERY = 0.05  # seconds between looks of who waits for the lock whether that is in vain
_SHORTEST_WAIT = 0.02  # seconds for the lock once the time given by `give_up_at` is over


class _Leftover(NamedTuple):
    """A file that is not used any more, and from which events are still to be carried over."""

    read: Reader
    close: Callable[[], None]
    origin: str
    message: str


class OpenFile:
    """The file at `path`, for the operations of one process; one operation at a time.

    Args:
        path, make_folder, sync: see `_spool.Spool`.
        on_change: called when another file is in use, before anything else is done with it.

    Raises:
        SpoolError: the file cannot be made or used; it names the path and what to do.
    """

    def __init__(self, path: str, *, sync: str, make_folder: bool, on_change: Callable[[Connection], None]) -> None:
        self.path = path
        self.notices: List[str] = []  # what was mended, for people
        self._sync = sync
        self._on_change = on_change
        self._lock = FairLock()  # guards everything here, and one operation of its user
        self._give_up_at: Optional[float] = None
        self._leftovers: List[_Leftover] = []
        self._changed = False  # another file is in use, and its user does not know yet
        self._log: Tuple[int, Optional[Tuple[int, int]]] = (0, None)  # which opening of the file; its log's identity
        _spool_file.ensure(path, make_folder=make_folder)  # the folder, because `alone` needs it
        with alone(path):
            aside = make_ready(path, make_folder=make_folder)
            self._identity = _spool_file.identity(path)
            self._connection = Connection(path, sync, ARRIVING)
        if aside is not None:
            self._leave(aside)
        try:
            self._try()
        except DamagedError:  # set aside by now
            self._try()

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """The connection, for one operation. One that hits upon damage fails, and works when it is repeated."""
        self._take_turn()
        try:
            try:
                self._follow_the_path()
                yield self._connection
                self._look_at_the_log()
            except DamagedError as error:
                self._set_aside(str(error))
                raise
        finally:
            self._lock.release()

    def _take_turn(self) -> None:
        """Waits for the lock, not beyond the end."""
        while not self._lock.acquire(timeout=self._longest_wait()):
            if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                raise SpoolError(f"{self.path}: the disk does not answer")

    def _longest_wait(self) -> float:
        if self._give_up_at is None:
            return _LOOK_EVERY
        return max(min(_LOOK_EVERY, self._give_up_at - time.monotonic()), _SHORTEST_WAIT)

    def give_up_at(self, moment: Optional[float]) -> None:
        """From that moment of `time.monotonic()` on no operation waits for the disk: it raises SpoolError."""
        self._give_up_at = self._connection.give_up_at = moment

    def go_on(self, seconds: float) -> None:
        """Waits for the disk for so long from now on, where less was said."""
        if self._give_up_at is not None:
            self.give_up_at(max(self._give_up_at, time.monotonic() + seconds))

    def is_in_use_here(self) -> bool:
        """See `Connection.is_in_use_here`."""
        return self._lock.is_mine() or self._connection.is_in_use_here()

    def close(self) -> None:
        self._connection.close()
        while self._leftovers:  # the new file could not be written to until the end
            left = self._leftovers.pop()
            left.close()
            log.error("%s; what was pending there could not be carried over", left.message)

    def _try(self) -> None:
        with self.use() as connection:
            connection.rows("SELECT 1")

    def _follow_the_path(self) -> None:
        if not self.is_at_the_path():
            with alone(self.path):
                if not os.path.lexists(self.path) or self._log[1] == self._identity_of_log():
                    # Left behind by the file that is gone. SQLite would write them into the one that is there now.
                    _spool_file.set_aside(self.path, only_logs=True)
                aside = make_ready(self.path, make_folder=False)
                old, origin = self._connection, "{}:{}".format(*self._identity)
                old.may_open = False  # it would open the file that is there now, and carry that over into itself
                self._switch()
            if aside is not None:
                self._leave(aside)
            message = f"{self.path} was deleted or replaced while it was open: the file that is there now is used"
            self._leftovers.append(_Leftover(old.rows, old.close, origin, message))
        if self._leftovers or self._changed:
            self._carry_over()

    def is_at_the_path(self) -> bool:
        """Whether the file that is in use is still the one at the path."""
        try:
            return _spool_file.identity(self.path) == self._identity
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SpoolError(f"{self.path}: {error.strerror}") from error

    def _look_at_the_log(self) -> None:
        """SQLite makes a new log when it opens the file, at the first statement, and keeps it until it closes it."""
        if self._log[0] != self._connection.openings:
            self._log = self._connection.openings, self._identity_of_log()

    def _identity_of_log(self) -> Optional[Tuple[int, int]]:
        try:
            return _spool_file.identity(self.path + "-wal")
        except OSError:
            return None

    def _set_aside(self, reason: str) -> None:
        with alone(self.path):
            if not self.is_at_the_path():
                return  # another process was first; the next operation follows it
            old = self._connection
            old.may_open = False
            aside = Aside(_spool_file.set_aside(self.path), reason)
            self._leave(aside)
            make_ready(self.path, make_folder=False)
            self._switch()
            old.close()

    def _switch(self) -> None:
        self._identity = _spool_file.identity(self.path)
        self._connection = Connection(self.path, self._sync, ARRIVING)
        self._connection.give_up_at = self._give_up_at
        self._log = 0, None

    def _leave(self, aside: Aside) -> None:
        connection = plain(aside.path)  # opens the file when it is first read
        self._leftovers.append(
            _Leftover(
                lambda sql, parameters: connection.execute(sql, parameters).fetchall(),
                connection.close,
                "{}:{}".format(*_spool_file.identity(aside.path)),
                f"{self.path} is damaged ({aside.reason}): it is kept as {aside.path} and a new one is used",
            )
        )

    def _carry_over(self) -> None:
        """Nothing else happens before this is done: a new event could take the number of one that is carried over."""
        self._changed = True
        while self._leftovers:
            left = self._leftovers[0]
            with alone(self.path):
                carried = carry_over(left.read, self._connection, left.origin)
            left.close()
            del self._leftovers[0]
            self.notices.append(f"{left.message}; {carried.events} pending or dead events were carried over")
        self._on_change(self._connection)
        self._changed = False
