"""The spool file as the file system sees it: where it is, who may read it, and that it is still the same one."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from datetime import datetime, timezone
from typing import List, Tuple

from x402tools.errors import SpoolError

LOGS = ("-wal", "-shm", "-journal")  # what SQLite keeps beside the file while it is open; the last, to make it
_SET_ASIDE = ".corrupt-"

# Usage may name people (metadata), so nobody but the owner reads the file.
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


def default_path() -> str:
    """A file in the user's state folder: XDG_STATE_HOME, else ~/.local/state; on macOS ~/Library/Application Support.

    Never the temporary folder, which is emptied, and never the working folder, which is wherever a service started.
    """
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        state = os.path.join(home, "Library", "Application Support")
    else:
        state = os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    if not os.path.isabs(state):
        raise SpoolError("there is no home folder for the spool: pass UsageBuffer(path=...)")
    return os.path.join(state, "x402tools", "usage.db")


def ensure(path: str, *, make_folder: bool) -> None:
    """Makes the file, readable by its owner only, or checks the one that is there.

    Raises:
        SpoolError: names the path and what to do.
    """
    folder = os.path.dirname(path)
    try:
        if make_folder:
            os.makedirs(folder, _FOLDER_MODE, exist_ok=True)
        _check_folder(folder)
        # O_EXCL and O_NOFOLLOW: a link planted here would have us write into somebody else's file.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(path, flags, _FILE_MODE))
        _sync_folder(folder)
    except FileExistsError:
        _check_existing(path)
    except OSError as error:
        raise SpoolError(f"{path}: the spool cannot be made there ({error.strerror}): choose another path") from error
    for log in LOGS:  # SQLite would write where a planted link points to
        with contextlib.suppress(FileNotFoundError):  # whoever opens or closes the file makes and deletes them
            if not stat.S_ISREG(os.lstat(path + log).st_mode):
                raise SpoolError(f"{path}{log}: is not a file of ours; remove it")


def identity(path: str) -> Tuple[int, int]:
    """Device and inode, to notice a file that was replaced. By `stat`: closing the file would drop SQLite's locks."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def set_aside(path: str, *, only_logs: bool = False) -> str:
    """Renames the file, with its logs, to a name that says so; its new path. Nothing is ever deleted."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = f"{path}{_SET_ASIDE}{moment}"
    try:
        for part in (
            LOGS if only_logs else ("", *LOGS)
        ):  # logs last: a log beside a new file would be taken for that file's own
            if os.path.lexists(path + part):
                os.rename(path + part, aside + part)
        _sync_folder(os.path.dirname(path))
    except OSError as error:
        raise SpoolError(f"{path}: is damaged and cannot be set aside ({error.strerror}): move it away") from error
    return aside


def files_set_aside(path: str) -> List[str]:
    """The damaged files that were set aside beside this spool, oldest first."""
    folder, name = os.path.split(path)
    try:
        found = os.listdir(folder)
    except OSError:
        return []
    return [
        os.path.join(folder, one)
        for one in sorted(found)
        if one.startswith(name + _SET_ASIDE) and not one.endswith(LOGS)
    ]


def _check_folder(folder: str) -> None:
    """Whoever may write to the folder can plant files that SQLite takes for its own; see `ensure`."""
    status = os.stat(folder)
    if status.st_mode & stat.S_IWOTH and status.st_uid != os.geteuid():
        raise SpoolError(f"{folder}: anybody may write to this folder: choose a folder of your own for the spool")


def _check_existing(path: str) -> None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise SpoolError(f"{path}: is a symbolic link; give the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError(f"{path}: is not a file")
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise SpoolError(f"{path}: belongs to another user; choose another path")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpoolError(f"{path}: others may write to it; allow only its owner: chmod 600")
    if not os.access(path, os.R_OK | os.W_OK):
        raise SpoolError(f"{path}: this process may not read and write it; change its owner or choose another path")


def _sync_folder(folder: str) -> None:
    """So that the new name survives a power cut as well as what is written to the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
