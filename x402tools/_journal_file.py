"""Files beside the spool in which a process notes at once what it records with `durability="commit"`.

    <spool>.journal-<recorder>      up to which place all is in the spool, and its CRC32; the process has a lock on it
                                    for as long as it lives, see `_process`
    <spool>.journal-<recorder>.<n>  frames, one behind the other; a new file when one has become long

A frame is what one write added: a header, and the rows of a batch as JSON, as they are going to stand in the spool
(`_batch`).

    bytes 0-3   CRC32 of the rest of the frame
    byte 4      format, now 1
    byte 5      1 when the events are sealed, else 0
    bytes 6-13  the place of its first event among all that this recorder has recorded, from 1
    bytes 14-17 length of the rows in bytes

Nothing here is synced: what is written survives the process, not the machine. Nobody reads these files but whoever
finds them without their process, see `_takeover`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
import zlib
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from x402tools import _batch, _json_writer
from x402tools._batch import CorruptBatchError
from x402tools._columns import Row
from x402tools._process import FileLock

FORMAT = 1
# Of recorders that keep a journal; what `meta` says of them is kept until their journal is gone, see `_spool_rows`.
PREFIX = "j"

_CHECKSUM = struct.Struct(">I")
_REST = struct.Struct(">BBQI")  # of the header
_MARK = struct.Struct(">Q")
# Of a file somebody made up: of ours the largest is below half of it, 500 events with 64 KiB each.
_LARGEST = 128 * 1024 * 1024
_MODE = 0o600  # as for the spool: usage may name people
_NAME = re.compile(r"\.journal-(j[0-9a-f]{24})(?:\.(\d{1,9}))?")


class Frame(NamedTuple):
    """What one write added."""

    first: int
    is_sealed: bool
    rows: List[Row]


def frame(first: int, rows: Sequence[Row], *, is_sealed: bool) -> bytes:
    """The frame of these rows, of which the first has that place."""
    written = _json_writer.write(rows)
    rest = _REST.pack(FORMAT, is_sealed, first, len(written)) + written
    return _CHECKSUM.pack(zlib.crc32(rest)) + rest


def lock_path(spool: str, recorder: str) -> str:
    """The file that its process has a lock on."""
    return f"{spool}.journal-{recorder}"


class Segment:
    """A file with frames that this process writes.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Its name is of this recorder alone, so one that is there is of an attempt before.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int = os.open(path, flags, _MODE)
        self.may_be_closed = True  # nobody can be about to write to it

    def write(self, data: bytes, at: int) -> None:
        """Writes behind the first `at` bytes.

        Raises:
            OSError: not all of it was written; nothing is there behind them, as far as that can be.
        """
        try:
            if os.pwrite(self._descriptor, data, at) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.cut(at)
            raise

    def cut(self, at: int) -> None:
        """Takes away what is behind the first `at` bytes, if that is possible."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, at)

    def remove(self) -> None:
        """Deletes it; if that is not possible, whoever finds it does."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Leaves it to whoever finds it, or in a forked child to the parent."""
        if self.may_be_closed:
            # The number first: a child that was forked in the middle of a write must not write to another file of it.
            descriptor, self._descriptor, self.may_be_closed = self._descriptor, -1, False
            os.close(descriptor)


class JournalFiles:
    """The files of one recorder, for its own process.

    Args:
        spool: the path of the spool file.
        recorder: whose events these are.
    """

    def __init__(self, spool: str, recorder: str) -> None:
        self._path = lock_path(spool, recorder)
        self._life = FileLock(self._path)
        self._next = 0
        self._marked = 0
        self._is_over = False

    @property
    def are_ours(self) -> bool:
        """Whether others can see that this process lives, as far as it was looked at last."""
        return self._life.held

    def new_segment(self) -> Segment:
        """The next file; takes the lock first, if that is not done.

        Raises:
            OSError: one of the two is not possible now.
        """
        if self._is_over or not self._life.acquire():
            raise OSError(f"{self._path}: another process has a lock on it")
        if not self._life.is_at_its_path():  # whoever looked for journals without a process was quicker
            self._life.release()
            raise OSError(f"{self._path}: was removed")
        made = Segment(f"{self._path}.{self._next}")
        self._next += 1
        return made

    def mark(self, place: int) -> None:
        """Notes up to which place all is in the spool, for whoever finds this beside another one, or a damaged one."""
        if place != self._marked and self._life.held:
            written = _MARK.pack(place)
            with contextlib.suppress(OSError):
                self._life.note(written + _CHECKSUM.pack(zlib.crc32(written)))
                self._marked = place

    def release(self, *, empty: bool) -> None:
        """Lets others find what is left, if it is not empty."""
        self._is_over = True
        if empty and self._life.held:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._life.release()


# -- for whoever finds them ----------------------------------------------------------------------------------------


def recorders(spool: str) -> List[str]:
    """The recorders of whom there is anything beside this spool.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted({recorder for recorder, _ in _found(spool)})


def files_of(spool: str, recorder: str) -> List[str]:
    """Its files with frames, oldest first."""
    numbers = sorted(number for one, number in _found(spool) if one == recorder and number is not None)
    return [f"{lock_path(spool, recorder)}.{number}" for number in numbers]


def _found(spool: str) -> Iterator[Tuple[str, Optional[int]]]:
    """The recorder and the number of each file of a journal; what is no file was planted, and is passed over."""
    folder, name = os.path.split(spool)
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name[len(name) :]) if entry.name.startswith(name) else None
            if match is not None and entry.is_file(follow_symlinks=False):
                yield match.group(1), None if match.group(2) is None else int(match.group(2))


def marked(lock: FileLock) -> int:
    """Up to which place all was in the spool, as far as it was noted in the file with this lock."""
    noted = lock.noted(_MARK.size + _CHECKSUM.size)
    if len(noted) < _MARK.size + _CHECKSUM.size or zlib.crc32(noted[: _MARK.size]) != _CHECKSUM.unpack(noted[-4:])[0]:
        return 0
    return int(_MARK.unpack_from(noted)[0])


class Reading:
    """The frames of one file, up to its end or to the first that is damaged.

    The last one may have been cut off when the process was killed: nobody was told that it is stored.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.is_damaged = False  # known when all is read: there is more in it than frames

    def __iter__(self) -> Iterator[Frame]:
        """Raises OSError when the file cannot be read."""
        with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            while True:
                header = file.read(_CHECKSUM.size + _REST.size)
                if len(header) < _CHECKSUM.size + _REST.size:
                    return
                form, is_sealed, first, length = _REST.unpack_from(header, _CHECKSUM.size)
                if form != FORMAT or length > _LARGEST:
                    self.is_damaged = True
                    return
                written = file.read(length)
                if len(written) < length:
                    return
                rows = _rows(header + written)
                if rows is None:
                    self.is_damaged = True
                    return
                yield Frame(first, bool(is_sealed), rows)


def _rows(whole: bytes) -> Optional[List[Row]]:
    (checksum,) = _CHECKSUM.unpack_from(whole)
    if zlib.crc32(whole[_CHECKSUM.size :]) != checksum:
        return None
    try:
        return _batch.checked(json.loads(whole[_CHECKSUM.size + _REST.size :]))
    except (CorruptBatchError, ValueError, RecursionError):
        return None
