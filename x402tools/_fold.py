"""Folds recorded events into POSTs: those of one envelope with the same metadata become one, with the sum of their
amounts. Pure: no store, no clock, nothing is sent.

Two events are of one group when their metadata says the same as JSON: the order of the keys does not count, and 1,
1.0, true and "1" are four different things. An event with an idempotency key of its caller's stays a POST of its own,
under that key.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from x402tools._batch import Post, with_key
from x402tools._columns import Columns, Row
from x402tools._event import LARGEST_AMOUNT, Metadata, event_id

# Of spellings of metadata whose group is known; beyond it they are worked out again. An entry takes some 300 bytes.
_MOST_SPELLINGS = 100_000


class _Group:
    """What the events of a group have added up to since its last POST was full."""

    __slots__ = ("amount", "envelope_id", "events", "metadata", "oldest")

    def __init__(self, envelope_id: str, metadata: Metadata) -> None:
        self.envelope_id = envelope_id
        self.metadata = metadata
        self.amount = self.events = self.oldest = 0


_Member = Tuple[_Group, int, int]  # the amount of an event, and milliseconds since 1970


class Fold:
    """Takes events in, and gives POSTs out.

    Args:
        by: the keys of the metadata that make a group; the others are left out of the POST. None: all of them.
        largest: units of usage; a POST never exceeds it, as long as no event does.
        each: fold nothing: each event becomes a POST under its own id.
        key_field: as in `_batch.encode`; for the keys that are made here.
    """

    def __init__(
        self, *, by: Optional[Sequence[str]], largest: int, each: bool = False, key_field: Optional[str] = None
    ) -> None:
        self._by = by
        self._largest = largest
        self._each = each
        self._key_field = key_field
        self._groups: Dict[Tuple[str, str], _Group] = {}
        self._spellings: Dict[Tuple[Any, ...], _Group] = {}
        self._alone: List[Post] = []
        self._full: List[_Group] = []
        self.events = 0

    @property
    def size(self) -> int:
        """How many POSTs it would be by now."""
        return len(self._groups) + len(self._alone) + len(self._full)

    def add(self, recorder: str, rows: Union[Sequence[Row], Columns]) -> None:
        """Takes the events of a batch in; their types were checked."""
        self.events += len(rows)
        if isinstance(rows, Columns) and not self._each and str not in map(type, rows.numbers):
            members = self._members_by_columns(rows)
        else:
            members = self._members(recorder, rows)
        largest = self._largest
        for group, amount, milliseconds in members:
            if group.events and group.amount + amount > largest:
                self._put_aside(group)
            if not group.events or milliseconds < group.oldest:
                group.oldest = milliseconds
            group.amount += amount
            group.events += 1

    def _members(self, recorder: str, rows: Iterable[Row]) -> Iterator[_Member]:
        """The group of each event, its amount and its time; those that are of none become POSTs at once."""
        spellings = self._spellings
        for number, envelope_id, amount, metadata, milliseconds in rows:
            if self._each or isinstance(number, str):
                key = event_id(recorder, number)
                self._alone.append(Post(key, envelope_id, amount, metadata, milliseconds / 1000))
                continue
            spelling = envelope_id, repr(metadata)  # 1, 1.0, True and "1" are spelled differently
            yield spellings.get(spelling) or self._group(spelling, metadata), amount, milliseconds

    def _members_by_columns(self, columns: Columns) -> Iterator[_Member]:
        """The same for events that are all of a group."""
        known = self._spellings
        members = zip(columns.spellings(self._by), columns.amounts, columns.moments)
        for at, (spelling, amount, milliseconds) in enumerate(members):
            yield known.get(spelling) or self._group(spelling, columns.metadata(at)), amount, milliseconds

    def posts(self) -> List[Post]:
        """Everything that was added, under keys that are new, except for the events that have one."""
        name = secrets.token_hex(12)
        groups = [*self._full, *self._groups.values()]
        return [*self._alone, *(self._post(f"{name}-{number}", group) for number, group in enumerate(groups, 1))]

    def _group(self, spelling: Tuple[Any, ...], metadata: Metadata) -> _Group:
        if len(self._spellings) >= _MOST_SPELLINGS:
            self._spellings.clear()
        envelope_id: str = spelling[0]
        members: Any = json.loads(metadata) if isinstance(metadata, str) else metadata or {}
        if self._by is not None:
            members = metadata = {name: members[name] for name in self._by if name in members}
        meaning = json.dumps(members, sort_keys=True, separators=(",", ":"))
        group = self._groups.get((envelope_id, meaning))
        if group is None:
            group = self._groups[envelope_id, meaning] = _Group(envelope_id, metadata or None)
        self._spellings[spelling] = group
        return group

    def _put_aside(self, group: _Group) -> None:
        full = _Group(group.envelope_id, group.metadata)
        full.amount, full.events, full.oldest = group.amount, group.events, group.oldest
        self._full.append(full)
        group.amount = group.events = 0

    def _post(self, key: str, group: _Group) -> Post:
        metadata = group.metadata if self._key_field is None else with_key(group.metadata, self._key_field, key)
        return Post(key, group.envelope_id, group.amount, metadata, group.oldest / 1000, group.events)


def one_by_one() -> Fold:
    """Folds nothing: for a process that does not coalesce, and finds what another one left to be folded."""
    return Fold(by=None, largest=LARGEST_AMOUNT, each=True)
