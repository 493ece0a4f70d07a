"""What a terminal shows; the only door to rich."""

from __future__ import annotations

import sys
import textwrap
from types import TracebackType
from typing import List, Optional, Sequence, Tuple, Type, Union

from rich import box
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

_NARROWEST = 10  # columns that every column of a table is left with, if its cells need as many
_GAP = 2  # columns between two of them


def console(*, stderr: bool = False) -> Console:
    """The terminal. Nothing in what is shown is taken for markup, a number or an emoji."""
    return Console(file=sys.stderr if stderr else sys.stdout, markup=False, emoji=False, highlight=False)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], whole: Sequence[bool]) -> None:
    """A table that fits the terminal; long cells go on below themselves, and those of `whole` columns last. A column
    that has nothing in it leaves its room to the others."""
    filled = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    widest = [max(len(row[at]) for row in (titles, *rows)) for at in filled]
    widths = _fitting(widest, [right[at] for at in filled], [whole[at] for at in filled], console().width - 1)
    for at, width in zip(filled, widths):
        shown.add_column(titles[at], justify="right" if right[at] else "left", overflow="fold", width=width)
    for row in rows:
        shown.add_row(*(Text(row[at]) for at in filled))
    console().print(shown)


def _fitting(widest: Sequence[int], right: Sequence[bool], whole: Sequence[bool], width: int) -> List[int]:
    """The widths of columns that fit: text gives way first, the widest most, then what is `whole`, then numbers."""
    widths = list(widest)
    room = width - _GAP * len(widths)
    orders = (
        [at for at in range(len(widths)) if not whole[at] and not right[at]],
        [at for at in range(len(widths)) if whole[at]],
        list(range(len(widths))),
    )
    for columns, least in zip(orders, (_NARROWEST, _NARROWEST, 1)):
        while sum(widths) > room and any(widths[at] > least for at in columns):
            widths[max(columns, key=lambda at: widths[at])] -= 1
    return widths


def fact(label: str, text: str) -> None:
    """A line of facts."""
    console().print(Text.assemble((label, "bold"), text), soft_wrap=True)


def styled(*parts: Union[str, Tuple[str, str]]) -> Text:
    """A text of parts, each a str or a pair of a str and its style."""
    return Text.assemble(*parts)


class Bar:
    """A progress bar, on stderr so that stdout may go into a pipe."""

    def __init__(self, what: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=1, note="")

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, note: str, done: int, total: Optional[int]) -> None:
        """How far it is now."""
        self._progress.update(self._task, completed=done, total=total, note=note)

    def say(self, text: str) -> None:
        """A line that stays above it."""
        self._progress.console.print(Text(text), soft_wrap=False)


class Picture:
    """A picture that is drawn anew in place, until the block ends."""

    def __init__(self) -> None:
        self._live = Live(console=console(), auto_refresh=False, transient=False)

    def __enter__(self) -> Picture:
        self._live.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._live.stop()

    def draw(self, title: str, lines: Sequence[Text]) -> None:
        """Draws it, in a frame that fits the terminal."""
        width = min(console().width, 80)
        self._live.update(Panel(Text("\n").join(lines), title=Text(title), width=width, box=box.ROUNDED), refresh=True)


def wrapped(text: str, width: int) -> List[str]:
    """The text in lines of that width."""
    return textwrap.wrap(text, max(width, 20)) or [""]


def marked(head: str, style: str, text: str) -> None:
    """A line whose head has a style."""
    console().print(Text.assemble((head, style), text), soft_wrap=True)
