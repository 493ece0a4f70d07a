"""Envelopes, usage and keys at the command line, against the emulator."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.cli.running import COLUMNS, COMMAND, Shell, lines_on_screen
from x402tools.testing import Emulator


def test_the_life_of_an_envelope(shell: Shell, emulator: Emulator) -> None:
    """Made, shown, changed, listed and deleted; each step answers in JSON."""
    made = shell.call("envelopes", "create", "API calls", "--limit", 100, "--period", "monthly", "--json")
    envelope_id = made.json["id"]

    changed = shell.call("envelopes", "update", envelope_id, "--limit", 200, "--json")
    listed = shell.call("envelopes", "list", "--json")
    shown = shell.call("envelopes", "show", envelope_id)
    deleted = shell.call("envelopes", "delete", envelope_id, "--yes", "--json")

    assert (made.code, changed.code, listed.code, shown.code, deleted.code) == (0, 0, 0, 0, 0), made.err
    assert changed.json["limit"] == 200
    assert [(one["id"], one["name"], one["period"]) for one in listed.json] == [(envelope_id, "API calls", "MONTHLY")]
    assert envelope_id in shown.out
    assert deleted.json == {"deleted": envelope_id}
    assert shell.call("envelopes", "list").err == "There are no envelopes.\n"


def test_usage_is_recorded_listed_and_summed(shell: Shell, emulator: Emulator) -> None:
    """A record with metadata is booked once under its key, listed, limited, and in the totals."""
    envelope_id = emulator.create_envelope(limit=1000)

    for _ in range(2):
        booked = shell.call(
            "usage", "record", envelope_id, 7, "-m", "endpoint=/api", "--metadata", '{"n": 1}', "--idempotency-key", "k"
        )
        assert booked.code == 0, booked.err
    shell.call("usage", "record", envelope_id, 5)
    listed = shell.call("usage", "list", envelope_id, "--json")
    limited = shell.call("usage", "list", "--limit", 1)
    stats = shell.call("usage", "stats", "--json")

    assert [one["amount"] for one in listed.json] == [7, 5]
    assert listed.json[0]["metadata"] == {"endpoint": "/api", "n": 1}
    assert len(limited.out.splitlines()) == 2
    assert "more than 1" in limited.err
    assert stats.json["total_usage"] == 12
    assert "total usage" in shell.call("usage", "stats").out


def test_the_secret_of_a_key_is_shown_once(shell: Shell, emulator: Emulator) -> None:
    """Alone on stdout when the key is made; never in a list, JSON included; the key works, and not when deleted."""
    made = shell.call("keys", "create", "ci")
    secret = made.out.strip()

    listed, document = shell.call("keys", "list"), shell.call("keys", "list", "--json")
    key_id = next(one["id"] for one in document.json if one["name"] == "ci")

    assert "shown this once" in made.err
    assert secret not in made.err
    assert len(made.out.splitlines()) == 1
    assert secret not in listed.out + document.out
    assert emulator.api_key not in listed.out + document.out
    assert shell.run("envelopes", "list", X402TOOLS_API_KEY=secret).code == 0
    assert shell.call("keys", "delete", key_id, "--yes").code == 0
    refused = shell.run("envelopes", "list", X402TOOLS_API_KEY=secret)
    assert refused.code == 1
    assert "X402TOOLS_API_KEY" in refused.err
    assert secret not in refused.err


def test_nothing_is_deleted_unasked(shell: Shell, emulator: Emulator) -> None:
    """In a pipe, where nobody can answer, deleting needs --yes."""
    envelope_id = emulator.create_envelope()

    ended = shell.run("envelopes", "delete", envelope_id, stdin="y\n")

    assert ended.code == 2
    assert "--yes" in ended.err
    assert len(shell.run("envelopes", "list", "--json").json) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["envelopes", "show", "nope"], 1, "not found"),
        (["envelopes", "update", "env_1"], 2, "Nothing to change"),
        (["usage", "record", "env_1", "-5"], 2, "No such option"),
        (["usage", "record", "env_1", "x"], 2, "not a valid integer"),
        (["usage", "record", "env_1", "1", "--metadata", "[1]"], 2, "JSON object"),
        (["usage", "record", "env_1", str(2**60)], 2, "amount must be"),
        (["frobnicate"], 2, "No such command"),
        (["envelopes", "list", "--base-url", "http://127.0.0.1:1", "--http-timeout", "1"], 1, "X402TOOLS_BASE_URL"),
        (["envelopes", "list", "--base-url", "nonsense"], 2, "base_url"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(shell: Shell, words: list, code: int, said: str) -> None:
    """The documented exit code, a reason on stderr, nothing on stdout, no traceback."""
    ended = shell.run(*words) if "--base-url" in words else shell.call(*words)

    assert (ended.code, ended.out) == (code, ""), ended
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_without_a_key(shell: Shell) -> None:
    """Without a key the command says which variable to set."""
    del shell.environment["X402TOOLS_API_KEY"]

    ended = shell.run("envelopes", "list")

    assert ended.code == 2
    assert "X402TOOLS_API_KEY" in ended.err


def test_a_name_cannot_play_with_the_terminal(shell: Shell, emulator: Emulator) -> None:
    """Escapes in a name are shown, not obeyed, and markup is no markup."""
    emulator.create_envelope(name="evil\x1b[2J[bold]\u202e", limit=1000)

    piped, shown = shell.run("envelopes", "list"), shell.in_terminal("envelopes", "list")

    assert "evil\\x1b[2J[bold]\\u202e" in piped.out
    assert "\x1b[2J" not in shown.out
    assert "[bold]" in "".join(lines_on_screen(shown.out))


def test_a_terminal_of_80_columns(shell: Shell, emulator: Emulator) -> None:
    """Tables and facts have colours and frames there, and no line is wider; ids are not broken while there is room."""
    envelope_id = emulator.create_envelope(name="a rather long name for an envelope, but it must fit", limit=1000)
    shell.call(
        "usage", "record", envelope_id, 7, "--metadata", '{"endpoint": "/api/users", "customer": "customer_4711"}'
    )

    for words in (["usage", "list"], ["usage", "stats"], ["keys", "list"], ["--help"]):
        shown = shell.in_terminal(*words)

        assert shown.code == 0, shown
        assert max(map(len, lines_on_screen(shown.out))) <= COLUMNS, shown.out
    shown = shell.in_terminal("envelopes", "list")
    assert max(map(len, lines_on_screen(shown.out))) <= COLUMNS
    assert "\x1b[1m" in shown.out
    assert "─" in shown.out
    assert any(envelope_id in line for line in lines_on_screen(shown.out))


def test_a_pipe(shell: Shell, emulator: Emulator) -> None:
    """In a pipe there is no escape, no frame, and nothing is cut, whatever the terminal would have room for."""
    name = "a name that is longer than a terminal is wide, so that cutting it would show, and so it does not end here"
    envelope_id = emulator.create_envelope(name=name, limit=1_000_000)

    ended = shell.run("envelopes", "list", COLUMNS="40")

    title, row = ended.out.splitlines()
    assert title.split() == ["id", "name", "limit", "period", "resets", "on"]
    assert row.split("  ")[:3] == [envelope_id, name, "1000000"]
    assert not set("\x1b─│╭") & set(ended.out)


def test_nobody_reads_on(shell: Shell, emulator: Emulator) -> None:
    """When the reader of a list goes away the command ends without a word, and with its own exit code."""
    emulator.create_envelope()
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run(
        [*COMMAND, "envelopes", "list"],
        check=False,
        env=shell.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)

    assert (ended.returncode, ended.stderr) == (141, b"")


def test_completion(shell: Shell) -> None:
    """The line that --help names gives a shell what completes the commands."""
    script = shell.run(_X402TOOLS_COMPLETE="bash_source")
    found = shell.run(_X402TOOLS_COMPLETE="bash_complete", COMP_WORDS="x402tools buf", COMP_CWORD="1")

    assert script.code == 0
    assert "complete" in script.out
    assert found.out.split(",")[-1].strip() == "buffer"
    assert "_X402TOOLS_COMPLETE" in shell.run("--help").out
