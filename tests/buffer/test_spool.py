"""The spool as a file among others: who may read it, what is refused in its place, and what damage does to it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import sqlite3
import stat
import threading
from typing import Any, Callable, Dict, List

import pytest

from tests.buffer.helpers import (
    Program,
    ScriptedDelivery,
    assert_adds_up,
    change_file,
    held_spool,
    make_batch,
    make_event,
    stored_posts,
    wait_until,
)
from tests.conftest import run_with_deadline
from x402tools import UsageBuffer, _batch, _spool_file
from x402tools._spool import Spool
from x402tools._store import Acknowledgement, Burial, Holding, Tally
from x402tools.errors import SpoolError

MANY_BYTES = 2**40


def open_spool(path: pathlib.Path, sync: str = "FULL") -> Spool:
    return Spool(str(path), sync=sync, max_bytes=MANY_BYTES)


def test_only_the_owner_reads_the_files(tmp_path: pathlib.Path) -> None:
    """The database, its log, its index and its locks are 0600 whatever the umask says."""
    before = os.umask(0)
    try:
        store = open_spool(tmp_path / "usage.db")
        store.append([make_batch(1)], Tally())
        store.claim()
    finally:
        os.umask(before)

    modes = {name.name: stat.S_IMODE(name.stat().st_mode) for name in tmp_path.iterdir()}

    assert modes == dict.fromkeys(
        ["usage.db", "usage.db-wal", "usage.db-shm", "usage.db.lock", "usage.db.setup"], 0o600
    )
    store.close()


def test_the_default_folder_is_the_owners(tmp_path: pathlib.Path) -> None:
    """Without a path the spool is made in a folder of its own under the state folder, which nobody else enters."""
    code = "from x402tools import UsageBuffer\nb = UsageBuffer()\nprint(b.path, flush=True)\nb.close()"
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path)
    try:
        with Program(code) as program:
            path = pathlib.Path(program.line())
            program.ended()
    finally:
        os.environ.pop("XDG_STATE_HOME")
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before

    assert path == tmp_path / "x402tools" / "usage.db"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# -- what is refused ---------------------------------------------------------------------------------------------


def a_symbolic_link(path: pathlib.Path) -> None:
    target = path.with_name("victim")
    target.write_bytes(b"")
    path.symlink_to(target)


def a_dangling_link(path: pathlib.Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def a_directory(path: pathlib.Path) -> None:
    path.mkdir()


def a_fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def garbage(path: pathlib.Path) -> None:
    path.write_bytes(b"not a database at all, " * 500)


def a_file_others_may_write(path: pathlib.Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o666)


def another_programs_database(path: pathlib.Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE sealed (whatever)")
    connection.close()


def a_later_format(path: pathlib.Path) -> None:
    open_spool(path).close()
    change_file(path, "PRAGMA user_version=3")


def half_a_spool(path: pathlib.Path) -> None:
    store = open_spool(path)
    store.append([make_batch(number, [1] * 500) for number in range(20)], Tally())
    store.tidy()
    store.close()
    os.truncate(path, path.stat().st_size // 2)


REFUSED: List[Callable[[pathlib.Path], None]] = [
    a_symbolic_link,
    a_dangling_link,
    a_directory,
    a_fifo,
    a_file_others_may_write,
    another_programs_database,
    a_later_format,
]


@pytest.mark.parametrize("plant", REFUSED, ids=lambda plant: plant.__name__)
def test_what_is_no_spool_is_refused_untouched(tmp_path: pathlib.Path, plant: Callable[[pathlib.Path], None]) -> None:
    """The error names the path, comes at once, and leaves what was there as it was."""
    path = tmp_path / "usage.db"
    plant(path)
    content = path.read_bytes() if path.is_file() else None

    with pytest.raises(SpoolError) as raised:
        run_with_deadline(open_spool, path, seconds=5)

    assert str(path) in str(raised.value)
    assert (path.read_bytes() if path.is_file() else None) == content


@pytest.mark.parametrize("plant", [garbage, half_a_spool], ids=lambda plant: plant.__name__)
def test_what_is_damaged_is_set_aside_untouched(tmp_path: pathlib.Path, plant: Callable[[pathlib.Path], None]) -> None:
    """It is kept as it was under a name that says so, it is said, and a new spool is made in its place."""
    path = tmp_path / "usage.db"
    plant(path)
    content = path.read_bytes()

    store = run_with_deadline(open_spool, path, seconds=5)

    store.append([make_batch(100)], Tally())
    (aside,) = tmp_path.glob("usage.db.corrupt-*Z")
    assert aside.read_bytes() == content
    assert any(str(aside) in notice for notice in store.notices)
    assert_adds_up(store.counts())
    store.close()


def test_a_missing_folder_is_named(tmp_path: pathlib.Path) -> None:
    """A folder somebody chose is not made for him."""
    path = tmp_path / "missing" / "usage.db"

    with pytest.raises(SpoolError) as raised:
        open_spool(path)

    assert str(path) in str(raised.value)
    assert not path.parent.exists()


def test_an_empty_file_becomes_a_spool(tmp_path: pathlib.Path) -> None:
    """A file that was made beforehand, with the rights somebody wanted, is used."""
    path = tmp_path / "usage.db"
    path.touch(mode=0o600)

    store = open_spool(path)

    store.append([make_batch(1)], Tally())
    assert store.counts().pending.events == 1
    store.close()


OPENING = """
import sys
from x402tools import UsageBuffer
sys.stdin.readline()
buffer = UsageBuffer(sys.argv[1], durability="fsync")
buffer.record("env", 1)
print(buffer.close().problem, flush=True)
"""


def test_many_processes_may_make_the_spool_at_once(tmp_path: pathlib.Path) -> None:
    """The workers of a server start at the same moment: each gets the one spool, none an error."""
    for attempt in range(3):
        path = tmp_path / f"usage-{attempt}.db"
        programs = [Program(OPENING, path) for _ in range(6)]

        for program in programs:
            program.tell("go")
        answers = [(program.ended(), program.errors(), program.lines()) for program in programs]

        assert answers == [(0, "", ["None"])] * 6
        assert len(stored_posts(path)) == 6


def test_logs_may_come_and_go_while_the_file_is_checked(tmp_path: pathlib.Path) -> None:
    """Another process makes the tables, or closes the file, and SQLite deletes what it kept beside it."""
    path, log = tmp_path / "usage.db", tmp_path / "usage.db-journal"
    open_spool(path).close()
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            log.touch()
            log.unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(5000):
            _spool_file.ensure(str(path), make_folder=False)
    finally:
        stop.set()
        thread.join()


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_the_log_and_the_sync_level_are_really_set(tmp_path: pathlib.Path, sync: str, level: int) -> None:
    """Read back from the connection that writes, at first, after a sync, and when it was opened anew."""
    store = open_spool(tmp_path / "usage.db", sync)

    def settings() -> Any:
        with store._file.use() as connection:
            return connection.rows("PRAGMA journal_mode")[0][0], connection.rows("PRAGMA synchronous")[0][0]

    at_first = settings()
    store.sync()
    after_sync = settings()
    store._file.close()
    opened_anew = settings()

    assert at_first == after_sync == opened_anew == ("wal", level)
    store.close()


# -- damage ------------------------------------------------------------------------------------------------------


class Detonator:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: pathlib.Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def damages(mark: pathlib.Path) -> Dict[str, Any]:
    value = make_batch(2, (4, 8)).value
    return {
        "a flipped bit": value[:20] + bytes([value[20] ^ 1]) + value[21:],
        "nothing": b"",
        "a pickle": pickle.dumps(Detonator(mark)),
        "text": "sealed",
        "invalid UTF-8": b"\xff\xfe\xfd" * 10,
        "a number": 402,
        "a later format": b"\x03" + value[1:],
        "another format": b"\x01" + value[1:],
    }


@pytest.mark.parametrize("name", damages(pathlib.Path()))
def test_a_damaged_batch_is_set_aside_and_the_others_go_on(tmp_path: pathlib.Path, name: str) -> None:
    """It becomes an unreadable dead letter with its count; nothing of it runs; every other batch is delivered."""
    mark = tmp_path / "ran"
    path = tmp_path / "usage.db"
    store = open_spool(path)
    store.append([make_batch(1, (1, 2)), make_batch(2, (4, 8)), make_batch(3, (16,))], Tally())
    change_file(path, "UPDATE sealed SET value = ? WHERE batch = 'rec/2'", (damages(mark)[name],))
    assert store.claim()

    batches = store.oldest_sealed(0, 10)

    assert [post.key for batch in batches for _, post in batch.posts] == ["rec-1-0", "rec-1-1", "rec-3-0"]
    (letter,) = store.dead_letters(0, 10)
    assert (letter.readable, letter.events, letter.amount) == (False, 2, 12)
    assert "damaged" in letter.reason
    assert store.requeue([letter.id]) == 0
    assert_adds_up(store.counts())
    assert not mark.exists()
    store.close()


def test_a_batch_damaged_after_part_of_it_was_delivered_counts_once(tmp_path: pathlib.Path) -> None:
    """What was delivered of it stays delivered; only the rest is dead."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    assert store.claim()
    store.append([make_batch(1, (1, 2, 4))], Tally())
    ((place, post), *_) = store.oldest_sealed(0, 10)[0].posts
    store.settle([Acknowledgement(place, post)], [])
    change_file(path, "UPDATE sealed SET value = x'00'")

    store.oldest_sealed(0, 10)

    counts = store.counts()
    assert (counts.delivered, counts.dead, counts.pending) == (Tally(1, 1), Tally(2, 6), Tally())
    assert_adds_up(counts)
    store.close()


def test_a_settlement_that_was_stored_and_reported_as_failed_counts_once(tmp_path: pathlib.Path) -> None:
    """A sync that fails reports what may be stored all the same; the flusher then settles the same again."""
    store = open_spool(tmp_path / "usage.db")
    store.append([make_batch(1, (1, 2, 4))], Tally())
    store.claim()
    place, post = store.oldest_sealed(0, 1)[0].posts[0]
    before = dict(store._progress)
    store.settle([Acknowledgement(place, post)], [])
    with store._file.use() as connection:
        settlement = connection.rows("SELECT value FROM meta WHERE key = 'settlement'")[0][0]
    store._unsure, store._progress = (settlement, dict(store._progress)), before  # as the error leaves it

    store.settle([Acknowledgement(place, post)], [])

    counts = store.counts()
    store.close()
    assert (counts.recorded.events, counts.delivered.events, counts.pending.events) == (3, 1, 2)


def test_a_damaged_dead_letter_stays_and_the_others_are_requeued(tmp_path: pathlib.Path) -> None:
    """One bad row never stands in the way of the good ones."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    assert store.claim()
    store.append([make_batch(1, (1, 2, 4))], Tally())
    store.settle([], [Burial(place, post, "no", 404, 1) for place, post in store.oldest_sealed(0, 1)[0].posts])
    change_file(path, "UPDATE dead SET value = x'00' WHERE key = 'rec-1-1'")

    letters = store.dead_letters(0, 10)
    count = store.requeue([letter.id for letter in letters])

    assert [letter.readable for letter in letters] == [True, False, True]
    assert count == 2
    assert [letter.key for letter in store.dead_letters(0, 10)] == ["rec-1-1"]
    assert_adds_up(store.counts())
    store.close()


def test_damage_does_not_stop_a_buffer(tmp_path: pathlib.Path) -> None:
    """Through the public door: what can be read is delivered, what cannot is reported and counted."""
    path = tmp_path / "usage.db"
    with UsageBuffer(path, durability="fsync", deliver=False) as before:
        before.record("env", 1)
        second = before.record("env", 2)
    change_file(path, "UPDATE sealed SET value = x'80' WHERE sequence = 1")
    deliver = ScriptedDelivery()

    with UsageBuffer(path) as buffer:
        buffer.attach(deliver, "http://127.0.0.1:1")
        flushed = buffer.flush(10)
        stats = buffer.stats()
        letters = buffer.dead_letters()

    assert flushed
    assert deliver.keys() == [second.id]
    assert [letter.readable for letter in letters] == [False]
    assert_adds_up(stats)


def test_a_spool_that_was_taken_away_is_noticed(tmp_path: pathlib.Path) -> None:
    """Storing into a file that nobody can find any more must not pass for storing; a new one takes its place."""
    path = tmp_path / "usage.db"
    problems: List[str] = []
    buffer = UsageBuffer(path, durability="fsync", on_error=problems.append, exit_timeout=0.5)
    buffer.record("env", 1)
    moved = tmp_path / "moved"
    moved.mkdir()

    for name in ("usage.db", "usage.db-wal", "usage.db-shm"):
        (tmp_path / name).rename(moved / name)

    def noticed() -> bool:
        buffer.record("env", 2)
        return bool(problems)

    wait_until(noticed, "the buffer reports that its file is gone", seconds=4)
    assert "usage.db" in problems[0]
    recorded = buffer.close().pending
    assert len(stored_posts(path)) == recorded == buffer.stats().recorded.events


def test_a_file_of_the_first_format_gets_what_it_lacks(tmp_path: pathlib.Path) -> None:
    """Nothing is set aside and nothing is lost: what waits in it is delivered or held."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    store.append([make_batch(1, (1, 2))], Tally())
    store.close()
    for statement in ("DROP TABLE held", "DROP TABLE sending", "PRAGMA user_version=1"):
        change_file(path, statement)

    again = open_spool(path)
    assert again.claim()
    posts = again.oldest_sealed(0, 10)[0].posts
    again.settle([Acknowledgement(*posts[0])], [], [Holding(*posts[1], "reset")])

    assert again.notices == []
    assert again.counts().held == Tally(1, 2)
    assert_adds_up(again.counts())
    again.close()


def test_what_is_held_and_noted_is_carried_over(tmp_path: pathlib.Path) -> None:
    """Into the file that takes the place of one that was deleted: it is still not sent again."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    assert store.claim()
    store.append([make_batch(1, (1, 2, 4)), make_batch(2, (8,))], Tally())
    posts = [one for batch in store.oldest_sealed(0, 10) for one in batch.posts]
    store.settle([], [], [Holding(*posts[0], "reset")])
    store.note_sending([posts[2][0]])
    path.unlink()

    counts = store.counts()
    held = store.held(0, 10)
    store.close()
    again = open_spool(path)
    assert again.claim()
    found = {
        post.key: place.position in batch.sent for batch in again.oldest_sealed(0, 9) for place, post in batch.posts
    }

    assert [one.post.key for one in held] == ["rec-1-0"]
    assert (counts.held, counts.pending, counts.recorded) == (Tally(1, 1), Tally(4, 15), Tally(4, 15))
    assert found == {"rec-1-1": False, "rec-1-2": True, "rec-2-0": False}
    again.close()


def test_a_damaged_post_that_is_held_is_set_aside(tmp_path: pathlib.Path) -> None:
    """As a dead letter that cannot be read; the others are compared and moved."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    assert store.claim()
    store.append([make_batch(1, (1, 2, 4))], Tally())
    store.settle([], [], [Holding(*one, "reset") for one in store.oldest_sealed(0, 1)[0].posts])
    change_file(path, "UPDATE held SET value = x'00' WHERE id = 2")

    found = [one.post.key for one in store.held(0, 10)]

    (letter,) = store.dead_letters(0, 10)
    counts = store.counts()
    assert found == ["rec-1-0", "rec-1-2"]
    assert (letter.readable, letter.amount) == (False, 2)
    assert (counts.held, counts.dead) == (Tally(2, 5), Tally(1, 2))
    assert_adds_up(counts)
    store.close()


def test_notes_that_nobody_took_back_go_in_the_end(tmp_path: pathlib.Path) -> None:
    """A process that resends does not look at the notes of an earlier one; the file does not grow by them for ever."""
    path = tmp_path / "usage.db"
    first, second, third = (open_spool(path) for _ in range(3))
    assert first.claim()
    first.append([make_batch(1, (1,))], Tally())
    first.note_sending([first.oldest_sealed(0, 1)[0].posts[0][0]])
    first.close()
    change_file(path, "INSERT INTO sending VALUES (77, 0, 1.0)")  # its batch was settled by a process that did not look
    assert second.claim()

    second.settle([Acknowledgement(*second.oldest_sealed(0, 1)[0].posts[0])], [])
    second.tidy()
    second.close()

    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sending").fetchone() == (0,)
    third.close()


def test_a_batch_is_stored_once_even_when_the_file_changes(tmp_path: pathlib.Path) -> None:
    """What each recorder stored last is carried over to the new file, with what is pending."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    assert store.claim()
    store.append([make_batch(1, (1,))], Tally())
    store.settle([Acknowledgement(*store.oldest_sealed(0, 1)[0].posts[0])], [])
    store.append([make_batch(2, (2,))], Tally())
    path.unlink()

    store.append([make_batch(1, (1,)), make_batch(2, (2,)), make_batch(3, (4,))], Tally())

    keys = [post.key for batch in store.oldest_sealed(0, 10) for _, post in batch.posts]
    counts = store.counts()
    assert keys == ["rec-2-0", "rec-3-0"]
    assert (counts.recorded, counts.delivered) == (Tally(3, 7), Tally(1, 1))
    assert_adds_up(counts)
    store.close()


def test_the_number_of_a_recorder_never_falls(tmp_path: pathlib.Path) -> None:
    """A statement that hung for long may be done after later ones; what they stored is not stored again after that."""
    store = open_spool(tmp_path / "usage.db")

    assert store.claim()
    store.append([make_batch(3, (1,))], Tally())
    store.settle([Acknowledgement(*store.oldest_sealed(0, 1)[0].posts[0])], [])

    for number in (2, 3):
        store.append([make_batch(number, (1,))], Tally())

    counts = store.counts()
    assert store.oldest_sealed(1, 10) == []
    assert (counts.recorded, counts.delivered) == (Tally(1, 1), Tally(1, 1))
    store.close()


def test_a_recorder_that_stores_is_not_among_the_forgotten_ones(tmp_path: pathlib.Path) -> None:
    """Its number is written anew before it is as old as those that are forgotten."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    store.append([make_batch(1, (1,))], Tally())
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("INSERT INTO meta (rowid, key, value) VALUES (90000, 'stored other', 1)")

    for number in (2, 3):
        store.append([make_batch(number, (1,))], Tally())

    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT rowid, value FROM meta WHERE key = 'stored rec'").fetchall() == [(90001, 3)]
    store.close()


# -- destinations ------------------------------------------------------------------------------------------------


def test_two_base_urls_do_not_share_what_is_pending(tmp_path: pathlib.Path) -> None:
    """Usage for one service is never sent to another: refused while some waits, or is dead; then allowed."""
    store = open_spool(tmp_path / "usage.db")
    store.bind("https://one.example")
    store.claim()
    store.append([make_batch(1, (1, 2))], Tally())

    with pytest.raises(SpoolError, match="another base_url"):
        store.bind("https://two.example")
    store.bind("https://one.example")
    posts = store.oldest_sealed(0, 1)[0].posts
    store.settle([Acknowledgement(*posts[0])], [Burial(*posts[1], "no", 404, 1)])
    with pytest.raises(SpoolError, match="another base_url"):
        store.bind("https://two.example")
    store.requeue([store.dead_letters(0, 1)[0].id])
    store.settle([], [], [Holding(*store.oldest_sealed(0, 1)[0].posts[0], "reset")])
    with pytest.raises(SpoolError, match="another base_url"):
        store.bind("https://two.example")
    store.resolve([], [store.held(0, 1)[0].id])
    store.settle([Acknowledgement(*store.oldest_sealed(0, 1)[0].posts[0])], [])
    store.bind("https://two.example")

    with pytest.raises(SpoolError, match="another base_url"):
        store.append([make_batch(2)], Tally())
        store.bind("https://one.example")
    store.close()


def test_the_base_url_itself_is_not_in_the_file(tmp_path: pathlib.Path) -> None:
    """Only a hash: a URL can name a customer."""
    store = open_spool(tmp_path / "usage.db")
    store.bind("https://very-secret-customer.example")
    store.tidy()
    store.close()

    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())

    assert b"very-secret-customer" not in content


# -- limits ------------------------------------------------------------------------------------------------------


def test_a_full_spool_refuses_and_takes_again(tmp_path: pathlib.Path) -> None:
    """The limit of bytes is of the content: once some is delivered there is room again."""
    store = Spool(str(tmp_path / "usage.db"), sync="FULL", max_bytes=2**20)
    assert store.claim()
    number = 0

    def refused() -> bool:
        nonlocal number
        number += 1
        events = [make_event(f"{number}-{at}", 1, {"noise": os.urandom(30_000).hex()}) for at in range(5)]
        try:
            store.append([_batch.encode("noisy", number, events)], Tally())
        except SpoolError as error:
            return "max_disk_bytes" in str(error)
        return False

    wait_until(refused, "the spool is full")
    size = store.counts().size
    batches = store.oldest_sealed(0, 1000)
    store.settle([Acknowledgement(*one) for batch in batches for one in batch.posts], [])

    assert 2**20 <= size < 12 * 2**20
    wait_until(lambda: not refused(), "the spool takes events again", seconds=2)
    assert_adds_up(store.counts())
    store.close()


def test_another_process_at_the_file_is_waited_for(tmp_path: pathlib.Path) -> None:
    """A short lock delays an append; a long one is an error within the busy limit, and everything works after it."""
    path = tmp_path / "usage.db"
    store = open_spool(path)
    appended = threading.Event()

    def append() -> None:
        store.append([make_batch(1)], Tally())
        appended.set()

    with held_spool(path):
        thread = threading.Thread(target=append, daemon=True)
        thread.start()
        too_early = appended.wait(0.2)
    in_time = appended.wait(5)
    thread.join(5)
    with held_spool(path), pytest.raises(SpoolError, match="locked"):
        run_with_deadline(store.append, [make_batch(2)], Tally(), seconds=5)
    store.append([make_batch(2)], Tally())

    assert not too_early
    assert in_time
    assert store.counts().pending.events == 2
    store.close()
