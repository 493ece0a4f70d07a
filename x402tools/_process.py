"""What the operating system knows of processes: forks, and who of several processes delivers.

Fork. A child has a copy of the parent's memory but none of its threads, and every lock may be held by a thread that
no longer exists. So the child never touches what the parent built: each object that has threads, sockets or locks is
told to forget them (`forget_after_fork`) and builds its own when it next needs them.

SQLite in particular must not be open in a process while it forks: it keeps an account of its file locks per process,
the child inherits that account without the locks, and takes a connection of its own for a second one of the parent's.
Then the last of the others to close deletes the write-ahead log under the child, with what it has committed. So the
parent closes its connection just before a fork, and opens it again when it next needs it (`pause_for_forks`).

Delivery. Of all processes that share a spool exactly one delivers: the one that holds a lock on a file beside it. The
lock is a POSIX record lock (`fcntl.lockf`): the kernel drops it when its holder dies, however it dies, and a child
does not inherit it. A `flock` would live on in any child that was forked while it was held.

End. `atexit` runs when a program ends by itself, and not in children that `multiprocessing` forked: those leave by
`os._exit`, after the finalizers of `multiprocessing` itself.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging  # noqa: F401 - before our hooks are registered, see the end of this file
import os
import struct
import sys
import threading
import weakref
from typing import Any, Callable, ClassVar, Dict, List, Optional, Protocol, Tuple

try:
    import fcntl
except ImportError:  # Windows: the client works there, UsageBuffer says that it does not
    fcntl = None  # type: ignore[assignment]  # a module is not Optional for the type checker


class Forgetful(Protocol):
    def forget(self) -> None:
        """Runs in a forked child: let go of what the parent built, touch none of its locks, close nothing."""


class Pausing(Protocol):
    def pause_for_fork(self) -> None:
        """Runs in the parent just before a fork, on the forking thread: be in no state that a copy could harm."""

    def resume_after_fork(self) -> None:
        """Runs in the parent just after the fork."""


_forgetful: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def forget_after_fork(thing: Forgetful) -> None:
    """From now on `thing.forget()` runs in every child that is forked, while `thing` lives."""
    _forgetful.add(thing)


_pausing: weakref.WeakSet[Pausing] = weakref.WeakSet()
_paused: List[Pausing] = []  # between the two hooks around a fork, which run on one thread


def pause_for_forks(thing: Pausing) -> None:
    """From now on `thing` is paused around every fork, while it lives."""
    _load_what_ending_threads_need()
    _pausing.add(thing)


def _load_what_ending_threads_need() -> None:
    """The first thread of a process that ends has glibc load this library, and a fork in that moment leaves the child
    with a loader that aborts it ("Inconsistency detected by ld.so"). Pausing ends a thread just before a fork."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError):  # another C library than glibc
            ctypes.CDLL("libgcc_s.so.1")


def _pause_all() -> None:
    for thing in list(_pausing):
        thing.pause_for_fork()
        _paused.append(thing)


def _resume_all() -> None:
    while _paused:
        _paused.pop().resume_after_fork()


def _forget_all() -> None:
    _paused.clear()
    for thing in list(_forgetful):
        thing.forget()
    FileLock.forget_all()


def in_background(work: Callable[[], object]) -> bool:
    """Runs `work` on a thread of its own, which nothing waits for; False when none can be started.

    For a `__del__`, which can run in the middle of anything, of `threading` itself too: a `Thread` takes locks when it
    starts, and the code that was interrupted may hold them.
    """
    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:
        return False
    return True


def can_lock_files() -> bool:
    """False on a system without `fcntl`, where several processes could not agree on who delivers."""
    return fcntl is not None


def at_exit(callback: Callable[[], object]) -> Callable[[], None]:
    """Has `callback` called when this process ends by itself; what is returned takes that back.

    In a child of multiprocessing it may be called twice, and in a child that `os.fork` made it is called too.
    """
    atexit.register(callback)
    finalizer: Any = None
    process = sys.modules.get("multiprocessing.process")  # loaded, where it made this process
    if process is not None and process.parent_process() is not None:
        from multiprocessing import util

        # Of those that run, the last: others may still record.
        finalizer = util.Finalize(None, callback, exitpriority=0)

    def take_back() -> None:
        atexit.unregister(callback)
        if finalizer is not None:
            finalizer.cancel()

    return take_back


class FileLock:
    """An exclusive lock on a file, held by at most one object of one process at a time.

    A POSIX lock belongs to the whole process, and *any* close of the file by the process drops it. So the objects of
    a process share one descriptor per path, kept open until the holder releases it, and take turns by `_holders`.
    """

    _registry_lock = threading.RLock()  # guards _holders; a `__del__` may come in between
    _holders: ClassVar[Dict[str, FileLock]] = {}

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)
        self._descriptor: Optional[int] = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Takes the lock if nobody has it; never waits.

        Raises:
            OSError: the lock file cannot be opened.
        """
        if self.held:
            return True
        with self._registry_lock:
            if self._path in self._holders:
                return False
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            self._holders[self._path] = self
            return True

    def is_at_its_path(self) -> bool:
        """Whether others who look there find the file that is locked here."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return self._descriptor is not None and os.path.samestat(found, os.fstat(self._descriptor))

    def note(self, few: bytes) -> None:
        """Writes these bytes into the file, for whoever has the lock after this. Raises OSError."""
        descriptor = self._descriptor
        if descriptor is not None:
            os.pwrite(descriptor, few, 0)

    def noted(self, most: int) -> bytes:
        """What was written by `note`, up to so many bytes. Raises OSError."""
        return b"" if self._descriptor is None else os.pread(self._descriptor, most, 0)

    def release(self) -> None:
        """Lets another take over; does nothing when the lock is not held."""
        with self._registry_lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                del self._holders[self._path]
                os.close(descriptor)

    @classmethod
    def forget_all(cls) -> None:
        """In a forked child: the parent's locks are not ours. Closing our copies of its descriptors is harmless."""
        cls._registry_lock = threading.RLock()
        for lock in cls._holders.values():
            if lock._descriptor is not None:
                os.close(lock._descriptor)
                lock._descriptor = None
        cls._holders = {}


def holder_of(path: str, *, byte: int = 0) -> Optional[int]:
    """The process that has a lock on this file which begins at `byte` or covers it; its lock is left alone.

    Returns:
        Its process id, 0 when it cannot be seen from here (another container), None when there is none or nobody can
        say. A lock of the asking process itself is not seen by the system, and found among the `FileLock`s.
    """
    if not can_lock_files():
        return None
    path = os.path.realpath(path)
    if path in FileLock._holders:  # and opening the file, to close it again, would drop that lock
        return os.getpid()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _lock_asked_for(byte))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    kind, pid = _lock_told(answer)
    return None if kind == fcntl.F_UNLCK else pid


# `struct flock`, whose members stand in another order on each kind of system; all but Linux here are BSDs.
_ON_LINUX: bool = sys.platform == "linux"
_FLOCK = "hhqqi4x" if _ON_LINUX else "qqihh"


def _lock_asked_for(byte: int) -> bytes:
    kind, start, length = fcntl.F_WRLCK, byte, 1 if byte else 0  # no length: to the end of the file
    if _ON_LINUX:
        return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
    return struct.pack(_FLOCK, start, length, 0, kind, os.SEEK_SET)


def _lock_told(answer: bytes) -> Tuple[int, int]:
    """The kind of the lock and its holder."""
    members = struct.unpack(_FLOCK, answer)
    return (members[0], members[4]) if _ON_LINUX else (members[3], members[2])


# `logging` takes its lock before a fork, with a hook of its own, and hooks before a fork run in reverse order. Were its
# hook registered after ours, it would hold the lock while we end the connection thread, which waits for it to log.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_forget_all)
