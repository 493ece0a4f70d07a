"""What is printed, and how it fits: pure parts, without a process."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, Dict, List

import pytest

from x402tools._cli import screen
from x402tools._cli.glance import Glance
from x402tools._cli.output import Column, Output, amount_of_bytes, duration, plain, printable
from x402tools._cli.screen import _fitting
from x402tools._cli.watch import Watcher, spark
from x402tools._store import Counts, Tally

COLUMNS = (Column("name", lambda one: one["name"]), Column("amount", lambda one: one["amount"]))


def printed(items: List[Dict[str, Any]], *, as_json: bool = False) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        Output(as_json=as_json).table(COLUMNS, iter(items), empty="none")
    return out.getvalue()


def glance(at: float, *, delivered: int = 0, pending: int = 0, deliverer: Any = 1) -> Glance:
    """A spool that had delivered so much at that moment."""
    counts = Counts(
        Tally(delivered + pending, 0),
        Tally(delivered, 0),
        Tally(pending, 0),
        Tally(),
        Tally(),
        at if pending else None,
        0,
    )
    return Glance("usage.db", counts, deliverer, at, 0, ())


def test_a_long_table_has_one_head() -> None:
    """Rows beyond the first piece stand below the same head, each whole."""
    items = [{"name": f"n{number}", "amount": number} for number in range(1200)]

    head, *rows = printed(items).splitlines()

    assert head.split() == ["name", "amount"]
    assert [row.split() for row in rows] == [[one["name"], str(one["amount"])] for one in items]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_json(count: int) -> None:
    """Written piece by piece, it is one document, an empty one too."""
    items = [{"name": 'a "name"\n', "amount": number} for number in range(count)]

    assert json.loads(printed(items, as_json=True)) == items


@pytest.mark.parametrize(
    ("widths", "right", "whole"),
    [
        ([30, 20, 9], [False, False, True], [True, False, False]),
        ([200, 200, 200], [False, False, False], [True, True, False]),
        ([28, 300, 21, 21], [False, False, True, True], [True, False, False, False]),
        ([5, 5], [False, True], [False, False]),
    ],
)
def test_columns_fit(widths: List[int], right: List[bool], whole: List[bool]) -> None:
    """Together with their gaps they fit; none grows or goes away; text gives way before ids and numbers."""
    fitted = _fitting(widths, right, whole, 79)

    assert sum(fitted) + 2 * len(fitted) <= 79
    assert all(1 <= after <= before for after, before in zip(fitted, widths))
    assert all(after == before for after, before, is_number in zip(fitted, widths, right) if is_number)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (-1, "0.0 s"), (0.25, "0.2 s"), (59, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: Any, text: str) -> None:
    """The two largest units that say something."""
    assert duration(seconds) == text


def test_sizes_and_text() -> None:
    """Bytes in the unit that fits; what a terminal would obey, as an escape."""
    assert (amount_of_bytes(512), amount_of_bytes(1536), amount_of_bytes(2**31)) == ("512 bytes", "1.5 KiB", "2.0 GiB")
    assert printable("a\x1b[1mb\n") == "a\\x1b[1mb\\n"
    assert plain({"tally": Tally(1, 2), "list": (1, 2)}) == {"tally": {"events": 1, "units": 2}, "list": [1, 2]}


def test_rates_and_standstill() -> None:
    """The rate is over the last seconds; a standstill counts from the last delivery, while something waits."""
    watcher = Watcher()

    first = watcher.add(glance(100.0, delivered=0, pending=50))
    second = watcher.add(glance(102.0, delivered=40, pending=10))
    third = watcher.add(glance(110.0, delivered=40, pending=10))
    nobody = watcher.add(glance(111.0, delivered=40, pending=10, deliverer=None))
    last = watcher.add(glance(112.0, delivered=50, pending=0))

    assert (first.delivered_rate, second.delivered_rate) == (None, 20.0)
    assert [one.state for one in (second, third, nobody, last)] == ["delivering", "waiting", "nobody delivers", "idle"]
    assert (third.stalled_for, last.stalled_for) == (8.0, None)
    assert third.delivered_rate == 0.0


def test_a_curve() -> None:
    """From nothing to the highest; no curve of nothing."""
    assert spark([0.0, 5.0, 10.0]) == " ▄█"
    assert spark([0.0, 0.0]) == spark([]) == ""


def test_a_column_with_nothing_in_it_leaves_its_room(capsys: pytest.CaptureFixture[str]) -> None:
    """In a terminal an empty column is left out, so that ids beside it stay whole."""
    rows = [["key_1", "", "today"], ["key_2", "", ""]]

    screen.table(["id", "expires", "used"], rows, [False] * 3, [True, False, False])

    shown = capsys.readouterr().out
    assert "expires" not in shown
    assert [line.split() for line in shown.splitlines() if "key_" in line] == [["key_1", "today"], ["key_2"]]
