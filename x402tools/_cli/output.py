"""What a command prints: JSON, or tables and facts, with frames and colours in a terminal and plainly in a pipe.

A terminal gets lines that fit it, and whole numbers with separators. A pipe gets nothing that was cut, no escape codes
and plain digits, so that `grep`, `awk` and `sort` find what they expect. What people are told beside the result goes
to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from datetime import datetime, timezone
from itertools import chain, islice
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from x402tools._cli import screen
from x402tools._store import Tally

# Of a long table: the widths are those of the first so many rows, so that no list is ever held whole.
_ROWS_AT_ONCE = 500

_WIDEST_PROSE = 80  # columns
_GAP = "  "


class Column(NamedTuple):
    """A column of a table. Whole numbers stand at the right.

    Attributes:
        title: what stands above it.
        value: the value of an item in it.
        whole: it stays on one line in a terminal as long as there is room for it: ids are there to be copied.
    """

    title: str
    value: Callable[[Any], Any]
    whole: bool = False


class Output:
    """Where a command prints its result.

    Args:
        as_json: print JSON instead of text.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.is_terminal = not as_json and sys.stdout.isatty()

    def table(self, columns: Sequence[Column], items: Iterable[Any], *, empty: str) -> int:
        """Prints a row for each item, or as JSON a list of them; returns how many there were.

        Args:
            empty: said on stderr when there are none.
        """
        if self.as_json:
            return self._json_list(items)
        count, rest = 0, iter(items)
        widths: List[int] = []
        while True:
            rows = [[self.text(column.value(item)) for column in columns] for item in islice(rest, _ROWS_AT_ONCE)]
            right = [isinstance(value, _Number) for value in (rows[0] if rows else [])]
            if not rows:
                break
            if self.is_terminal:
                screen.table([column.title for column in columns], rows, right, [column.whole for column in columns])
            else:
                widths = self._plain_rows([column.title for column in columns], rows, right, widths)
            count += len(rows)
        if not count:
            say(empty)
        return count

    def facts(self, pairs: Iterable[Tuple[str, Any]], document: Any = None) -> None:
        """Prints labelled facts, a line each; as JSON the document."""
        if self.as_json:
            self.json(document)
            return
        shown = [(label, self.text(value)) for label, value in pairs]
        margin = max((len(label) for label, _ in shown), default=0) + len(_GAP)
        for label, text in shown:
            if not self.is_terminal:
                print(f"{label:<{margin}}{text}".rstrip())
                continue
            lines = textwrap.wrap(text, max(columns() - margin - 1, 20)) or [""]
            for at, line in enumerate(lines):
                screen.fact(f"{'' if at else label:<{margin}}", line)

    def json(self, value: Any) -> None:
        """One JSON document."""
        print(json.dumps(plain(value), indent=2, ensure_ascii=False))

    def json_line(self, value: Any) -> None:
        """One JSON document on one line, at once."""
        print(json.dumps(plain(value), ensure_ascii=False), flush=True)

    def text(self, value: Any) -> str:
        """A value for people."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return _Number(f"{value:,}" if self.is_terminal else str(value))
        if isinstance(value, datetime):
            return moment(value)
        if isinstance(value, (dict, list)):
            return printable(json.dumps(value, ensure_ascii=False))
        return printable(str(value))

    def tally(self, tally: Tally) -> str:
        """A number of events and of units."""
        return ", ".join(
            f"{self.text(count)} {word if count == 1 else word + 's'}"
            for count, word in ((tally.events, "event"), (tally.units, "unit"))
        )

    def _json_list(self, items: Iterable[Any]) -> int:
        """A list, an item a line, written while it comes."""
        count = 0
        for count, item in enumerate(items, 1):
            print(("[" if count == 1 else ",") + "\n  " + json.dumps(plain(item), ensure_ascii=False), end="")
        print("\n]" if count else "[]")
        return count

    def _plain_rows(self, titles: List[str], rows: List[List[str]], right: List[bool], widths: List[int]) -> List[int]:
        is_first = not widths
        if is_first:
            widths = [max(map(len, cells)) for cells in zip(titles, *rows)]
        for row in chain([titles] if is_first else [], rows):
            cells = (
                cell.rjust(width) if at_right else cell.ljust(width)
                for cell, width, at_right in zip(row, widths, right)
            )
            print(_GAP.join(cells).rstrip())
        return widths


class _Number(str):
    """A number as text."""


def say(text: str) -> None:
    """Tells people something, on stderr: a paragraph that fits the terminal, one line in a pipe."""
    text = "\n".join(printable(line) for line in text.splitlines())
    if sys.stderr.isatty():
        width = columns() - 1
        text = "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.splitlines())
    print(text, file=sys.stderr, flush=True)


def columns() -> int:
    """How many columns a paragraph may take."""
    return min(shutil.get_terminal_size((_WIDEST_PROSE, 24)).columns, _WIDEST_PROSE)


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey: names come from the service and from files."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def moment(when: Optional[datetime]) -> str:
    """A time in UTC, to the second."""
    return "" if when is None else when.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def at(seconds: float) -> datetime:
    """A time from seconds since 1970; a damaged row may hold any number."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, timezone.utc)


def duration(seconds: Optional[float]) -> str:
    """A time span in the two largest units that say something."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = int(seconds)
    parts: List[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, whole = divmod(whole, size)
        if amount or parts:
            parts.append(f"{amount} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def amount_of_bytes(count: int) -> str:
    """A size for people."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def plain(value: Any) -> Any:
    """The value as JSON can say it: dataclasses and named tuples become objects, times ISO 8601 in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(member) for name, member in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return value


def first(items: Iterable[Any], limit: Optional[int]) -> Iterator[Any]:
    """The first items, and a word on stderr when there are more."""
    rest = iter(items)
    yield from islice(rest, limit)
    if limit is not None and next(rest, None) is not None:
        say(f"(there are more than {limit}; see --limit)")
