"""What the demo prints, and what it says when it cannot run."""

from __future__ import annotations

import io
import subprocess
import sys

from x402tools.demo import report
from x402tools.demo.checking import Outcome, Row
from x402tools.demo.progress import Progress
from x402tools.testing import Tally

WITHOUT_GUNICORN = """
import sys
sys.modules["gunicorn"] = None
from x402tools.demo.__main__ import main
sys.exit(main([]))
"""


def test_without_gunicorn() -> None:
    """Without gunicorn the command names the extra to install and exits with 3."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_GUNICORN], check=False, capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 3
    assert 'pip install "x402tools[demo]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_progress_in_a_pipe() -> None:
    """A pipe gets plain lines, at most one a second, and the last one in any case."""
    stream, seconds = io.StringIO(), iter([0.0, 0.0, 0.3, 1.1, 1.1, 1.2])
    progress = Progress(stream, clock=lambda: next(seconds))

    for text in ("one", "two", "three"):
        progress.show(text)
    progress.show("last", last=True)

    assert stream.getvalue() == "one\nthree\nlast\n"


def test_progress_in_a_terminal() -> None:
    """In a terminal a line changes in place, what is said stands above it, and it never fills the last column."""
    stream = io.StringIO()
    progress = Progress(stream, in_place=True)

    progress.show("x" * 100)
    progress.say("said")
    progress.rest()

    line = "x" * 79
    assert stream.getvalue() == f"\r\x1b[K{line}\r\x1b[Ksaid\n{line}\n"


def test_a_table_fits_the_screen() -> None:
    """Long names are cut, figures never are; what differs comes first; beyond 20 envelopes the rest is summed up."""
    rows = [Row(f"a customer with a long name {n}" * 2, Tally(1, 10**9), Tally(1, 10**9)) for n in range(50)]
    rows.append(Row("wrong", Tally(1, 5), Tally(2, 10)))

    lines = report.table(rows, "file", "ledger")

    assert max(map(len, lines)) <= 80
    assert lines[3].split() == ["wrong", "1", "5", "2", "10", "1", "5"]
    assert lines[-3].split()[:2] == ["32", "more"]
    assert lines[-1].split() == ["all", "51", "50,000,000,005", "52", "50,000,000,010", "1", "5"]


def test_what_was_cut_off_is_explained_within_the_screen() -> None:
    """Below the table stands what the line of requests that a kill cut off is, in lines of 80 columns."""
    outcome = Outcome([Row("acme", Tally(1, 10), Tally(1, 10))], 2, 1, 0, 0, 0, [])

    lines = report.bill(outcome)

    assert max(map(len, lines)) <= 80
    assert lines[-4].startswith("cut off")
    assert " ".join(lines[-2:]).startswith("Cut off: a worker was killed inside the request")


def test_a_long_fact_goes_on_below_itself() -> None:
    """No line beyond 80 columns, whatever the figures."""
    text = "1,012 requests answered, 12 without an answer when a worker was killed"

    lines = report.labelled([("Clients", text), ("", "short")])

    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Clients   1,012 requests")
    assert lines[1].startswith(" " * 10)
    assert lines[-1] == " " * 10 + "short"
    assert " ".join(line[10:] for line in lines[:-1]) == text
