"""What the tests of the buffer hand in, and how they look at the outcome: fakes that check the protocol themselves."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union

import pytest

from x402tools import _batch
from x402tools._batch import EncodedBatch, Post
from x402tools._event import Event
from x402tools._flusher import Observer
from x402tools._spool import Spool
from x402tools._store import (
    Acknowledgement,
    Allowance,
    Burial,
    ChangedError,
    Counts,
    DeadLetter,
    HeldPost,
    Holding,
    Place,
    RecordedBatch,
    SealedBatch,
    Tally,
)
from x402tools._takeover import Takeover
from x402tools.buffer import BufferStats
from x402tools.errors import SpoolError

URL = "http://127.0.0.1:1"  # where a test's own `deliver` pretends to send to
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(__file__).with_name("programs")

# Seconds. A busy machine needs far less; a hang is found within it.
PATIENCE = 15.0
_LOOK_EVERY = 0.005


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Returns when the condition holds; fails the test, saying what did not happen, when it does not in time."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"within {seconds:g} s it did not happen that {what}", pytrace=False)
        pause.wait(_LOOK_EVERY)


# -- events and batches ------------------------------------------------------------------------------------------


def make_event(number: Union[int, str] = 1, amount: int = 1, metadata: Any = None, envelope: str = "env_1") -> Event:
    return (number, envelope, amount, metadata, 1_700_000_000.25)


def make_batch(name: int, amounts: Sequence[int] = (1,), recorder: str = "rec") -> EncodedBatch:
    """A batch whose POSTs have the keys "<recorder>-<name>-<position>"."""
    events = [make_event(f"{recorder}-{name}-{at}", amount) for at, amount in enumerate(amounts)]
    return _batch.encode(recorder, name, events)


def stored_posts(path: Union[str, os.PathLike[str]]) -> List[Post]:
    """Every POST that the next start would find, oldest first: sealed in the file, or in a killed process's journal."""
    store = Spool(os.fspath(path), sync="FULL", max_bytes=2**40)
    try:
        Takeover(store).run()
        found: List[Post] = []
        after = 0
        while True:
            batches = store.oldest_sealed(after, 50)
            if not batches:
                return found
            after = batches[-1].sequence
            found.extend(post for batch in batches for _, post in batch.posts)
    finally:
        store.close()


def assert_adds_up(counts: Union[Counts, BufferStats]) -> None:
    """The one equation: recorded = delivered + pending + dead + dropped, in events and in units."""
    assert counts.recorded == counts.delivered.plus(counts.pending).plus(counts.dead).plus(counts.dropped), counts


@contextlib.contextmanager
def held_spool(path: Union[str, os.PathLike[str]]) -> Iterator[None]:
    """Inside, another connection holds the write lock, as a backup tool or a hand at the sqlite3 prompt would."""
    connection = sqlite3.connect(os.fspath(path), isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def change_file(path: Union[str, os.PathLike[str]], sql: str, parameters: Sequence[Any] = ()) -> None:
    """Somebody else's hand in the spool."""
    connection = sqlite3.connect(os.fspath(path), isolation_level=None)
    try:
        connection.execute(sql, parameters)
    finally:
        connection.close()


# -- fakes -------------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "a clock never goes back"
        self.now += seconds


Answer = Union[None, BaseException, Callable[[], None]]


class ScriptedDelivery:
    """A `deliver` whose answers are scripted by key: each call takes the next; the last one stays.

    None means taken, an exception is raised, a function is called. It fails the test's expectations itself: a key
    that comes with another body, or again after it was taken, is written down in `faults`.
    """

    def __init__(self, script: Optional[Dict[str, Sequence[Answer]]] = None, default: Answer = None) -> None:
        self.script = {key: list(answers) for key, answers in (script or {}).items()}
        self.default = default
        self.attempts: List[Tuple[str, bytes]] = []
        self.taken: List[str] = []
        self.faults: List[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._bodies: Dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __call__(self, body: bytes, key: str) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.attempts.append((key, body))
            if self._bodies.setdefault(key, body) != body:
                self.faults.append(f"{key} came with another body")
            if key in self.taken:
                self.faults.append(f"{key} came again after it was taken")
            answers = self.script.get(key)
            answer = self.default if answers is None else answers[0]
            if answers is not None and len(answers) > 1:
                answers.pop(0)
        try:
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                answer()
            with self._lock:
                self.taken.append(key)
        finally:
            with self._lock:
                self._at_once -= 1

    def keys(self) -> List[str]:
        """The keys of all attempts, in order."""
        with self._lock:
            return [key for key, _ in self.attempts]

    def bodies(self) -> List[Any]:
        """What was taken, as JSON values in the order of the first attempts."""
        with self._lock:
            return [json.loads(self._bodies[key]) for key in self._bodies if key in self.taken]


class Shelf:
    """What a `FakeStore` keeps; several stores may share one, as processes share a spool."""

    def __init__(self) -> None:
        self.batch_ids: Set[str] = set()
        self.unfolded: Dict[int, EncodedBatch] = {}
        self.last_recorded = 0
        self.sealed: Dict[int, List[Optional[Post]]] = {}  # None: settled
        self.dead: Dict[int, DeadLetter] = {}
        self.held: Dict[int, HeldPost] = {}
        self.sending: Dict[Place, float] = {}
        self.last_sequence = 0
        self.last_letter = self.last_held = 0
        self.recorded = self.delivered = self.dropped = Tally()
        self.holder: Optional[FakeStore] = None


class FakeStore:
    """A store in memory. It keeps to `_store.Store` (the conformance tests run on it) and refuses calls after close.

    `failing` makes every call raise; `calls` names those that were made; `settlements` has the sizes.
    """

    def __init__(self, shelf: Optional[Shelf] = None) -> None:
        self.shelf = shelf if shelf is not None else Shelf()
        self.failing: Optional[SpoolError] = None
        self.failing_sync: Optional[SpoolError] = None
        self.claimable = True
        self.closed = False
        self.calls: List[str] = []
        self.settlements: List[Tuple[int, int]] = []
        self.buried: List[Burial] = []
        self.allows: Callable[[int], Allowance] = Allowance
        self.asked: List[int] = []
        self.shuts: List[Tuple[str, float]] = []
        self.reopened = 0
        self._handed_out: Set[int] = set()
        self._read_up_to = 0
        self._lock = threading.RLock()

    def append(self, batches: Sequence[EncodedBatch], dropped: Tally) -> None:
        with self._called("append"):
            for batch in batches:
                if batch.id not in self.shelf.batch_ids:
                    self.shelf.batch_ids.add(batch.id)
                    self.shelf.recorded = self.shelf.recorded.plus(Tally(batch.events, batch.units))
                    self._put(batch)
            self.shelf.recorded = self.shelf.recorded.plus(dropped)
            self.shelf.dropped = self.shelf.dropped.plus(dropped)

    def _put(self, batch: EncodedBatch) -> None:
        if batch.is_sealed:
            self._seal(_batch.decode(batch.value))
        else:
            self.shelf.last_recorded += 1
            self.shelf.unfolded[self.shelf.last_recorded] = batch

    def recorded(self, after: int, limit: int) -> List[RecordedBatch]:
        with self._called("recorded"):
            found = sorted(sequence for sequence in self.shelf.unfolded if sequence > after)[:limit]
            if found:
                self._read_up_to = found[-1]
            rows = {sequence: _batch.recorded_rows(self.shelf.unfolded[sequence].value) for sequence in found}
            return [RecordedBatch(sequence, time.time(), *rows[sequence]) for sequence in found]

    def seal(self, up_to: int, batches: Sequence[EncodedBatch]) -> None:
        with self._called("seal"):
            if self.shelf.holder is not self or self._read_up_to != up_to:
                raise ChangedError("read again")
            gone = [sequence for sequence in self.shelf.unfolded if sequence <= up_to]
            for sequence in gone:
                del self.shelf.unfolded[sequence]
            for batch in batches if gone else ():
                self._seal(_batch.decode(batch.value))

    def sweep(self) -> bool:
        with self._called("sweep"):
            return False

    def last_recorded(self) -> int:
        with self._called("last_recorded"):
            return self.shelf.last_recorded

    def first_recorded(self) -> Optional[int]:
        with self._called("first_recorded"):
            return min(self.shelf.unfolded, default=None)

    def oldest_sealed(self, after: int, limit: int) -> List[SealedBatch]:
        with self._called("oldest_sealed"):
            sequences = sorted(sequence for sequence in self.shelf.sealed if sequence > after)[:limit]
            self._handed_out.update(sequences)
            return [self._handed(sequence) for sequence in sequences]

    def settle(
        self, acknowledged: Sequence[Acknowledgement], buried: Sequence[Burial], held: Sequence[Holding] = ()
    ) -> None:
        with self._called("settle"):
            assert self.shelf.holder is self, "settled without the claim"
            places = [*(done.place for done in acknowledged), *(one.place for one in (*buried, *held))]
            assert len(set(places)) == len(places), "one POST settled twice"
            for place in places:
                assert place.sequence in self._handed_out, f"{place} was never handed out"
                assert self.shelf.sealed[place.sequence][place.position] is not None, f"{place} was settled before"
            for done in acknowledged:
                self.shelf.delivered = self.shelf.delivered.plus(Tally(done.post.events, done.post.amount))
            for burial in buried:
                self._bury(burial)
            for holding in held:
                self.shelf.last_held += 1
                self.shelf.held[self.shelf.last_held] = HeldPost(self.shelf.last_held, holding.post, time.time())
            for place in places:
                self.shelf.sending.pop(place, None)
                posts = self.shelf.sealed[place.sequence]
                posts[place.position] = None
                if not any(posts):
                    del self.shelf.sealed[place.sequence]
            self.settlements.append((len(acknowledged), len(buried)))
            self.buried.extend(buried)

    def note_sending(self, begun: Sequence[Place], ended: Sequence[Place] = ()) -> List[Place]:
        with self._called("note_sending"):
            if self.shelf.holder is not self:
                raise SpoolError("noted without the claim")
            for place in ended:
                self.shelf.sending.pop(place, None)
            for place in begun:
                self.shelf.sending.setdefault(place, time.time())
            return list(begun)

    def held(self, after: int, limit: int) -> List[HeldPost]:
        with self._called("held"):
            return [self.shelf.held[number] for number in sorted(self.shelf.held) if number > after][:limit]

    def resolve(self, booked: Sequence[int], absent: Sequence[int]) -> Tuple[List[Post], List[Post]]:
        with self._called("resolve"):
            delivered, resent = self._take_held(booked), self._take_held(absent)
            for post in delivered:
                self.shelf.delivered = self.shelf.delivered.plus(Tally(post.events, post.amount))
            if resent:
                self._seal(resent)
            return delivered, resent

    def last_sequence(self) -> int:
        with self._called("last_sequence"):
            return self.shelf.last_sequence

    def first_sequence(self) -> Optional[int]:
        with self._called("first_sequence"):
            return min(self.shelf.sealed, default=None)

    def dead_letters(self, after: int, limit: int) -> List[DeadLetter]:
        with self._called("dead_letters"):
            return [self.shelf.dead[number] for number in sorted(self.shelf.dead) if number > after][:limit]

    def requeue(self, ids: Sequence[int]) -> int:
        with self._called("requeue"):
            letters = [self.shelf.dead.pop(number) for number in sorted(set(ids)) if number in self.shelf.dead]
            if letters:
                self._seal(
                    [
                        Post(one.key, one.envelope_id, one.amount, one.metadata, one.recorded_at, one.events)
                        for one in letters
                    ]
                )
            return len(letters)

    def counts(self) -> Counts:
        with self._called("counts"):
            left = [post for posts in self.shelf.sealed.values() for post in posts if post is not None]
            dead = list(self.shelf.dead.values())
            held = [one.post for one in self.shelf.held.values()]
            unsettled = [*left, *held]
            unfolded = self.shelf.unfolded.values()
            waiting = Tally(sum(batch.events for batch in unfolded), sum(batch.units for batch in unfolded))
            return Counts(
                recorded=self.shelf.recorded,
                delivered=self.shelf.delivered,
                pending=waiting.plus(
                    Tally(sum(post.events for post in unsettled), sum(post.amount for post in unsettled))
                ),
                dead=Tally(sum(one.events for one in dead), sum(one.amount for one in dead)),
                dropped=self.shelf.dropped,
                oldest_pending_at=1.0 if unsettled or unfolded else None,
                size=0,
                held=Tally(sum(post.events for post in held), sum(post.amount for post in held)),
            )

    def sync(self) -> None:
        with self._called("sync"):
            if self.failing_sync is not None:
                raise self.failing_sync

    def claim(self) -> bool:
        with self._called("claim"):
            if self.claimable and self.shelf.holder is None:
                self.shelf.holder = self
                self._handed_out.clear()
                self._read_up_to = 0
            return self.shelf.holder is self

    def allowance(self, most: int) -> Allowance:
        with self._called("allowance"):
            self.asked.append(most)
            return self.allows(most)

    def shut(self, reason: str, seconds: float) -> None:
        with self._called("shut"):
            self.shuts.append((reason, seconds))

    def reopen(self) -> None:
        with self._called("reopen"):
            self.reopened += 1

    def release(self) -> None:
        with self._lock:
            self.calls.append("release")
            if self.shelf.holder is self:
                self.shelf.holder = None

    def tidy(self) -> None:
        with self._called("tidy"):
            assert not self.shelf.sealed, "tidied while something is pending"

    def close(self) -> None:
        self.release()
        with self._lock:
            self.calls.append("close")
            self.closed = True

    @contextlib.contextmanager
    def _called(self, name: str) -> Iterator[None]:
        with self._lock:
            self.calls.append(name)
            assert not self.closed, f"{name} after close"
            if self.failing is not None:
                raise self.failing
            yield

    def _seal(self, posts: Iterable[Post]) -> None:
        self.shelf.last_sequence += 1
        self.shelf.sealed[self.shelf.last_sequence] = list(posts)

    def _handed(self, sequence: int) -> SealedBatch:
        sent = {place.position: since for place, since in self.shelf.sending.items() if place.sequence == sequence}
        return SealedBatch(sequence, list(self._left(sequence)), sent)

    def _take_held(self, ids: Sequence[int]) -> List[Post]:
        return [self.shelf.held.pop(number).post for number in ids if number in self.shelf.held]

    def _left(self, sequence: int) -> Iterator[Tuple[Place, Post]]:
        for position, post in enumerate(self.shelf.sealed[sequence]):
            if post is not None:
                yield Place(sequence, position), post

    def _bury(self, burial: Burial) -> None:
        post = burial.post
        self.shelf.last_letter += 1
        self.shelf.dead[self.shelf.last_letter] = DeadLetter(
            id=self.shelf.last_letter,
            key=post.key,
            envelope_id=post.envelope_id,
            amount=post.amount,
            metadata=json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata,
            reason=burial.reason,
            status_code=burial.status_code,
            attempts=burial.attempts,
            recorded_at=post.recorded_at,
            died_at=2.0,
            events=post.events,
        )


class RecordingObserver(Observer):
    """Writes down what the flusher tells."""

    def __init__(self) -> None:
        self.delivered: List[Post] = []
        self.buried: List[Burial] = []
        self.was_held: List[Holding] = []
        self.gate: List[Optional[str]] = []
        self.store: List[Optional[SpoolError]] = []

    def settled(self, delivered: List[Post], buried: List[Burial]) -> None:
        self.delivered.extend(delivered)
        self.buried.extend(buried)

    def held(self, held: List[Holding]) -> None:
        self.was_held.extend(held)

    def gate_changed(self, reason: Optional[str]) -> None:
        self.gate.append(reason)

    def store_failed(self, error: Optional[SpoolError]) -> None:
        self.store.append(error)


# -- other processes ---------------------------------------------------------------------------------------------


def environment() -> Dict[str, str]:
    """This process's environment, with the package importable as it is here."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Program:
    """A Python process with a conversation: lines go in and come out, and every wait has a deadline."""

    def __init__(self, source: Union[str, pathlib.Path], *arguments: object) -> None:
        code = source.read_text(encoding="utf-8") if isinstance(source, pathlib.Path) else source
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # so that its children end with it, at the end of the test
        )
        self._lines: queue.Queue[Optional[str]] = queue.Queue()
        self._errors: List[bytes] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, seconds: float = PATIENCE) -> str:
        """The next line that it prints."""
        try:
            found = self._lines.get(timeout=seconds)
        except queue.Empty:
            pytest.fail(f"the program printed nothing for {seconds:g} s; {self.errors()}", pytrace=False)
        if found is None:
            pytest.fail(f"the program ended; {self.errors()}", pytrace=False)
        return found

    def lines(self) -> List[str]:
        """What it printed until it ended."""
        found = list(iter(self._lines.get, None))
        self._lines.put(None)
        return found

    def answer(self) -> Any:
        """The next line, which is JSON."""
        return json.loads(self.line())

    def tell(self, line: str) -> None:
        """A line for its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def ask(self, **command: Any) -> Any:
        """A command as JSON, and its answer."""
        self.tell(json.dumps(command))
        return self.answer()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self.ended()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            pytest.fail(f"the program did not end within {seconds:g} s; {self.errors()}", pytrace=False)
        for reader in self._readers:
            reader.join(1.0)  # a child that lives on may hold the other end
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not any(reader.is_alive() for reader in self._readers):
                with contextlib.suppress(OSError):
                    pipe.close()
        return status

    def errors(self) -> str:
        return b"".join(self._errors).decode("utf-8", "replace")[-4000:]

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode().rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)
