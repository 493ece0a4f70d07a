"""Events of a batch by columns: the envelopes, the amounts, and for each key of the metadata the values.

A service records few shapes of metadata: its keys are the same in one event after the other. By rows each of them is
written, read and looked at again for every event; here once for all, and the values go through C, column by column.
That takes half of the time, and adding up a third of it.

    shapes      [[keys, [the values of the first key, those of the second, ...]], ...]; [null, [texts]] where the
                metadata is JSON text; [null, null] where there is none
    which       for each event the place of its shape; only one where there is only one
    envelopes   only one where all are the same
    numbers     of the events; only that of the first where each is one more than the one before
    amounts     only one where all are the same
    first       milliseconds since 1970 when the first event was recorded
    later       for each event the milliseconds after that
"""

from __future__ import annotations

from itertools import compress
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from x402tools._event import Event, Metadata

Row = Tuple[Union[int, str], str, int, Metadata, int]  # of an event; the last is milliseconds since 1970

_MOST_SHAPES = 8  # beyond that, rows are as fast
_PLAIN = {str, int, bool, type(None)}  # what stands in metadata that is a dict, see `_event.snapshot_metadata`


class Shape(NamedTuple):
    """The metadata of events that have the same keys.

    `keys` is None where the metadata is text, the only column, or where there is none, and no column.
    """

    keys: Optional[Tuple[str, ...]]
    columns: Sequence[Sequence[Any]]

    def metadata(self, at: int) -> Metadata:
        """That of one event, a dict of its own."""
        if self.keys is not None:
            return dict(zip(self.keys, (column[at] for column in self.columns)))
        return self.columns[0][at] if self.columns else None

    def all_metadata(self, count: int) -> Iterator[Metadata]:
        if self.keys is not None:
            keys = self.keys
            return (dict(zip(keys, values)) for values in zip(*self.columns))
        return iter(self.columns[0] if self.columns else [None] * count)

    def spellings(self, envelopes: Sequence[str], by: Optional[Sequence[str]]) -> Iterator[Any]:
        """See `Columns`; these are the envelopes of the events of this shape."""
        keys, columns = self.keys, self.columns
        if keys is not None and by is not None:
            columns = [column for key, column in zip(keys, columns) if key in by]
            keys = tuple(key for key in keys if key in by)
        # 1 and True are equal, and two things.
        told_apart = [zip(map(type, column), column) if bool in map(type, column) else column for column in columns]
        return zip(envelopes, [keys] * len(envelopes), *told_apart)


class Columns:
    """The events of a batch; iterating gives their rows."""

    __slots__ = ("amounts", "envelopes", "moments", "numbers", "shapes", "which")

    def __init__(
        self,
        shapes: List[Shape],
        which: List[int],
        envelopes: List[str],
        numbers: List[Union[int, str]],
        amounts: List[int],
        moments: List[int],
    ) -> None:
        self.shapes = shapes
        self.which = which
        self.envelopes = envelopes
        self.numbers = numbers
        self.amounts = amounts
        self.moments = moments  # milliseconds since 1970

    def __len__(self) -> int:
        return len(self.which)

    def __iter__(self) -> Iterator[Row]:
        sources = [shape.all_metadata(len(self)) for shape in self.shapes]
        metadata = (next(sources[at]) for at in self.which)
        return zip(self.numbers, self.envelopes, self.amounts, metadata, self.moments)

    def metadata(self, at: int) -> Metadata:
        """That of one event, a dict of its own."""
        place = self.which[at]
        return self.shapes[place].metadata(at if len(self.shapes) == 1 else self.which[:at].count(place))

    def spellings(self, by: Optional[Sequence[str]]) -> Iterator[Any]:
        """For each event something that is the same only for two with the same envelope and metadata.

        Args:
            by: only these keys of the metadata count; None: all.
        """
        if len(self.shapes) == 1:
            return self.shapes[0].spellings(self.envelopes, by)
        sources = [
            shape.spellings(list(compress(self.envelopes, [at == place for at in self.which])), by)
            for place, shape in enumerate(self.shapes)
        ]
        return (next(sources[at]) for at in self.which)

    def written(self) -> List[Any]:
        """What is written of them, as the head of this file tells."""
        number, first, count = self.numbers[0], self.moments[0], len(self)
        are_in_a_row = isinstance(number, int) and self.numbers == list(range(number, number + count))
        return [
            [[shape.keys, shape.columns or None] for shape in self.shapes],
            0 if len(self.shapes) == 1 else self.which,
            _one_or_all(self.envelopes),
            number if are_in_a_row else self.numbers,
            _one_or_all(self.amounts),
            first,
            [moment - first for moment in self.moments],
        ]


def of_events(events: Sequence[Event]) -> Optional[Columns]:
    """The columns of these events, of which there is one at least; None where rows do better."""
    if len(events) < 2:
        return None
    numbers, envelopes, amounts, metadata, times = map(list, zip(*events))
    keys: List[Any] = [tuple(one) if type(one) is dict else type(one) for one in metadata]
    shapes = list(dict.fromkeys(keys))
    if len(shapes) > min(_MOST_SHAPES, len(events) // 2) or () in shapes:
        return None
    if len(shapes) == 1:
        which, found = [0] * len(events), [_shape(shapes[0], metadata)]
    else:
        places = {shape: place for place, shape in enumerate(shapes)}
        which = [places[its] for its in keys]
        found = [_shape(shape, [one for one, its in zip(metadata, keys) if its == shape]) for shape in shapes]
    if not all(_PLAIN.issuperset(map(type, column)) for shape in found for column in shape.columns):
        return None  # no snapshot has such metadata
    return Columns(found, which, envelopes, numbers, amounts, [int(seconds * 1000) for seconds in times])


def _shape(keys: Any, metadata: List[Any]) -> Shape:
    if isinstance(keys, tuple):
        return Shape(keys, list(zip(*[one.values() for one in metadata])))
    return Shape(None, [] if metadata[0] is None else [metadata])


def _one_or_all(column: List[Any]) -> Any:
    return column[0] if column.count(column[0]) == len(column) else column


def read(written: Sequence[Any]) -> Columns:
    """The columns of what was written.

    Raises:
        TypeError, ValueError: that was not written here.
    """
    shapes, which, envelopes, numbers, amounts, first, later = written
    count = len(later)
    if type(numbers) is int:
        numbers = list(range(numbers, numbers + count))
    which, envelopes, amounts = (_all(column, count) for column in (which, envelopes, amounts))
    _check(count, {int}, which, amounts, later, [first] * count)
    _check(count, {str}, envelopes)
    _check(count, {int, str}, numbers)
    if len(shapes) > _MOST_SHAPES:
        raise ValueError("more shapes than are written")
    sizes = [which.count(place) for place in range(len(shapes))]
    if sum(sizes) != count:
        raise ValueError("an event is of a shape that is not there")
    found = [_read_shape(size, *shape) for size, shape in zip(sizes, shapes)]
    return Columns(found, which, envelopes, numbers, amounts, [first + moment for moment in later])


def _all(column: Any, count: int) -> Any:
    return column if isinstance(column, list) else [column] * count


def _check(count: int, types: Any, *columns: Any) -> None:
    for column in columns:
        if type(column) is not list or len(column) != count or not types.issuperset(map(type, column)):
            raise ValueError("a column has a value of another type, or another length")


def _read_shape(size: int, keys: Any, columns: Any) -> Shape:
    if keys is None and columns is None:
        return Shape(None, [])
    if keys is None:
        (texts,) = columns
        _check(size, {str}, texts)
        return Shape(None, columns)
    _check(len(columns) or 1, {str}, keys)
    _check(size, _PLAIN, *columns)
    return Shape(tuple(keys), columns)
