"""`x402tools replay`: each event of a file on the bill once, however often it is stopped and begun again."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
from typing import List, Union

import pytest

from tests.buffer.helpers import wait_until
from tests.cli.running import COLUMNS, Shell, event, lines_on_screen, written
from x402tools._cli.usage_lines import BadHeaderError, Source
from x402tools._inspect import SpoolView
from x402tools.demo.usage_file import LONGEST_LINE, BadLine, UsageLine
from x402tools.errors import SpoolError
from x402tools.testing import Emulator, Fault


def recorded(path: pathlib.Path) -> int:
    """How many events the spool has ever taken; 0 while there is none."""
    try:
        with SpoolView(str(path)) as view:
            return view.counts().recorded.events
    except SpoolError:
        return 0


def read(text: Union[str, bytes], kind: str = "csv") -> List[Union[UsageLine, BadLine, None]]:
    """The events of a file with this content."""
    content = text.encode() if isinstance(text, str) else text
    return [entry.event for entry in Source(io.BytesIO(content)).entries(kind)]


def fingerprints(content: bytes) -> List[str]:
    return [entry.fingerprint for entry in Source(io.BytesIO(content)).entries("ndjson")]


def test_a_file_with_bad_lines(shell: Shell, emulator: Emulator) -> None:
    """Good lines are billed; bad ones are told with their number and kept word for word; the exit code says so."""
    envelope_id = emulator.create_envelope()
    lines = [
        event(envelope_id, 5, n=1),
        "{",
        event(envelope_id, -1),
        "",
        event(envelope_id, 6),
        event(envelope_id, "1"),
    ]
    path = written(shell.folder / "usage.ndjson", *lines)

    ended = shell.call("replay", path, "--json")

    assert ended.code == 4
    assert (ended.json["lines"], ended.json["recorded"], ended.json["rejected"]) == (5, 2, 3)
    assert [bad["number"] for bad in ended.json["bad_lines"]] == [2, 3, 6]
    assert "line 2: is not JSON" in ended.err
    assert "line 3: amount must be" in ended.err
    rejected = pathlib.Path(f"{path}.rejected")
    assert rejected.read_text().splitlines() == ["{", json.dumps(lines[2]), json.dumps(lines[5])]
    assert rejected.stat().st_mode & 0o077 == 0
    assert (emulator.ledger().events, emulator.ledger().units) == (2, 11)


def test_killed_and_begun_again(shell: Shell, emulator: Emulator) -> None:
    """Killed while it delivers, the same command goes on: each line is billed once, without help from the service's
    memory of keys but for what was under way."""
    envelope_id, count = emulator.create_envelope(), 1500
    path = written(shell.folder / "usage.ndjson", *(event(envelope_id, 1, line=line) for line in range(count)))
    spool = shell.folder / "usage.ndjson.replay.db"
    emulator.set_faults(Fault.latency(0.02))
    process = shell.start("replay", path)
    wait_until(lambda: recorded(spool) and emulator.ledger().events > 20, "it delivers")

    process.send_signal(signal.SIGKILL)
    process.wait()
    stored, billed = recorded(spool), emulator.ledger().events
    emulator.clear_faults()
    ended = shell.call("replay", path, "--json")

    ledger = emulator.ledger()
    assert billed < count
    assert ended.code == 0, ended.err
    assert (ended.json["skipped"], ended.json["recorded"]) == (stored, count - stored)
    assert (ledger.events, ledger.units) == (count, count)
    lines = sorted(one.metadata["line"] for one in emulator.events() if one.metadata)
    assert lines == list(range(count))
    assert ledger.repeats_dropped < 250  # what was under way, and answered but not yet written down


def test_replayed_twice(shell: Shell, emulator: Emulator) -> None:
    """The second time nothing is sent at all; without its spool the same keys are sent, and booked once."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", *(event(envelope_id) for _ in range(5)))
    shell.call("replay", path)
    requests = emulator.ledger().requests

    again = shell.call("replay", path, "--json")
    asked_again = emulator.ledger().requests - requests
    piped = shell.run("replay", "-", "--json", stdin=path.read_text())

    assert (again.code, again.json["skipped"], again.json["recorded"]) == (0, 5, 0)
    assert asked_again <= 1  # the look at the ledger itself
    assert (piped.code, piped.json["recorded"], piped.json["spool"]) == (0, 5, None)
    assert emulator.ledger().events == 5
    assert emulator.ledger().repeats_dropped == 5
    assert os.listdir(shell.folder / "home" / "state" / "x402tools") == []


def test_a_file_that_has_grown(shell: Shell, emulator: Emulator) -> None:
    """Of a file that was appended to, only the new lines are reported."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", event(envelope_id, 1), event(envelope_id, 2))
    shell.call("replay", path)
    with path.open("a") as file:
        file.write(json.dumps(event(envelope_id, 4)) + "\n")

    ended = shell.call("replay", path, "--json")

    assert (ended.code, ended.json["skipped"], ended.json["recorded"]) == (0, 2, 1)
    assert (emulator.ledger().events, emulator.ledger().units) == (3, 7)


@pytest.mark.parametrize("change", ["another line", "fewer lines"])
def test_another_file_under_the_name(shell: Shell, emulator: Emulator, change: str) -> None:
    """A file that was changed where it was replayed already is refused, and nothing of it is billed."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", *(event(envelope_id, amount) for amount in (1, 2, 3)))
    shell.call("replay", path)
    amounts = {"another line": (1, 9, 3, 4), "fewer lines": (1, 2)}[change]
    written(path, *(event(envelope_id, amount) for amount in amounts))

    ended = shell.call("replay", path)

    assert ended.code == 1
    assert "usage.ndjson.replay.db" in ended.err
    assert emulator.ledger().units == 6


def test_a_spool_of_something_else(shell: Shell, emulator: Emulator) -> None:
    """The spool of a service is not taken for that of a file."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", event(envelope_id))
    shell.call("replay", path)
    os.remove(f"{path}.replay.db.position")

    ended = shell.call("replay", path)

    assert ended.code == 1
    assert "something else" in ended.err


def test_interrupted(shell: Shell, emulator: Emulator) -> None:
    """Ctrl-C ends it in order, says that the same command goes on, and it does."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", *(event(envelope_id) for _ in range(50)))
    emulator.set_faults(Fault.status(503))
    process = shell.start("replay", path)
    wait_until(lambda: recorded(shell.folder / "usage.ndjson.replay.db") == 50, "it has recorded")

    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    emulator.clear_faults()
    ended = shell.call("replay", path)

    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert ended.code == 0
    assert emulator.ledger().events == 50


def test_nothing_moves(shell: Shell, emulator: Emulator) -> None:
    """With a key that is refused it gives up after its patience, keeps everything, and says why."""
    path = written(shell.folder / "usage.ndjson", event(emulator.create_envelope()))

    ended = shell.run("replay", path, "--patience", "0.5", X402TOOLS_API_KEY="sk_wrong")

    assert ended.code == 4
    assert "goes on" in ended.err
    assert emulator.ledger().events == 0


def test_dry_run(shell: Shell, emulator: Emulator) -> None:
    """Only checks: nothing is sent, nothing is made, and no key is needed."""
    path = written(shell.folder / "usage.ndjson", event("env_1"), "nonsense")
    del shell.environment["X402TOOLS_API_KEY"]
    before = sorted(os.listdir(shell.folder))

    ended = shell.run("replay", path, "--dry-run", "--json")

    assert (ended.code, ended.json["recorded"], ended.json["rejected"]) == (4, 1, 1)
    assert sorted(os.listdir(shell.folder)) == before
    assert emulator.ledger().events == 0


def test_csv_is_billed_and_its_bad_lines_can_be_replayed(shell: Shell, emulator: Emulator) -> None:
    """Columns become metadata; the bad lines are kept below the header, so that they can be corrected and replayed."""
    envelope_id = emulator.create_envelope()
    path = shell.folder / "usage.csv"
    path.write_text(f"envelope_id,amount,metadata.endpoint\n{envelope_id},3,/api\n{envelope_id},x,/x\n")

    ended = shell.call("replay", path)
    rejected = pathlib.Path(f"{path}.rejected")
    rejected.write_text(rejected.read_text().replace(",x,", ",4,"))
    corrected = shell.call("replay", rejected, "--format", "csv")

    assert (ended.code, corrected.code) == (4, 0), corrected.err
    assert [(one.amount, one.metadata) for one in emulator.events()] == [
        (3, {"endpoint": "/api"}),
        (4, {"endpoint": "/x"}),
    ]


def test_in_a_terminal(shell: Shell, emulator: Emulator) -> None:
    """A bar that fits 80 columns, bad lines above it, and the figures at the end."""
    envelope_id = emulator.create_envelope()
    path = written(shell.folder / "usage.ndjson", *(event(envelope_id) for _ in range(20)), "nonsense " * 30)

    shown = shell.in_terminal("replay", path)

    lines = lines_on_screen(shown.out)
    assert shown.code == 4
    assert max(map(len, lines)) <= COLUMNS
    assert any(line.startswith("line 21: ") for line in lines)
    assert any("replaying" in line for line in lines)
    assert any(line.split() == ["delivered", "20"] for line in lines)


# -- reading -----------------------------------------------------------------------------------------------------


def test_csv_as_it_is_written_elsewhere() -> None:
    """Quotes, line ends within quotes, CRLF, a byte order mark, JSON in a column, a key of the file's own."""
    text = (
        "\ufeffenvelope_id,amount,metadata,metadata.note,idempotency_key\r\n"
        'env_1,1,"{""a"": 1}","two\nlines",k1\r\n'
        "\r\n"
        '"env ""2""",2,,,\r\n'
    )

    assert read(text) == [
        UsageLine(2, "env_1", 1, {"a": 1, "note": "two\nlines"}, "k1"),
        UsageLine(5, 'env "2"', 2, None, None),
    ]


def test_a_quote_that_is_never_closed() -> None:
    """Costs its own line, and not the lines behind it."""
    text = 'envelope_id,amount,metadata.note\nenv_1,1,"open\n' + "env_1,1,\n" * 5

    events = read(text)

    assert [type(one) for one in events] == [BadLine, *[UsageLine] * 5]
    assert [one.number for one in events if one] == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("env_1", "1 fields"),
        ("env_1,1.5", "whole number"),
        ("env_1,-1", "whole number"),
        ("env_1,", "whole number"),
        ("env_1," + "9" * 30, "whole number"),
        ('"env_1"x,1', "not CSV"),
        (b"env_\xff,1", "UTF-8"),
    ],
)
def test_bad_rows_of_csv(row: Union[str, bytes], reason: str) -> None:
    """Each is told with what is wrong with it."""
    content = b"envelope_id,amount\n" + (row.encode() if isinstance(row, str) else row) + b"\n"

    (bad,) = read(content)

    assert isinstance(bad, BadLine)
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("envelope_id", "no column amount"),
        ("envelope_id,amount,customer", "call it metadata.customer"),
        ("envelope_id,amount,amount", "twice"),
        ("", "no column envelope_id"),
    ],
)
def test_bad_headers_of_csv(header: str, reason: str) -> None:
    """Without the columns that are needed nothing is read, and the message says what to write."""
    with pytest.raises(BadHeaderError, match=reason):
        read(header + "\nenv_1,1\n")


def test_a_line_that_is_too_long_is_kept_whole() -> None:
    """It is told once, passes in pieces, and what is behind it is read."""
    long = b"x" * (LONGEST_LINE * 2 + 5) + b"\n"
    content = b'{"envelope_id":"a","amount":1}\n' + long + b'{"envelope_id":"b","amount":2}\n'

    entries = list(Source(io.BytesIO(content)).entries("ndjson"))

    kinds = [type(entry.event) for entry in entries]
    assert kinds == [UsageLine, BadLine, type(None), type(None), UsageLine]
    assert b"".join(entry.raw for entry in entries[1:-1]) == long
    assert entries[-1].event == UsageLine(3, "b", 2, None)


def test_a_fingerprint_is_of_all_before_it() -> None:
    """The same beginning has the same ones; from a changed line on all are others; equal lines differ."""
    line, other = b'{"envelope_id":"a","amount":1}\n', b'{"envelope_id":"a","amount":2}\n'

    before, grown, changed = fingerprints(line * 3), fingerprints(line * 4), fingerprints(line + other + line)

    assert grown[:3] == before
    assert len(set(grown)) == 4
    assert changed[0] == before[0]
    assert not set(changed[1:]) & set(before)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b'{"envelope_id": 1}\n', "ndjson"), (b"\xef\xbb\xbf{}\n", "ndjson"), (b"envelope_id,amount\n", "csv")],
)
def test_the_format_is_guessed_by_the_first_line(content: bytes, kind: str) -> None:
    """And the line that was looked at is read all the same."""
    source = Source(io.BytesIO(content * 2))

    assert source.guess() == kind
    if kind == "ndjson":
        assert len(list(source.entries(kind))) == 2
