"""P2 of the fault catalogue: killed at the n-th write, sync, cut or removal of the spool, by strace."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from typing import List, Optional, Tuple

import pytest

from tests.faults.process_child import PREAMBLE, ROOT, SECONDS, check_conservation, deliver_rest, ids
from x402tools.testing import Emulator

CALLS = "pwrite64,fdatasync,fsync,ftruncate,unlink"

# Commits, settlements, the shrinking of the log and the last checkpoint: every way in which the spool is written.
RECORD_AND_DELIVER = """
client = make(durability=sys.argv[4], flush_interval=0.02, exit_timeout=2.0)
for number in range(16):
    say("id", client.record_usage(envelope, 1, {"number": number}).id)
    number % 4 == 3 and client.flush(2)
client.close()
say("closed")
"""


def traced(
    spool: Tuple[str, str, str], durability: str, log: pathlib.Path, inject: Optional[str] = None
) -> Tuple[int, List[str]]:
    """Runs the program under strace, which looks at the calls on the spool alone; its status, and its lines."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: a process cannot be killed at a system call")
    watched = [part for end in ("", "-wal", "-shm") for part in ("-P", spool[0] + end)]
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}", *watched]
    command += ["-e", f"inject={inject}"] if inject else []
    done = subprocess.run(
        [*command, sys.executable, "-c", PREAMBLE % SECONDS + RECORD_AND_DELIVER, *spool, durability],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def points(log: pathlib.Path) -> List[str]:
    """How each call of a run is told to strace: the name, and which one of its name and thread it is."""
    seen: List[str] = re.findall(rf"^(\d+ +(?:{CALLS.replace(',', '|')}))\(", log.read_text(errors="replace"), re.M)
    return [f"{call.split()[1]}:signal=KILL:when={seen[: at + 1].count(call)}" for at, call in enumerate(seen)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "most",
    [pytest.param(4, id="some", marks=pytest.mark.full), pytest.param(10_000, id="all", marks=pytest.mark.proof)],
)
@pytest.mark.parametrize("durability", ["interval", "commit", "fsync"])
def test_P02_sigkill_at_every_write_and_sync(
    durability: str, most: int, tmp_path: pathlib.Path, emulator: Emulator
) -> None:
    """Nothing acknowledged is lost, nothing is torn, nothing is booked twice; `interval` may lose the very last."""
    envelope = emulator.create_envelope()
    traced((str(tmp_path / "usage.db"), emulator.base_url, envelope), durability, tmp_path / "log")
    chosen = list(dict.fromkeys(points(tmp_path / "log")))
    assert len(chosen) > 20, chosen
    chosen = chosen[:: max(len(chosen) // most, 1)]

    killed = 0
    for number, point in enumerate(chosen):
        emulator.reset()
        spool = str(tmp_path / f"usage-{number}.db"), emulator.base_url, emulator.create_envelope()
        status, lines = traced(spool, durability, tmp_path / "log", point)
        deliver_rest(spool[0], emulator)

        accepted, booked = ids(lines), {str(event.idempotency_key) for event in emulator.events()}
        kept = [one for one in accepted if one in booked]
        killed += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL), point
        assert kept == accepted[: len(kept)], f"{point}: a hole in what was kept"
        assert durability == "interval" or kept == accepted, point
        check_conservation(emulator, set(kept), unsure=1)

    print(f"{durability}: killed at {killed} of {len(chosen)} points")
    assert killed > len(chosen) // 2
