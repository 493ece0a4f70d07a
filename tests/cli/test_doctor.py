"""The usual faults, made for real, and what `doctor` says of them."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Dict, List

from tests.buffer.helpers import change_file
from tests.cli.running import COLUMNS, Shell, lines_on_screen
from tests.cli.test_buffer import service, stored
from x402tools._cli.checks import file_system
from x402tools.testing import Emulator


def faults(shell: Shell, *words: str, **variables: str) -> Dict[str, str]:
    """What `doctor` finds wrong, by what it looked at; and that its exit code says so."""
    call = shell.run if variables else shell.call
    ended = call("buffer", "doctor", shell.spool, "--json", *words, **variables)
    findings: List[Dict[str, Any]] = ended.json
    wrong = {one["about"]: f"{one['what']} -> {one['advice']}" for one in findings if one["level"] == "fault"}
    assert ended.code == (4 if wrong else 0), ended.err
    return wrong


def notes(shell: Shell, *words: str) -> Dict[str, str]:
    """What it finds worth knowing, likewise."""
    findings = shell.call("buffer", "doctor", shell.spool, "--json", "--offline", *words).json
    return {one["about"]: f"{one['what']} -> {one['advice']}" for one in findings if one["level"] == "note"}


def test_all_is_well(shell: Shell, emulator: Emulator) -> None:
    """With a service that delivers there is no fault, and what was looked at is listed; on 80 columns too."""
    with service(shell, emulator.create_envelope(), 1, "deliver") as running:
        found = shell.call("buffer", "doctor", shell.spool)
        shown = shell.in_terminal("buffer", "doctor", shell.spool)

        assert (found.code, shown.code) == (0, 0), found.out
    assert f"process {running.pid}" in found.out
    for about in ("folder", "file system", "room", "rights", "spool", "versions", "base URL", "key", "clock"):
        assert about in found.out
    assert max(map(len, lines_on_screen(shown.out))) <= COLUMNS


def test_nobody_delivers(shell: Shell, emulator: Emulator) -> None:
    """Something waits and nobody delivers: start the service, or a worker."""
    stored(shell, emulator, "env_1")

    assert "x402tools worker" in faults(shell, "--offline")["pending"]


def test_rights(shell: Shell, emulator: Emulator) -> None:
    """A spool that others may write to is a fault, one that they may read a note; both name the command."""
    stored(shell, emulator)
    path = shell.folder / "usage.db"

    path.chmod(0o666)
    writable = faults(shell, "--offline")
    path.chmod(0o644)
    readable = notes(shell)

    assert "chmod 600" in writable["rights"]
    assert "chmod 600" in readable["rights"]


def test_a_log_left_over(shell: Shell, emulator: Emulator) -> None:
    """After a kill the log is there and nobody uses it: it is not to be deleted, whatever it looks like."""
    with service(shell, emulator.create_envelope(), 1):
        pass  # killed at the end of the block

    assert "never delete it" in notes(shell)["log"]


def test_the_file_is_gone_and_its_log_is_not(shell: Shell, emulator: Emulator) -> None:
    """Whoever deleted the file is told that the log may hold events."""
    with service(shell, emulator.create_envelope(), 1):
        pass
    os.remove(shell.spool)

    assert "do not delete it" in faults(shell, "--offline")["file"]


def test_a_later_version_has_written_the_file(shell: Shell, emulator: Emulator) -> None:
    """A format that is not known yet means that two versions share the file."""
    stored(shell, emulator)
    change_file(shell.spool, "PRAGMA user_version = 1000")

    assert "upgrade the older one" in faults(shell, "--offline")["spool"]


def test_two_versions_use_the_file(shell: Shell, emulator: Emulator) -> None:
    """Two versions that opened one file within a day: the upgrade is not finished."""
    stored(shell, emulator)
    change_file(shell.spool, "REPLACE INTO meta VALUES ('version 1.9.9', strftime('%s', 'now'))")

    found = notes(shell)["versions"]

    assert "1.9.9" in found
    assert "restart" in found


def test_another_programs_database(shell: Shell) -> None:
    """Somebody else's database is recognised."""
    connection = sqlite3.connect(shell.spool)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    os.chmod(shell.spool, 0o600)

    assert "another path" in faults(shell, "--offline")["spool"]


def test_a_damaged_file(shell: Shell, emulator: Emulator) -> None:
    """A file with a broken page is damaged: the service mends it when it starts; doctor leaves it alone."""
    stored(shell, emulator, *["env_1"] * 50)
    path = shell.folder / "usage.db"
    whole = path.read_bytes()
    broken = whole[:4096] + b"\xff" * 4096 + whole[8192:]
    path.write_bytes(broken)

    found = faults(shell, "--offline")

    assert "damage" in found or "damaged" in found.get("spool", ""), found
    assert path.read_bytes() == broken


def test_dead_letters(shell: Shell, emulator: Emulator) -> None:
    """Dead letters are a fault, with the reason of the last one and the command that sends them again."""
    stored(shell, emulator, "nope")
    shell.call("buffer", "drain", shell.spool)

    found = faults(shell)["dead letters"]

    assert "not found" in found
    assert "requeue" in found


def test_the_key_is_refused(shell: Shell, emulator: Emulator) -> None:
    """A wrong key is found by asking the service; it is not repeated."""
    stored(shell, emulator)

    found = faults(shell, X402TOOLS_API_KEY="sk_wrong_4711")

    assert "X402TOOLS_API_KEY" in found["key"]
    assert "4711" not in str(found)


def test_no_key(shell: Shell, emulator: Emulator) -> None:
    """Without a key the variable is named."""
    stored(shell, emulator)
    del shell.environment["X402TOOLS_API_KEY"]

    assert "X402TOOLS_API_KEY" in faults(shell, X402TOOLS_BASE_URL=emulator.base_url)["key"]


def test_the_base_url_is_anothers(shell: Shell, emulator: Emulator) -> None:
    """A base URL that is not the spool's, and where nobody answers, is told as both."""
    stored(shell, emulator)

    found = faults(shell, X402TOOLS_BASE_URL="http://127.0.0.1:1")

    assert "not the one the spool is for" in found["base URL"]
    assert "service" in found


def test_the_file_system_is_known() -> None:
    """The kind of the file system of a path is what Linux mounted there: /proc is proc."""
    assert file_system("/proc/self") in ("proc", None)
