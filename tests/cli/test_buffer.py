"""Looking after a spool at the command line, also while its service runs."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Iterator

import pytest

from tests.buffer.helpers import change_file, held_spool, wait_until
from tests.cli.running import COLUMNS, Shell, first_line, lines_on_screen
from x402tools import UsageBuffer, X402Client
from x402tools._inspect import SpoolView, delivering_process, using_process
from x402tools.errors import SpoolError
from x402tools.testing import Emulator, Fault

SERVICE = pathlib.Path(__file__).with_name("programs") / "service.py"


@contextlib.contextmanager
def service(shell: Shell, envelope_id: str, count: int, *words: str) -> Iterator[subprocess.Popen]:
    """A process that has recorded so many events of 2 units into usage.db, and stays."""
    process = subprocess.Popen(
        [sys.executable, str(SERVICE), "usage.db", envelope_id, str(count), *words],
        cwd=shell.folder,
        env=shell.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        assert first_line(process) == "recorded\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def stored(shell: Shell, emulator: Emulator, *envelopes: str) -> None:
    """Usage of 2 units on each of these envelopes, pending in usage.db."""
    buffer = UsageBuffer(shell.folder / "usage.db", deliver=False)
    with X402Client(emulator.api_key, emulator.base_url, buffer=buffer) as client:
        for envelope_id in envelopes:
            client.record_usage(envelope_id, 2, {"endpoint": "/api"})


def test_status_while_another_process_delivers(shell: Shell, emulator: Emulator) -> None:
    """The ledger, who delivers and since when something waits; the service's own claim and file are left alone."""
    envelope_id = emulator.create_envelope()
    emulator.set_faults(Fault.status(503))
    with service(shell, envelope_id, 3, "deliver") as running:
        wait_until(lambda: delivering_process(shell.spool) is not None, "somebody delivers")

        told, shown = shell.run("buffer", "status", shell.spool, "--json"), shell.run("buffer", "status", shell.spool)

        assert (told.code, shown.code) == (0, 0), told.err
        assert told.json["pending"] == {"events": 3, "units": 6}
        assert told.json["delivering_pid"] == running.pid
        assert told.json["oldest_pending_age"] >= 0
        assert told.json["adds_up"] is True
        assert f"process {running.pid}" in shown.out
        emulator.clear_faults()
        wait_until(lambda: emulator.ledger().events == 3, "the service went on delivering")


def test_looking_waits_for_nobody(shell: Shell, emulator: Emulator) -> None:
    """While somebody holds the write lock, status, peek, dead, audit and export answer all the same."""
    stored(shell, emulator, "env_1", "env_2")

    with held_spool(shell.spool):
        codes = [
            shell.run("buffer", *words).code
            for words in (["status", shell.spool], ["audit", shell.spool], ["export", shell.spool, "-"])
        ]

    assert codes == [0, 0, 0]


def test_looking_makes_nothing(shell: Shell) -> None:
    """Where there is no spool, no command makes one: it says so and fails."""
    for words in (["status"], ["peek"], ["dead"], ["audit"], ["watch"], ["drain"], ["requeue", "--all"], ["doctor"]):
        ended = shell.call("buffer", words[0], shell.spool, *words[1:])

        assert ended.code == (4 if words == ["doctor"] else 1), ended
        assert "no spool here" in ended.err or "is not there" in ended.out, ended
    assert sorted(os.listdir(shell.folder)) == ["home"]


def test_peek_shows_the_oldest(shell: Shell, emulator: Emulator) -> None:
    """As many as asked for, oldest first, with their metadata."""
    stored(shell, emulator, "env_1", "env_2", "env_3")

    peeked, text = (
        shell.call("buffer", "peek", shell.spool, "-n", 2, "--json"),
        shell.call("buffer", "peek", shell.spool),
    )

    assert [one["envelope_id"] for one in peeked.json] == ["env_1", "env_2"]
    assert peeked.json[0]["metadata"] == {"endpoint": "/api"}
    assert [line.split()[2] for line in text.out.splitlines()[1:]] == ["env_1", "env_2", "env_3"]


def test_drain_dead_requeue(shell: Shell, emulator: Emulator) -> None:
    """Drained: what the service refuses is dead, shown with its reason; requeued by its id and drained again."""
    good = emulator.create_envelope()
    stored(shell, emulator, good, "nope", good, "neither")

    drained = shell.call("buffer", "drain", shell.spool, "--json")
    dead = shell.call("buffer", "dead", shell.spool, "--json")
    again = shell.call("buffer", "requeue", shell.spool, dead.json[0]["id"], 4711, "--json")
    status = shell.call("buffer", "status", shell.spool, "--json")

    assert drained.code == 4
    assert (drained.json["delivered"], drained.json["pending"]["events"]) == ({"events": 2, "units": 4}, 0)
    assert dead.code == 4
    assert {(one["envelope_id"], one["status_code"]) for one in dead.json} == {("nope", 404), ("neither", 404)}
    assert "not found" in dead.json[0]["reason"]
    assert (again.code, again.json["requeued"]) == (4, 1)
    assert (status.code, status.json["pending"]["events"], status.json["dead"]["events"]) == (4, 1, 1)
    assert emulator.ledger().events == 2


def test_drain_gives_up(shell: Shell, emulator: Emulator) -> None:
    """After its time it says what is left and why, and leaves it in the spool."""
    stored(shell, emulator, *[emulator.create_envelope()] * 10)
    emulator.set_faults(Fault.status(503))

    ended = shell.call("buffer", "drain", shell.spool, "--timeout", 1, "--json")

    assert ended.code == 4
    assert ended.json["pending"] == {"events": 10, "units": 20}
    assert ended.json["problem"]
    assert shell.call("buffer", "status", shell.spool, "--json").json["pending"]["events"] == 10


def test_drain_is_interrupted(shell: Shell, emulator: Emulator) -> None:
    """SIGTERM ends it in order, with its own exit code, and what is left stays."""
    stored(shell, emulator, *[emulator.create_envelope()] * 10)
    emulator.set_faults(Fault.status(503))
    process = shell.start("buffer", "drain", shell.spool, "--timeout", "3600")
    wait_until(lambda: emulator.faults_fired()[0] >= 1, "it tries")

    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]

    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert shell.call("buffer", "status", shell.spool, "--json").json["pending"]["events"] == 10


def test_drain_does_not_deliver_elsewhere(shell: Shell, emulator: Emulator) -> None:
    """A spool of another base URL is refused, an empty one too: it would be taken over without a word."""
    stored(shell, emulator, emulator.create_envelope())

    full = shell.run("buffer", "drain", shell.spool, X402TOOLS_BASE_URL="http://127.0.0.1:1")
    shell.call("buffer", "drain", shell.spool)
    empty = shell.run("buffer", "drain", shell.spool, X402TOOLS_BASE_URL="http://127.0.0.1:1")

    assert (full.code, empty.code) == (1, 1)
    assert "another base_url" in full.err
    assert "another base_url" in empty.err


def test_export_can_be_replayed(shell: Shell, emulator: Emulator) -> None:
    """What is pending and dead goes to a file of the owner's own, never over another; replayed, it has its old keys."""
    good = emulator.create_envelope()
    stored(shell, emulator, good, good)

    exported = shell.call("buffer", "export", shell.spool, shell.folder / "out.ndjson", "--json")
    again = shell.call("buffer", "export", shell.spool, shell.folder / "out.ndjson")
    replayed = shell.call("replay", shell.folder / "out.ndjson")
    shell.call("buffer", "drain", shell.spool)

    lines = [json.loads(line) for line in (shell.folder / "out.ndjson").read_text().splitlines()]
    assert exported.json == {"file": str(shell.folder / "out.ndjson"), "pending": 2, "held": 0, "dead": 0}
    assert os.stat(shell.folder / "out.ndjson").st_mode & 0o077 == 0
    assert (again.code, replayed.code) == (2, 0), replayed.err
    assert {line["idempotency_key"] for line in lines} == {one.idempotency_key for one in emulator.events()}
    assert emulator.ledger().events == 2
    assert emulator.ledger().repeats_dropped == 2


def test_events_still_to_be_folded_are_pending(shell: Shell, emulator: Emulator) -> None:
    """Peek shows them, audit adds them up, drain folds them."""
    envelope = emulator.create_envelope()
    with X402Client(
        "sk_emulator", emulator.base_url, buffer=UsageBuffer(shell.spool, coalesce=True, deliver=False)
    ) as c:
        for _ in range(5):
            c.record_usage(envelope, 2)

    audited = shell.call("buffer", "audit", shell.spool, "--json")
    peeked = shell.call("buffer", "peek", shell.spool, "--json")
    drained = shell.call("buffer", "drain", shell.spool)

    assert (audited.code, audited.json["faults"]) == (0, [])
    assert audited.json["envelopes"][0]["pending"] == {"events": 5, "units": 10}
    assert len(peeked.json) == 5
    assert drained.code == 0, drained.err
    assert emulator.ledger().units == 10


def test_audit_counts_by_envelope(shell: Shell, emulator: Emulator) -> None:
    """A sound spool is told to be sound, with pending and dead by envelope."""
    stored(shell, emulator, "env_1", "env_1", "env_2")

    ended = shell.call("buffer", "audit", shell.spool, "--json")

    assert (ended.code, ended.json["faults"], ended.json["posts"]) == (0, [], 3)
    found = {row["envelope_id"]: row["pending"] for row in ended.json["envelopes"]}
    assert found == {"env_1": {"events": 2, "units": 4}, "env_2": {"events": 1, "units": 2}}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE sealed SET value = x'010000000000'", "checksum"),
        ("UPDATE sealed SET units = units + 1", "counts for"),
        ("UPDATE ledger SET events = events + 1 WHERE name = 'delivered'", "does not add up"),
    ],
)
def test_audit_finds_damage(shell: Shell, emulator: Emulator, sql: str, said: str) -> None:
    """A changed batch, a changed count and a changed ledger are found, and left as they are."""
    stored(shell, emulator, "env_1")
    change_file(shell.spool, sql)

    ended = shell.call("buffer", "audit", shell.spool)

    assert ended.code == 4
    assert said in ended.err
    assert shell.call("buffer", "audit", shell.spool).err == ended.err


def test_watch_in_a_terminal(shell: Shell, emulator: Emulator) -> None:
    """A frame that fits 80 columns and is drawn anew in place: pending, rates, age, dead, who delivers."""
    envelope_id = emulator.create_envelope()
    with service(shell, envelope_id, 3, "deliver"):
        shown = shell.in_terminal("buffer", "watch", shell.spool, "--count", 2, "--interval", 0.2)

    lines = lines_on_screen(shown.out)
    assert shown.code == 0
    assert max(map(len, lines)) <= COLUMNS
    for label in ("state", "delivered by", "pending", "delivered/s", "oldest pending", "dead"):
        assert any(label in line for line in lines), label
    assert "\x1b[?25h" in shown.out  # the cursor is there again


def test_watch_in_a_pipe(shell: Shell, emulator: Emulator) -> None:
    """A line each time, or a JSON document a line; says that nobody delivers when nobody does."""
    stored(shell, emulator, "env_1")

    text = shell.call("buffer", "watch", shell.spool, "--count", 2, "--interval", 0.1)
    documents = shell.call("buffer", "watch", shell.spool, "--count", 2, "--interval", 0.1, "--json")

    assert len(text.out.splitlines()) == 3
    assert "nobody delivers" in text.out
    assert max(map(len, text.out.splitlines())) <= COLUMNS
    looks = [json.loads(line) for line in documents.out.splitlines()]
    assert [look["pending"]["events"] for look in looks] == [1, 1]
    assert looks[1]["delivered_per_second"] == 0


def test_who_uses_and_who_delivers_is_seen_without_taking_a_lock(shell: Shell, emulator: Emulator) -> None:
    """Another process is named while it has the spool open, and while it delivers; afterwards nobody is."""
    path = shell.spool
    with service(shell, emulator.create_envelope(), 1) as storing:
        assert (using_process(path), delivering_process(path)) == (storing.pid, None)
    with service(shell, emulator.create_envelope(), 1, "deliver") as delivering:
        wait_until(lambda: delivering_process(path) == delivering.pid, "it delivers")

    assert (using_process(path), delivering_process(path)) == (None, None)


def test_a_view_is_of_one_moment(shell: Shell, emulator: Emulator) -> None:
    """What is recorded after it began is not seen inside `one_moment`, and is afterwards."""
    stored(shell, emulator, "env_1")

    with SpoolView(shell.spool) as view:
        with view.one_moment():
            before = view.counts()
            stored(shell, emulator, "env_2")
            inside = view.counts()
        after = view.counts()

    assert (before.pending.events, inside.pending.events, after.pending.events) == (1, 1, 2)


@pytest.mark.parametrize("content", [b"", b"something else entirely, and longer than the head of a database is" * 9])
def test_a_view_of_what_is_no_spool(tmp_path: pathlib.Path, content: bytes) -> None:
    """An empty file and another one are refused and left as they are."""
    path = tmp_path / "usage.db"
    path.write_bytes(content)

    with pytest.raises(SpoolError):
        SpoolView(str(path))

    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["usage.db"]
