"""A simulated power cut: records what a process writes, and rebuilds the disk as a cut could have left it.

A write is safe once its file was synced after it. What is not synced at the cut is either lost as a whole, or survives
in sectors by the toss of a coin. Names are taken as durable at once; the spool syncs its folder when it makes the file.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
from typing import Dict, Iterator, List, NamedTuple, Set

import pytest

from tests.faults.disk_tools import ROOT, SECONDS

SECTOR = 512
_CALLS = "write,pwrite64,fsync,fdatasync,ftruncate,unlink"
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
_BYTE = re.compile(r"\\x([0-9a-f]{2})")


class Step(NamedTuple):
    """A system call on a file, or a line of the child: kind "write", "truncate", "sync", "unlink" or "said"."""

    kind: str
    file: str = ""
    offset: int = 0
    data: bytes = b""


class Cut(NamedTuple):
    """The folder as it is after the cut, and how many records had returned before it."""

    folder: pathlib.Path
    returned: int


def recorded(folder: pathlib.Path, durability: str, events: int) -> List[Step]:
    """What a process does that records so many events, one after the other."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: the writes of a process cannot be recorded")
    folder.mkdir()
    trace = folder.with_suffix(".trace")
    child = [sys.executable, "-m", "tests.faults.disk_child", "commit_one_by_one", str(folder / "usage.db")]
    child += [str(events), durability]
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-xx", "-s", "1000000", "-o", str(trace), "-e", f"trace={_CALLS}", *child],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        timeout=3 * SECONDS,
        check=True,
    )
    return list(_steps(trace.read_text(errors="replace").splitlines()))


def cuts(steps: List[Step], number: int, half_kept: bool, folder: pathlib.Path, seed: int = 1) -> Iterator[Cut]:
    """The disk after a cut at each of so many moments.

    Args:
        half_kept: sectors that were not synced survive by chance; all of them are lost otherwise.
    """
    dice = random.Random(seed)
    start = steps.index(Step("said", data=b"READY"))
    moments: Set[int] = set(dice.sample(range(start + 1, len(steps)), min(number, len(steps) - start - 1)))
    safe: Dict[str, bytearray] = {}
    loose: Dict[str, List[Step]] = {}
    returned = 0
    for moment, step in enumerate(steps):
        if moment in moments:
            _rebuild(folder, safe, loose, dice if half_kept else None)
            yield Cut(folder, returned)
        if step.kind == "said":
            returned += step.data.startswith(b"ACK")
        elif step.kind == "sync":
            for waiting in loose.pop(step.file, []):
                _apply(safe.setdefault(step.file, bytearray()), waiting)
        elif step.kind == "unlink":
            safe.pop(step.file, None)
            loose.pop(step.file, None)
        else:
            loose.setdefault(step.file, []).append(step)


def _rebuild(
    folder: pathlib.Path, safe: Dict[str, bytearray], loose: Dict[str, List[Step]], dice: random.Random | None
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in {*safe, *loose}:
        content = bytearray(safe.get(name, b""))
        for step in loose.get(name, []) if dice is not None else []:
            for sector in _sectors(step):
                if dice is not None and dice.random() < 0.5:
                    _apply(content, sector)
        path = folder / name
        path.write_bytes(content)
        path.chmod(0o600)


def _sectors(step: Step) -> List[Step]:
    if step.kind == "truncate":
        return [step]
    starts = range(0, len(step.data), SECTOR)
    return [step._replace(offset=step.offset + at, data=step.data[at : at + SECTOR]) for at in starts]


def _apply(content: bytearray, step: Step) -> None:
    end = step.offset + len(step.data)
    content.extend(bytes(max(end - len(content), 0)))
    if step.kind == "truncate":
        del content[step.offset :]
    else:
        content[step.offset : end] = step.data


def _steps(lines: List[str]) -> Iterator[Step]:
    begun: Dict[str, str] = {}
    for line in lines:
        if "<unfinished" in line:
            begun[line.split(None, 1)[0]] = line.split("<unfinished")[0].rstrip()
            continue
        resumed = _RESUMED.match(line)
        whole = begun.pop(resumed[1], "") + resumed[2] if resumed else line
        call = _CALL.match(whole)
        if call is not None:
            yield from _step(call[1], call[2])


def _step(call: str, arguments: str) -> Iterator[Step]:
    if call == "write" and arguments.startswith("1<"):
        yield Step("said", data=_bytes(arguments.split('"')[1]).strip())
        return
    described = arguments.split('"')[1] if call == "unlink" else arguments.split("<", 1)[-1].split(">", 1)[0]
    name = os.path.basename(_bytes(described).decode(errors="replace"))
    if name not in ("usage.db", "usage.db-wal", "usage.db-journal"):
        return
    last_number = int(arguments.rsplit(",", 1)[1]) if call in ("pwrite64", "ftruncate") else 0
    if call == "pwrite64":
        yield Step("write", name, last_number, _bytes(arguments.split('"')[1]))
    elif call == "ftruncate":
        yield Step("truncate", name, last_number)
    elif call in ("fsync", "fdatasync"):
        yield Step("sync", name)
    elif call == "unlink":
        yield Step("unlink", name)


def _bytes(escaped: str) -> bytes:
    return bytes(int(pair, 16) for pair in _BYTE.findall(escaped))
