"""The journal of `durability="commit"`: what is in it survives the process, and is stored once, in its order."""

from __future__ import annotations

import linecache
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import zlib
from functools import partial
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from tests.buffer.helpers import (
    URL,
    Program,
    ScriptedDelivery,
    assert_adds_up,
    change_file,
    held_spool,
    make_event,
    stored_posts,
    wait_until,
)
from x402tools import UsageBuffer, _journal, _journal_file, _journal_steps
from x402tools._batch import Post
from x402tools._event import Event
from x402tools._journal import JournalledIntake
from x402tools._settings import Settings, UserCallbacks
from x402tools._spool import Spool
from x402tools._store import Tally
from x402tools._takeover import Takeover

SETTINGS = Settings(
    path="",
    makes_folder=False,
    durability="commit",
    flush_at=100,
    flush_interval=1.0,
    max_concurrency=8,
    max_queue_size=100_000,
    max_disk_bytes=2**30,
    on_queue_full="reject",
    max_attempts=20,
    exit_timeout=1.0,
    delivers=False,
    user=UserCallbacks(),
)


def journalled(path: pathlib.Path) -> JournalledIntake:
    return JournalledIntake(1000, str(path), SETTINGS.frame)


def record(intake: JournalledIntake, number: int) -> bool:
    event = make_event(number)
    intake.put(event)
    return intake.write(event)


@pytest.fixture
def spool(tmp_spool: pathlib.Path) -> Iterator[Spool]:
    opened = Spool(str(tmp_spool), sync="FULL", max_bytes=2**40)
    yield opened
    opened.close()


def is_gone(path: pathlib.Path) -> bool:
    return not path.exists()


def journals(path: pathlib.Path) -> List[pathlib.Path]:
    return sorted(path.parent.glob(path.name + ".journal-*"))


def keys(posts: List[Post], intake: JournalledIntake) -> List[int]:
    """The numbers of events of this recorder, in the order in which they are stored."""
    assert all(post.key.startswith(intake.recorder + "-") for post in posts)
    return [int(post.key.rpartition("-")[2]) for post in posts]


def take_all(intake: JournalledIntake) -> List[Event]:
    """As the writer does."""
    intake.bring_in(everything=False)
    taken: List[Event] = []
    while intake.ready():
        taken += intake.take(500)
    return taken


TOLD: List[Optional[str]] = []  # what people should know


def all_stored(intake: JournalledIntake) -> None:
    """As the writer does when it has stored what it took."""
    intake.stored()
    intake.tend(threading.RLock())
    TOLD.append(intake.take_notice())


# -- what a process that is gone left ------------------------------------------------------------------------------


def test_what_was_written_is_stored_by_who_finds_it(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """In its order and once; then the files are gone."""
    intake = journalled(tmp_spool)
    assert all(record(intake, number) for number in range(1, 1201))
    intake.end(all_stored=False)

    Takeover(spool).run()
    Takeover(spool).run()

    assert keys(stored_posts(tmp_spool), intake) == list(range(1, 1201))
    assert spool.counts().recorded == Tally(1200, 1200)
    assert journals(tmp_spool) == []


@pytest.mark.parametrize("stored", [1, 7, 20])
def test_what_was_stored_is_not_stored_again(spool: Spool, tmp_spool: pathlib.Path, stored: int) -> None:
    """Killed between a commit and taking what it stored out of the file."""
    intake = journalled(tmp_spool)
    for number in range(1, 21):
        record(intake, number)
    events = intake.take(stored)
    spool.append([SETTINGS.encode(intake.recorder, intake.taken, events)], Tally())
    intake.end(all_stored=False)

    Takeover(spool).run()

    assert keys(stored_posts(tmp_spool), intake) == list(range(1, 21))
    assert spool.counts().recorded == Tally(20, 20)


def test_killed_in_the_middle_of_taking_over(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """The next one goes on where that one was, at a place that need not be the end of a batch of its own."""
    intake = journalled(tmp_spool)
    for number in range(1, 1001):
        record(intake, number)
    intake.end(all_stored=False)
    copies = {path: path.read_bytes() for path in journals(tmp_spool)}

    Takeover(spool).run()
    for path, content in copies.items():
        path.write_bytes(content)
        path.chmod(0o600)
    # As if only the first of its batches had been stored, and the number with it.
    spool.forget_recorder(intake.recorder)
    spool._file._connection.run_alone(
        "WITH one AS (SELECT ?, ?) REPLACE INTO meta SELECT * FROM one", (f"journal {intake.recorder}", 1000)
    )
    Takeover(spool).run()

    assert keys(stored_posts(tmp_spool), intake) == list(range(1, 1001))


def test_a_frame_that_was_cut_off_is_left_out(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """At any byte: nobody was told that its event is stored. The file is not taken for damaged."""
    intake = journalled(tmp_spool)
    for number in (1, 2):
        record(intake, number)
    intake.end(all_stored=False)
    _, file = journals(tmp_spool)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        reading = _journal_file.Reading(str(file))
        frames = [frame.first for frame in reading]
        assert frames == ([1] if length >= len(whole) // 2 else [])
        assert not reading.is_damaged

    Takeover(spool).run()

    assert keys(stored_posts(tmp_spool), intake) == [1]
    assert journals(tmp_spool) == []
    assert spool.notices == []


def test_a_damaged_file_is_set_aside(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """Whichever bit it is: what stands before it is stored, nothing that was not recorded is, and people are told."""
    intake = journalled(tmp_spool)
    for number in (1, 2, 3):
        record(intake, number)
    intake.end(all_stored=False)
    _, file = journals(tmp_spool)
    content = bytearray(file.read_bytes())
    frame = len(content) // 3
    for at in range(frame, 2 * frame):
        changed = bytes([*content[:at], content[at] ^ 4, *content[at + 1 :]])
        file.write_bytes(changed)
        reading = _journal_file.Reading(str(file))
        assert [one.first for one in reading] == [1]
        # A length that grew by so much that the file ends first looks like one that was cut off.
        assert reading.is_damaged or frame + 14 <= at < frame + 18
    file.write_bytes(bytes([*content[: frame + 20], content[frame + 20] ^ 4, *content[frame + 21 :]]))

    Takeover(spool).run()

    assert keys(stored_posts(tmp_spool), intake) == [1]
    assert journals(tmp_spool) == []
    assert any("damaged" in notice for notice in spool.notices)
    (aside,) = tmp_spool.parent.glob(tmp_spool.name + ".corrupt-*")
    assert aside.stat().st_size == len(content)


@pytest.mark.parametrize(
    "rows",
    [
        b"[[1,2,3]]",
        b'[[1,"env",-1.5,null,1]]',
        b'[[1,"env","1",null,1]]',
        b'[[{},"env",1,null,1]]',
        b'[[1,"env",1,[],1]]',
        b'{"1":2}',
        b"[" * 10_000,
        b"\xff",
        b"7",
        b"[[]]",
    ],
)
def test_a_file_that_was_made_up_never_reaches_the_bill(spool: Spool, tmp_spool: pathlib.Path, rows: bytes) -> None:
    """With a right checksum, and what no event of ours looks like."""
    name = f"{tmp_spool}.journal-j{'a' * 24}"
    rest = _journal_file._REST.pack(1, 1, 1, len(rows)) + rows
    pathlib.Path(name).touch(0o600)
    pathlib.Path(name + ".0").write_bytes(_journal_file._CHECKSUM.pack(zlib.crc32(rest)) + rest)

    Takeover(spool).run()

    assert stored_posts(tmp_spool) == []
    assert any("damaged" in notice for notice in spool.notices)


def test_a_planted_link_is_not_followed(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """Neither as a file with frames, nor in the place of one that is locked."""
    intake = journalled(tmp_spool)
    record(intake, 1)
    intake.end(all_stored=False)
    elsewhere = tmp_spool.with_name("elsewhere")
    journals(tmp_spool)[1].rename(elsewhere)
    for recorder, suffix in (("a", ".0"), ("b", "")):
        os.symlink(elsewhere, f"{tmp_spool}.journal-j{recorder * 24}{suffix}")

    Takeover(spool).run()

    assert stored_posts(tmp_spool) == []
    assert len(journals(tmp_spool)) == 2
    assert elsewhere.exists()


# -- a process that lives -----------------------------------------------------------------------------------------


def test_what_a_living_process_wrote_is_left_alone(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """Another buffer of this process as well: closing the file would drop the lock on it."""
    intake = journalled(tmp_spool)
    record(intake, 1)

    Takeover(spool).run()
    in_spool, files = spool.counts().recorded.events, len(journals(tmp_spool))
    record(intake, 2)
    intake.end(all_stored=False)
    Takeover(spool).run()

    assert (in_spool, files) == (0, 2)
    assert keys(stored_posts(tmp_spool), intake) == [1, 2]


def test_a_journal_whose_lock_was_deleted_is_left_for_a_while(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """Its process may live and make another; what has not been written to for long is taken over."""
    intake = journalled(tmp_spool)
    record(intake, 1)
    lock, file = journals(tmp_spool)
    lock.unlink()
    intake.end(all_stored=False)

    Takeover(spool).run()
    at_first = stored_posts(tmp_spool)
    os.utime(file, (1.0, 1.0))
    Takeover(spool).run()

    assert at_first == []
    assert keys(stored_posts(tmp_spool), intake) == [1]


def test_the_file_is_emptied_when_all_is_stored(tmp_spool: pathlib.Path) -> None:
    """And deleted at the end; nothing of it lingers."""
    with UsageBuffer(tmp_spool, durability="commit", deliver=False) as buffer:
        buffer.record("env", 1, {"name": "Ada"})
        for _ in range(2):
            _, file = journals(tmp_spool)
            mode = file.stat().st_mode & 0o777
            buffer.record("env", 1, {"name": "Ada"})
            wait_until(partial(is_gone, file), "the file is deleted")
            (lock, anew) = journals(tmp_spool)
            assert (lock.stat().st_size, anew.stat().st_size, mode) == (12, 0, 0o600)

    assert journals(tmp_spool) == []


def test_a_long_file_is_followed_by_another(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """Under steady traffic there is no moment at which all of it is stored. Whoever finds both reads both."""
    intake = journalled(tmp_spool)
    metadata = "x" * 60_000
    for number in range(1, 31):
        event = make_event(number, metadata={"pad": metadata})
        intake.put(event)
        assert intake.write(event)
        if number == 20:
            events = intake.take(12)
            spool.append([SETTINGS.encode(intake.recorder, intake.taken, events)], Tally())
            all_stored(intake)
    both = len(journals(tmp_spool))
    events = intake.take(10)
    spool.append([SETTINGS.encode(intake.recorder, intake.taken, events)], Tally())
    all_stored(intake)
    one = len(journals(tmp_spool))
    intake.end(all_stored=False)

    Takeover(spool).run()

    assert (both, one) == (3, 2)
    assert keys(stored_posts(tmp_spool), intake) == list(range(1, 31))


def test_a_file_that_cannot_be_written_has_callers_wait_for_a_commit(tmp_spool: pathlib.Path) -> None:
    """No event is taken for written that is not; when it can be written again, it is."""
    path = tmp_spool.with_name("not there yet") / "usage.db"
    intake = journalled(path)
    failed = [record(intake, number) for number in (1, 2, 3)]
    intake.bring_in(everything=False)
    first, noted = intake.take(2), intake.took_noted
    all_stored(intake)
    path.parent.mkdir(0o700)
    wait_until(lambda: all_stored(intake) or len(journals(path)) == 2, "the file is made")
    worked = record(intake, 4)
    numbers = [event[0] for event in take_all(intake)]
    intake.end(all_stored=False)

    spool = Spool(str(path), sync="FULL", max_bytes=2**40)
    Takeover(spool).run()
    spool.close()

    assert (failed, len(first), noted) == ([False] * 3, 2, False)
    assert (worked, numbers, intake.took_noted) == (True, [3, 4], True)
    assert keys(stored_posts(path), intake) == [3, 4]  # what was taken before is the writer's to store
    (told,) = [line for line in TOLD if line is not None and str(path) in line]
    assert "cannot be written ([Errno 2] No such file or directory" in told


def test_a_file_that_was_deleted_is_given_up(tmp_spool: pathlib.Path) -> None:
    """Nobody would find what is written to it, nor see that its process lives."""
    intake = journalled(tmp_spool)
    record(intake, 1)
    for path in journals(tmp_spool):
        path.unlink()

    take_all(intake)
    all_stored(intake)
    failed = record(intake, 2)
    intake.bring_in(everything=False)
    wait_until(lambda: all_stored(intake) or len(journals(tmp_spool)) == 2, "there is another")
    worked = record(intake, 3)
    intake.end(all_stored=False)

    assert (failed, worked) == (False, True)
    assert keys(stored_posts(tmp_spool), intake) == [2, 3]


def test_what_is_in_the_file_and_what_is_not_are_not_mixed(tmp_spool: pathlib.Path) -> None:
    """One batch is in it as a whole, the next one, recorded while it could not grow, not at all; then all are again."""
    intake = journalled(tmp_spool)
    before = [record(intake, number) for number in (1, 2)]
    _, file = journals(tmp_spool)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limits[1]))
    try:
        beyond = [record(intake, number) for number in (3, 4)]
        size = file.stat().st_size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    intake.bring_in(everything=False)
    parts = [([event[0] for event in intake.take(500)], intake.took_noted) for _ in range(2)]

    assert (before, beyond) == ([True, True], [False, False])
    assert parts == [([1, 2], True), ([3, 4], False)]
    assert [frame.first for frame in _journal_file.Reading(str(file))] == [1, 2]
    assert file.stat().st_size == size
    intake.end(all_stored=True)


# -- in the middle of anything --------------------------------------------------------------------------------------

FILES = (_journal.__file__, _journal_steps.__file__, _journal_file.__file__)


def interrupted_at(step: int, work: Callable[[], object], interrupt: Callable[[], object]) -> bool:
    """Does the work and calls `interrupt` before its so-and-so-many-th line in the journal; False if it has fewer.

    The end of a `with` is shown as its line once more. It is not counted: Python runs no handler between the last line
    inside and that end.
    """
    lines = [0]
    entered = set()

    def trace(frame: FrameType, event: str, _: Any) -> Optional[Callable[..., Any]]:
        if frame.f_code.co_filename not in FILES:
            return None
        at = id(frame), frame.f_lineno
        if event == "line" and at not in entered:
            if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                entered.add(at)
            lines[0] += 1
            if lines[0] == step:
                interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines[0] >= step


def in_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for what was interrupted"


def interrupted_there_at(step: int, work: Callable[[], object], interrupt: Callable[[], object]) -> bool:
    """The same in a thread that writes itself: a `__del__` may come in between there."""
    outcome: List[bool] = []
    in_another_thread(lambda: outcome.append(interrupted_at(step, work, interrupt)))
    return outcome[0]


WHERE = pytest.mark.parametrize("at", [interrupted_at, interrupted_there_at], ids=["main thread", "another thread"])


class Interrupted(BaseException):
    """As a handler raises it that has enough."""


def raise_it() -> None:
    raise Interrupted


def test_an_exception_in_the_middle_loses_and_doubles_nothing(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """At every line of it: what was recorded before and after is there once, in the file as in memory, and nobody waits
    for a lock that was not given back."""
    for step in range(1, 1000):
        intake = journalled(tmp_spool)
        record(intake, 1)
        try:
            went_so_far = interrupted_at(step, partial(record, intake, 2), raise_it)
        except Interrupted:
            went_so_far = True
        in_another_thread(partial(record, intake, 3))
        numbers = [event[0] for event in take_all(intake)]
        intake.end(all_stored=False)
        Takeover(spool).run()
        in_file = keys(stored_posts(tmp_spool), intake)
        spool._file._connection.run_alone("WITH one AS (SELECT 1) DELETE FROM sealed", ())

        assert numbers == in_file == [1, 2, 3], f"before line {step}"
        if not went_so_far:
            assert step > 15
            return
    pytest.fail("it never came to its end")


@WHERE
def test_a_record_in_the_middle_of_a_record_overtakes_it(
    at: Callable[..., bool], spool: Spool, tmp_spool: pathlib.Path
) -> None:
    """As a signal handler makes one, at every line: each event is there once, and in the file, unless its caller is
    told to wait for a commit."""
    for step in range(1, 1000):
        intake = journalled(tmp_spool)
        record(intake, 1)
        safe = {1: True}

        def note(number: int, intake: JournalledIntake = intake, safe: Dict[int, bool] = safe) -> None:
            safe[number] = record(intake, number)

        went_so_far = at(step, partial(note, 2), partial(note, 3))
        numbers = [event[0] for event in take_all(intake)]
        intake.end(all_stored=False)
        Takeover(spool).run()
        in_file = keys(stored_posts(tmp_spool), intake)
        spool._file._connection.run_alone("WITH one AS (SELECT 1) DELETE FROM sealed", ())

        assert sorted(numbers) == sorted(safe), f"before line {step}"
        assert {number for number in safe if safe[number]} <= set(in_file), f"before line {step}"
        assert numbers[: len(in_file)] == in_file, f"before line {step}"
        if not went_so_far:
            assert step > 15
            assert in_file == [1, 2]
            return
    pytest.fail("it never came to its end")


@WHERE
def test_who_was_overtaken_finds_that_out(at: Callable[..., bool], spool: Spool, tmp_spool: pathlib.Path) -> None:
    """At every line: a record comes in between, is stored, the file works again, and somebody else puts an event."""
    for step in range(1, 1000):
        intake = journalled(tmp_spool)
        record(intake, 1)
        last = make_event(4)

        def store(intake: JournalledIntake = intake) -> None:
            taken = take_all(intake)
            if taken:
                spool.append([SETTINGS.encode(intake.recorder, intake.taken, taken)], Tally())
            all_stored(intake)

        def come_between(intake: JournalledIntake = intake, last: Event = last, store: Any = store) -> None:
            record(intake, 3)
            in_another_thread(store)
            intake.put(last)

        went_so_far = at(step, partial(record, intake, 2), come_between)
        if went_so_far:
            in_another_thread(partial(intake.write, last))
        store()
        intake.end(all_stored=False)
        Takeover(spool).run()
        there = keys(stored_posts(tmp_spool), intake)
        spool._file._connection.run_alone("WITH one AS (SELECT 1) DELETE FROM sealed", ())

        assert sorted(there) == ([1, 2, 3, 4] if went_so_far else [1, 2]), f"before line {step}"
        if not went_so_far:
            return
    pytest.fail("it never came to its end")


@WHERE
def test_the_writer_waits_for_nobody_who_was_interrupted(
    at: Callable[..., bool], spool: Spool, tmp_spool: pathlib.Path
) -> None:
    """A handler flushes at any line, which is done in another thread: it ends, and each event is taken once."""
    for step in range(1, 1000):
        intake = journalled(tmp_spool)
        record(intake, 1)
        taken: List[Event] = []

        def flush(intake: JournalledIntake = intake, taken: List[Event] = taken) -> None:
            taken += take_all(intake)
            intake.waiting()
            all_stored(intake)

        went_so_far = at(
            step,
            partial(record, intake, 2),
            partial(in_another_thread, flush),
        )
        record(intake, 3)
        taken += take_all(intake)
        spool.append([SETTINGS.encode(intake.recorder, 3, taken)], Tally())
        is_done = intake.end(all_stored=True)

        assert [event[0] for event in taken] == [1, 2, 3], f"before line {step}"
        assert is_done
        assert journals(tmp_spool) == []
        if not went_so_far:
            assert step > 15
            return
    pytest.fail("it never came to its end")


@WHERE
@pytest.mark.parametrize("is_stored", [True, False])
def test_closing_in_the_middle_of_a_record(
    at: Callable[..., bool], spool: Spool, tmp_spool: pathlib.Path, is_stored: bool
) -> None:
    """At any line: either `record` was told that its event is written, or it can take it back and nobody stores it."""
    outcomes = set()
    for step in range(1, 1000):
        intake = journalled(tmp_spool)
        record(intake, 1)
        event, written = make_event(2), [False]

        def close(intake: JournalledIntake = intake) -> None:
            intake.bring_in(everything=False)
            if is_stored:
                taken = take_all(intake)
                spool.append([SETTINGS.encode(intake.recorder, intake.taken, taken)], Tally())
            intake.end(all_stored=is_stored)

        def write(intake: JournalledIntake = intake, event: Event = event, written: List[bool] = written) -> None:
            intake.put(event)
            written[0] = intake.write(event)

        went_so_far = at(step, write, partial(in_another_thread, close))
        taken_back = not written[0] and intake.withdraw(event)
        if not went_so_far:
            close()
        Takeover(spool).run()
        there = keys(stored_posts(tmp_spool), intake)
        spool._file._connection.run_alone("WITH one AS (SELECT 1) DELETE FROM sealed", ())

        outcomes.add(taken_back)
        assert there == ([1] if taken_back else [1, 2]), f"before line {step}"
        if not went_so_far:
            assert step > 15
            assert outcomes == {True, False}
            return
    pytest.fail("it never came to its end")


def test_what_somebody_else_is_just_writing_can_be_taken_back(tmp_spool: pathlib.Path) -> None:
    """At the end, where `record` says that it came too late: then it is not stored either."""
    begun, go_on = threading.Event(), threading.Event()

    def frame(recorder: str, first: int, events: Sequence[Event]) -> bytes:
        begun.set()
        assert go_on.wait(10)
        return SETTINGS.frame(recorder, first, events)

    intake = JournalledIntake(1000, str(tmp_spool), frame)
    refused = make_event(2)
    writer = threading.Thread(target=record, args=(intake, 1))
    writer.start()
    assert begun.wait(10)
    # Put while another thread writes, which then takes it along; struck out while that is still under way.
    begun.clear()
    intake.put(refused)
    go_on.set()
    go_on = threading.Event()
    assert begun.wait(10)

    assert intake.withdraw(refused)
    go_on.set()
    writer.join(10)

    assert [event[0] for event in take_all(intake)] == [1]


RECORDING_UNTIL_SIGTERM = """
import os, signal, sys
from x402tools import UsageBuffer
buffer = UsageBuffer(sys.argv[1], durability="commit", deliver=False)
def stop(*_):
    usage = buffer.record("handler", 10)
    buffer.flush(0) if sys.argv[2] == "flush" else buffer.close(2)
    os.write(1, b"%d\\n" % usage.pending)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    buffer.record("env", 1)
"""


@pytest.mark.parametrize("then", ["flush", "close"])
def test_a_handler_that_records_and_ends_the_process(tmp_path: pathlib.Path, then: str) -> None:
    """Nearly always in the middle of a record: what the handler recorded is there as well."""
    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        with Program(RECORDING_UNTIL_SIGTERM, path, then) as program:
            program.line()
            threading.Event().wait(0.02 * attempt)
            program.signal(signal.SIGTERM)
            assert program.line() == "1"
            assert program.ended() == 0
        with UsageBuffer(path, deliver=False) as buffer:
            assert buffer.pending_units("handler") == 10


MADE_BY_A_LOG_HANDLER = """
import logging, sys
from x402tools import UsageBuffer

class Handler(logging.Handler):
    buffer = None
    def emit(self, record):
        if record.name == "app":
            Handler.buffer = Handler.buffer or UsageBuffer(sys.argv[1], durability="commit", deliver=False)
            Handler.buffer.record("lines of a log", 1)

logging.getLogger().addHandler(Handler())
logging.getLogger().setLevel(logging.DEBUG)
logging.getLogger("app").warning("the first line")
Handler.buffer.close()
print("done", flush=True)
"""


def test_a_log_handler_that_makes_its_buffer(tmp_spool: pathlib.Path) -> None:
    """With the lock of a handler, while what a killed process left is taken over."""
    intake = journalled(tmp_spool)
    record(intake, 1)
    intake.end(all_stored=False)

    with Program(MADE_BY_A_LOG_HANDLER, tmp_spool) as program:
        assert program.line() == "done"
        program.ended()

    assert len(stored_posts(tmp_spool)) == 2


# -- beside a spool that fails --------------------------------------------------------------------------------------

RECORDING_BESIDE_A_LOCK = """
import os, sqlite3, sys
from x402tools import UsageBuffer
buffer = UsageBuffer(sys.argv[1], durability="commit", deliver=False, coalesce=sys.argv[2] == "coalesce")
buffer.record("env", 1)
buffer.flush(1)
lock = sqlite3.connect(sys.argv[1], isolation_level=None)
lock.execute("BEGIN IMMEDIATE")
for number in range(int(sys.argv[3])):
    buffer.record("env", 1)
print("recorded", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["coalesce", "each"])
def test_what_could_not_be_stored_survives_a_kill(tmp_spool: pathlib.Path, how: str) -> None:
    """The file was locked from the first moment to the kill."""
    with Program(RECORDING_BESIDE_A_LOCK, tmp_spool, how, "3000") as program:
        program.line()
        program.kill()

    with UsageBuffer(tmp_spool, deliver=False, coalesce=how == "coalesce") as buffer:
        stats = buffer.stats()

    assert (stats.recorded.events, stats.pending.events, stats.dropped.events) == (3001, 3001, 0)
    assert journals(tmp_spool) == []


def test_what_could_not_be_stored_until_the_end_is_not_lost(tmp_spool: pathlib.Path) -> None:
    """It is in the journal: pending, not dropped; the next start stores it."""
    dropped: List[Any] = []
    buffer = UsageBuffer(tmp_spool, durability="commit", deliver=False, on_drop=dropped.append)
    buffer.record("env", 1)
    buffer.flush(0.2)
    with held_spool(tmp_spool):
        for _ in range(1000):
            buffer.record("env", 1)
        result = buffer.close(0.3)
    left = len(journals(tmp_spool))

    with UsageBuffer(tmp_spool, deliver=False) as next_one:
        stats = next_one.stats()

    assert (bool(result), dropped, left) == (False, [], 2)
    assert buffer.stats().recorded.events == 1001  # as the spool says: it has it now
    assert (stats.recorded.events, stats.pending.events, stats.dropped.events) == (1001, 1001, 0)


def test_what_was_delivered_from_memory_is_not_stored_from_the_journal(tmp_spool: pathlib.Path) -> None:
    """The spool learns that it was, in one transaction with the number of what it need not store any more."""
    deliver = ScriptedDelivery()
    buffer = UsageBuffer(tmp_spool, durability="commit", flush_interval=0.02)
    buffer.attach(deliver, URL)
    with held_spool(tmp_spool):
        ids = [buffer.record("env", 1).id for _ in range(700)]
        wait_until(lambda: len(deliver.taken) == 700, "it is delivered from memory")
    recorder = buffer._start().intake.recorder
    spool = Spool(str(tmp_spool), sync="FULL", max_bytes=2**40)
    wait_until(lambda: spool.stored_up_to(recorder) == 700, "the spool knows")
    counts = spool.counts()
    spool.close()
    buffer.close()

    assert (counts.recorded.events, counts.pending.events) == (700, 0)
    assert sorted(deliver.taken) == sorted(ids)
    assert deliver.faults == []
    assert_adds_up(buffer.stats())


@pytest.mark.parametrize("options", [{"coalesce": True, "coalesce_window": 0.02}, {"on_unknown": "hold"}])
def test_what_may_not_be_sent_twice_is_not_sent_from_memory(tmp_spool: pathlib.Path, options: Dict[str, Any]) -> None:
    """A kill would have it sent once more from the journal: folded under another key, or although it may be booked."""
    deliver = ScriptedDelivery()
    with UsageBuffer(tmp_spool, durability="commit", flush_interval=0.02, **options) as buffer:
        buffer.attach(deliver, URL)
        with held_spool(tmp_spool):
            for _ in range(100):
                buffer.record("env", 1)
            wait_until(lambda: buffer.stats().problem is not None, "the spool fails")
            threading.Event().wait(0.3)
            before = list(deliver.taken)
        wait_until(lambda: buffer.stats().delivered.events == 100, "it is delivered")

    assert before == []
    assert sum(body["amount"] for body in deliver.bodies()) == 100


# -- several processes ----------------------------------------------------------------------------------------------

CHILD = """
import os, sys
from x402tools import UsageBuffer
buffer = UsageBuffer(sys.argv[1], durability="commit", deliver=False)
before = buffer.record("env", 1).id
if os.fork() == 0:
    print(before, buffer.record("env", 1).id, flush=True)
    os._exit(0)
os.wait()
print(buffer.record("env", 1).id, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_has_a_journal_of_its_own(tmp_spool: pathlib.Path) -> None:
    """Both end without a word; each event is stored once."""
    with Program(CHILD, tmp_spool) as program:
        before, of_child = program.line().split()
        after = program.line()
        program.ended()

    assert sorted(post.key for post in stored_posts(tmp_spool)) == sorted([before, of_child, after])


def test_another_process_finds_it_by_itself(tmp_spool: pathlib.Path) -> None:
    """Within about a second, without being asked for anything."""
    with UsageBuffer(tmp_spool, deliver=False) as buffer:
        with Program(RECORDING_BESIDE_A_LOCK, tmp_spool, "each", "40") as program:
            program.line()
            program.kill()
        wait_until(lambda: buffer.stats().pending.events == 41, "it is taken over")


def test_a_spool_that_is_locked_is_waited_for_once(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """However many killed processes there are: who opens it, or flushes, has a deadline."""
    for number in range(5):
        intake = journalled(tmp_spool)
        record(intake, number)
        intake.end(all_stored=False)
    takeover = Takeover(spool)

    with held_spool(tmp_spool):
        began = time.monotonic()
        takeover.run()
        took = time.monotonic() - began
    takeover.run()

    assert took < 2.5
    assert len(stored_posts(tmp_spool)) == 5


def test_two_who_find_it_store_it_once(tmp_spool: pathlib.Path) -> None:
    """At the same moment, from two threads and two spools of this process; one waits for nobody."""
    intake = journalled(tmp_spool)
    for number in range(1, 3001):
        record(intake, number)
    intake.end(all_stored=False)
    spools = [Spool(str(tmp_spool), sync="FULL", max_bytes=2**40) for _ in range(4)]
    together = threading.Barrier(4)

    def take_over(spool: Spool) -> None:
        together.wait(10)
        Takeover(spool).run()

    threads = [threading.Thread(target=take_over, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for spool in spools:
        spool.close()

    assert keys(stored_posts(tmp_spool), intake) == list(range(1, 3001))


def test_the_number_of_a_journal_is_kept_longer_than_the_journal(spool: Spool, tmp_spool: pathlib.Path) -> None:
    """However much others store meanwhile; and an hour longer, in which a statement may be done that was given up."""
    intake = journalled(tmp_spool)
    for number in (1, 2, 3):
        record(intake, number)
    late = SETTINGS.encode(intake.recorder, 3, take_all(intake))
    intake.end(all_stored=False)
    Takeover(spool).run()
    change_file(tmp_spool, "INSERT INTO meta (rowid, key, value) VALUES (900000, 'stored other', 1)")

    spool.forget_recorder(_journal_file.PREFIX + "one more")
    spool.append([late], Tally())
    recorded, known = spool.counts().recorded.events, spool.stored_up_to(intake.recorder)
    change_file(tmp_spool, "UPDATE meta SET value = value - 3700 WHERE key GLOB 'ended *'")
    spool.forget_recorder(_journal_file.PREFIX + "another")

    assert (recorded, known) == (3, 3)
    assert spool.stored_up_to(intake.recorder) == 0


def test_what_was_stored_in_another_spool_is_not_stored_here(tmp_spool: pathlib.Path) -> None:
    """The spool was deleted after the process was killed: what it had of the journal is gone, and not billed again."""
    intake = journalled(tmp_spool)
    for number in (1, 2, 3):
        record(intake, number)
    intake.take(2)
    all_stored(intake)
    intake.end(all_stored=False)

    assert keys(stored_posts(tmp_spool), intake) == [3]
