"""The usual faults around a spool, as findings. Nothing here changes anything, or asks anybody but this machine."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import deque
from typing import Iterator, List, NamedTuple, Optional

from x402tools import _inspect, _spool_file
from x402tools._batch import FORMATS as BATCH_FORMATS
from x402tools._cli import glance
from x402tools._cli.output import amount_of_bytes, duration
from x402tools._inspect import SpoolView
from x402tools._spool_setup import FORMAT
from x402tools.errors import SpoolError

# SQLite's log needs memory shared between processes and locks that hold, which these do not give to all machines.
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "gfs2",
    "ocfs2",
)
_SHARED_BY_MOUNT = "fuse"  # sshfs, s3fs, gcsfuse and others; some are local
_GONE_AT_RESTART = {
    "tmpfs": "when the machine restarts",
    "ramfs": "when the machine restarts",
    "overlay": "with its container",
}

_LITTLE_ROOM = 100 * 1024 * 1024  # bytes; the log alone may take some megabytes
_LARGE_LOG = 64 * 1024 * 1024  # bytes; it is emptied whenever nothing is pending
_OLD = 15 * 60.0  # seconds; what waits for longer waits for somebody
_RECENT = 86400.0  # seconds; versions that used the spool longer ago are history
_CLOCK_SLACK = 60.0  # seconds


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        level: "ok"; "note" (worth knowing); "fault" (something is to be done).
        about: what was looked at, in a word or two.
        what: the fact.
        advice: what to do, or nothing.
    """

    level: str
    about: str
    what: str
    advice: str = ""


def check_spool(path: str) -> List[Finding]:
    """Everything about the file at `path` that can be seen without the service."""
    path = os.path.abspath(path)
    user = _inspect.using_process(path)  # first, see there
    findings = [*_check_place(path), *_check_file(path)]
    if any(one.level == "fault" and one.about == "file" for one in findings):
        return findings
    findings += _check_log(path, user)
    try:
        with SpoolView(path) as view:
            findings += _check_content(view)
    except SpoolError as error:
        findings.append(Finding("fault", "spool", str(error), _advice_for(str(error))))
    return findings


def file_system(path: str) -> Optional[str]:
    """The kind of file system the path is on, as Linux names it; None where nobody can say."""
    if sys.platform != "linux":
        return None
    path = os.path.realpath(path)
    best, kind = "", None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                mounted = before.split(" ")[4].replace("\\040", " ")
                is_above = path == mounted or path.startswith(mounted.rstrip("/") + "/")
                if is_above and len(mounted) >= len(best):  # of two on one place the later one counts
                    best, kind = mounted, after.split(" ")[0]
    except (OSError, IndexError):
        return None
    return kind


# -- the place ---------------------------------------------------------------------------------------------------


def _check_place(path: str) -> Iterator[Finding]:
    folder = os.path.dirname(path)
    try:
        status = os.stat(folder)
    except OSError as error:
        yield Finding("fault", "folder", f"{folder}: {error.strerror}", "make it, owned by the user of the service")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        advice = "SQLite makes files beside the spool: let the user of the service write to the folder"
        yield Finding("fault", "folder", f"{folder}: this user ({os.geteuid()}) may not write to it", advice)
    elif status.st_mode & stat.S_IWOTH and status.st_uid != os.geteuid():
        yield Finding("fault", "folder", f"{folder}: anybody may write to it", "use a folder of the service's own")
    else:
        yield Finding("ok", "folder", folder)
    yield _check_file_system(folder)
    yield _check_room(folder)


def _check_file_system(folder: str) -> Finding:
    kind = file_system(folder)
    if kind is None:
        return Finding("ok", "file system", "cannot be told here", "see that it is not a network drive")
    if kind in _NETWORK_FILE_SYSTEMS:
        advice = "put the spool on a local disk of each machine: SQLite's log does not work across machines"
        return Finding("fault", "file system", f"{kind}, a network file system", advice)
    if kind.startswith(_SHARED_BY_MOUNT):
        return Finding("note", "file system", kind, "if other machines mount it too, use a local disk")
    if kind in _GONE_AT_RESTART:
        advice = f"what is pending is lost {_GONE_AT_RESTART[kind]}: mount a volume for the spool"
        return Finding("note", "file system", kind, advice)
    return Finding("ok", "file system", kind)


def _check_room(folder: str) -> Finding:
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return Finding("note", "room", f"cannot be told: {error.strerror}")
    free = room.f_bavail * room.f_frsize
    if free < _LITTLE_ROOM:
        advice = "make room: on a full disk events wait in memory, and are lost with the process"
        return Finding("fault", "room", f"{amount_of_bytes(free)} free", advice)
    if room.f_files and not room.f_favail:
        return Finding("fault", "room", "no inode is free", "delete small files: SQLite cannot make its log")
    return Finding("ok", "room", f"{amount_of_bytes(free)} free")


# -- the file ----------------------------------------------------------------------------------------------------


def _check_file(path: str) -> Iterator[Finding]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        advice = "check the path (UsageBuffer().path tells it); a service makes the file when it starts"
        if os.path.exists(path + "-wal"):
            advice = "its log is there and may hold events: do not delete it; start the service, which keeps it"
        yield Finding("fault", "file", f"{path}: is not there", advice)
        return
    except OSError as error:
        yield Finding("fault", "file", f"{path}: {error.strerror}")
        return
    if not stat.S_ISREG(status.st_mode):
        yield Finding("fault", "file", f"{path}: is not a plain file", "give the path of the file itself")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        advice = f"run this, and the service, as the user who owns it ({status.st_uid})"
        yield Finding("fault", "file", f"{path}: this user ({os.geteuid()}) may not read and write it", advice)
        return
    yield _check_rights(path, status)
    yield from _check_logs_rights(path, status)
    if status.st_mtime > time.time() + _CLOCK_SLACK:
        yield Finding("note", "clock", "the file is from the future", "see that this machine's clock is right (NTP)")
    aside = _spool_file.files_set_aside(path)
    for one in aside:
        advice = "what could be read of it was carried over; delete it once you have looked at it"
        yield Finding("note", "set aside", one, advice)


def _check_rights(path: str, status: os.stat_result) -> Finding:
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Finding("fault", "rights", f"mode {mode:04o}: others may write to it", f"chmod 600 {path}")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return Finding("note", "rights", f"mode {mode:04o}: others may read it, metadata too", f"chmod 600 {path}")
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return Finding("fault", "rights", f"belongs to user {status.st_uid}", "run the service as that user")
    return Finding("ok", "rights", f"mode {mode:04o}, user {status.st_uid}")


def _check_logs_rights(path: str, status: os.stat_result) -> Iterator[Finding]:
    """A command that was run as root can leave a log that the service may not open."""
    for log in _spool_file.LOGS:
        try:
            other = os.lstat(path + log)
        except OSError:
            continue
        if other.st_uid != status.st_uid:
            advice = f"stop what uses it, then: chown {status.st_uid} {path}{log}"
            yield Finding("fault", "rights", f"{path}{log} belongs to user {other.st_uid}, the spool does not", advice)


def _check_log(path: str, user: Optional[int]) -> Iterator[Finding]:
    try:
        size = os.stat(path + "-wal").st_size
    except OSError:
        size = 0
    if user is not None:
        yield Finding("ok", "in use", f"by {glance.process_name(user)}, perhaps by others too")
    if size > _LARGE_LOG:
        advice = "something keeps reading the spool (a backup, a shell with sqlite3 open); end it"
        yield Finding("note", "log", f"{amount_of_bytes(size)}, larger than it should get", advice)
    elif size and user is None:
        advice = "it holds events: never delete it; the next start of the service takes it in"
        yield Finding("note", "log", f"{amount_of_bytes(size)} left over by a process that was killed", advice)
    elif size:
        yield Finding("ok", "log", amount_of_bytes(size))


# -- what is in it -----------------------------------------------------------------------------------------------


def _check_content(view: SpoolView) -> Iterator[Finding]:
    batches = " and ".join(map(str, BATCH_FORMATS))
    yield Finding("ok", "spool", f"format {FORMAT} of the tables, {batches} of the batches")
    yield from _check_versions(view)
    damage = view.check_structure()
    if damage:
        advice = "restart the service: it sets the file aside and carries over what can be read"
        yield Finding("fault", "damage", damage[0], advice)
    seen = glance.take(view)
    if not seen.adds_up:
        yield Finding(
            "fault", "ledger", "does not add up", "run `x402tools buffer audit`, and report it with its output"
        )
    yield from _check_pending(seen)
    yield from _check_dead(view, seen)
    if seen.counts.dropped.events:
        what = f"{seen.counts.dropped.events} events of {seen.counts.dropped.units} units were lost, some time"
        yield Finding("note", "dropped", what, "memory was full: see max_queue_size, and what kept the disk busy")
    newest = max((post.recorded_at for post in view.pending()), default=0.0)
    if newest > time.time() + _CLOCK_SLACK:
        what = f"an event was recorded {duration(newest - time.time())} from now"
        yield Finding("note", "clock", what, "this machine's clock was changed, or is wrong (NTP)")


def _check_versions(view: SpoolView) -> Iterator[Finding]:
    recent = sorted(name for name, moment in view.versions() if time.time() - moment < _RECENT)
    if len(recent) > 1:
        advice = "finish the upgrade: restart what still runs the older one"
        yield Finding("note", "versions", f"x402tools {' and '.join(recent)} used it within a day", advice)
    elif recent:
        yield Finding("ok", "versions", f"x402tools {recent[0]}")


def _check_pending(seen: glance.Glance) -> Iterator[Finding]:
    count, age = seen.counts.pending.events, seen.oldest_pending_age
    who = glance.process_name(seen.deliverer)
    if not count:
        yield Finding("ok", "pending", f"nothing; {who} delivers")
        return
    what = f"{count} events, the oldest for {duration(age)}; {who} delivers"
    if seen.deliverer is None:
        advice = "start the service, or `x402tools worker PATH`; once: `x402tools buffer drain PATH`"
        yield Finding("fault", "pending", what, advice)
    elif age is not None and age > _OLD:
        advice = "see below what the service says, and the log of the process that delivers"
        yield Finding("fault", "pending", what, advice)
    else:
        yield Finding("ok", "pending", what)


def _check_dead(view: SpoolView, seen: glance.Glance) -> Iterator[Finding]:
    if not seen.counts.dead.events:
        return
    last = deque(view.dead_letters(), maxlen=1)
    why = f"; the last: {last[0].reason}" if last else ""
    advice = "mend the cause, then `x402tools buffer requeue PATH --all`; see `x402tools buffer dead PATH`"
    yield Finding("fault", "dead letters", f"{seen.counts.dead.events} events{why}", advice)


def _advice_for(problem: str) -> str:
    if "later version" in problem:
        return "two versions share the file: upgrade the older one (pip install -U x402tools)"
    if "another program" in problem:
        return "give the service another path"
    if "damaged" in problem or "holds what" in problem:
        return "restart the service: it sets the file aside and carries over what can be read"
    return ""
