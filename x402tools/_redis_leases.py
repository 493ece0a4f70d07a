"""What this process has taken from a stream of the engine, and keeps for as long as it gives signs of life.

    new ──read──► ours ──kept, a few times a lease──► ours ──done──► gone
                   │ no sign of life for a lease
                   └──► another process's, under a number of its own there

Entries get local numbers, which rise in the order in which they were read, because the ids of what is taken over from a
dead process are older than those that were read before. Used by the flusher's thread alone.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from x402tools import _redis_scripts
from x402tools._redis_link import Link
from x402tools._store import Tally
from x402tools.errors import SpoolError

# Runs a script on the server: its text, its keys, its arguments. Raises SpoolError.
Run = Callable[[str, Sequence[str], Sequence[Any]], Any]

HALF = 2**32  # units are counted in halves, see `_redis_scripts`

_SIGNS = 4  # of life in the time of a lease
_RELEASED = 24 * 3600 * 1000  # milliseconds idle: longer than any lease, so that anybody takes it at once


class Entry(NamedTuple):
    """A batch as it lies in a stream."""

    number: int
    id: str
    value: bytes
    tally: Tally
    taken_over: bool = False  # or handed out before: some of it may be settled

    @property
    def stored_at(self) -> float:
        """Seconds since 1970, by the engine's clock."""
        return int(self.id.partition("-")[0]) / 1000


class Leases:
    """A consumer of one group.

    Args:
        stream, group: what it reads; both are made when they are missing.
        consumer: names this process among the others.
        lease: seconds.
        clock: seconds that never go back.
        next_number: rises with each call.
    """

    def __init__(
        self,
        link: Link,
        stream: str,
        group: str,
        consumer: str,
        lease: float,
        clock: Callable[[], float],
        next_number: Callable[[], int],
    ) -> None:
        self._link = link
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._lease = lease
        self._clock = clock
        self._next_number = next_number
        self._ids: Dict[int, str] = {}
        self.last = 0  # number of what was read last
        self._look_for_dead_at = 0.0
        self._sign_at = 0.0

    @property
    def ids(self) -> Mapping[int, str]:
        """What is held: id by number."""
        return self._ids

    def make_group(self) -> None:
        """Makes the group, from the first entry on, unless it is there.

        Raises:
            SpoolError
        """
        try:
            self._link.run(_redis_scripts.MAKE_GROUP, [self._stream], [self._group])
        except SpoolError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def read(self, limit: int) -> List[Entry]:
        """Up to so many entries: those of processes that are dead, then new ones.

        Raises:
            SpoolError: what was read in vain is found again after a lease.
        """
        taken: List[Entry] = []
        if self._clock() >= self._look_for_dead_at:
            taken = self._take_over(limit)
            if len(taken) < limit:
                self._look_for_dead_at = self._clock() + self._lease / _SIGNS
        if len(taken) < limit:
            taken += self._read_new(limit - len(taken))
        return taken

    def again(self, after: int) -> List[Entry]:
        """What is held with a number above that, once more, without what another process has by now.

        What was handed out up to that number stays among the `ids`, whoever has it: see `give_sign`.
        """
        if not any(number > after for number in self._ids):
            return []
        lost = self._keep(0)
        self._ids = {number: id_ for number, id_ in self._ids.items() if number <= after or id_ not in lost}
        entries = []
        for number, id_ in self._ids.items():
            if number > after:
                found = self._link.command("XRANGE", self._stream, id_, id_)
                entries += [Entry(number, *one, taken_over=True) for one in _entries(found)]
        return entries

    def still_held(self, entries: Sequence[Entry], run: Run) -> List[Entry]:
        """Those of the entries that are ours on the server that `run` asks, whichever server that is by now."""
        lost = self._keep(0, [entry.id for entry in entries], run)
        for entry in entries:
            if entry.id in lost:
                self.done(entry.number)
        return [entry for entry in entries if entry.id not in lost]

    def give_sign(self) -> None:
        """Keeps what is held. What another process has taken over stays among the `ids`: it was handed out, and who
        deals with it has to find out that it is lost."""
        if self._ids and self._clock() >= self._sign_at:
            self._keep(0)
            self._sign_at = self._clock() + self._lease / _SIGNS

    def release(self) -> None:
        """Lets others have what is held, at once."""
        if self._ids:
            self._keep(_RELEASED)
        self._ids = {}

    def done(self, number: int) -> None:
        """This one is dealt with."""
        self._ids.pop(number, None)

    def _keep(self, idle: int, ids: Optional[Sequence[str]] = None, run: Optional[Run] = None) -> Set[str]:
        """Gives a sign for all that is held, or a sign of death; the ids of what others have by now, or nobody."""
        words = [self._group, self._consumer, idle, *(self._ids.values() if ids is None else ids)]
        return {_text(id_) for id_ in (run or self._link.run)(_redis_scripts.KEEP, [self._stream], words)}

    def _take_over(self, limit: int) -> List[Entry]:
        idle = int(self._lease * 1000)
        answer = self._ask("XAUTOCLAIM", self._stream, self._group, self._consumer, idle, "0", "COUNT", limit)
        return self._hold_all(answer[1] if answer else [], taken_over=True)

    def _read_new(self, limit: int) -> List[Entry]:
        words = ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", limit, "STREAMS", self._stream, ">")
        answer = self._ask(*words)
        return self._hold_all(answer[0][1] if answer else [], taken_over=False)

    def _ask(self, *words: Any) -> Any:
        try:
            return self._link.command(*words)
        except SpoolError as error:
            if "NOGROUP" not in str(error):
                raise
        self.make_group()  # somebody has emptied the server
        return self._link.command(*words)

    def _hold_all(self, answer: Any, *, taken_over: bool) -> List[Entry]:
        """Ours come back too: among the dead's when we were silent for a lease, whoever had them meanwhile, and as new
        ones from a replica that has taken over without knowing who has what. They are handed out already."""
        known = set(self._ids.values())
        entries = []
        for id_, value, tally in _entries(answer):
            if id_ not in known:
                self.last = self._next_number()
                self._ids[self.last] = id_
                entries.append(Entry(self.last, id_, value, tally, taken_over))
        return entries


def _entries(answer: Any) -> Iterator[Tuple[str, bytes, Tally]]:
    """The ids, batches and tallies of an answer; what was deleted meanwhile is an empty place in it."""
    for one in answer:
        if one and one[1]:
            fields = one[1]
            events, high, low = map(int, fields[b"tally"].split())
            yield _text(one[0]), fields[b"batch"], Tally(events, high * HALF + low)


def _text(raw: Any) -> str:
    return raw.decode("ascii") if isinstance(raw, bytes) else str(raw)
