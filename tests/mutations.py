"""Takes the guards away one by one, and sees that a test notices: `python -m tests.mutations [--only WORD]`.

Works in a copy. For each guard it changes one place of the package, runs the tests that are meant to notice, and says
which one did. A guard that nothing notices has survived, and the exit status is 1. So it is when the place to change is
not there any more: then the guard has moved, and the table has to follow it.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import List, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST = 300  # seconds for the tests of one guard; a hang is noticed too


class Guard(NamedTuple):
    """What is taken away, where, and which tests are meant to notice."""

    name: str
    file: str
    there: str
    instead: str
    tests: str  # as for pytest, -k and all


GUARDS = [
    # -- storing -------------------------------------------------------------------------------------------------------
    Guard(
        "sync level",
        "_connection.py",
        '(f"PRAGMA synchronous={self._sync}", ()),\n                ("PRAGMA trusted',
        '("PRAGMA synchronous=OFF", ()),\n                ("PRAGMA trusted',
        "tests/buffer/test_connection.py tests/buffer/test_durability.py",
    ),
    Guard(
        "COMMIT as text, whose failure shows",
        "_connection.py",
        'self._send(("COMMIT", ()))',
        "self._exchange(self._waiting)",
        "tests/buffer/test_connection.py tests/buffer/test_spool.py",
    ),
    Guard(
        "no COMMIT after a statement that failed",
        "_connection.py",
        "            raise\n        return self\n",
        "            super().execute('COMMIT')\n            raise\n        return self\n",
        "tests/buffer/test_connection.py tests/buffer/test_spool.py tests/buffer/test_stores.py",
    ),
    Guard(
        "waiting for another process's lock",
        "_connection.py",
        "BUSY_TIMEOUT = 1.0",
        "BUSY_TIMEOUT = 0.0",
        "tests/buffer/test_connection.py tests/buffer/test_processes.py tests/faults/test_fork.py",
    ),
    Guard(
        "looking whether the connection thread lives",
        "_connection.py",
        "if thread.is_alive() and time.monotonic() < started + self._patience(started):",
        "if True:",
        "tests/buffer/test_connection.py",
    ),
    Guard(
        "checksum of a batch",
        "_batch.py",
        "if _checksum(form, compressed, payload) != checksum:",
        "if False:",
        "tests/buffer/test_batch.py",
    ),
    Guard(
        "a bound for what a batch unpacks to",
        "_batch.py",
        "inflater.decompress(payload, _LARGEST_PAYLOAD)",
        "inflater.decompress(payload)",
        "tests/buffer/test_batch.py",
    ),
    Guard(
        "a batch is stored once",
        "_spool_rows.py",
        " WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = ? AND value >= ?)",
        " WHERE ? IS NOT ?",
        "tests/buffer/test_spool.py tests/buffer/test_stores.py",
    ),
    Guard(
        "counted only if it was added",
        "_spool_rows.py",
        '_COUNT + " AND changes() = 1"',
        "_COUNT",
        "tests/buffer/test_spool.py tests/buffer/test_stores.py",
    ),
    Guard(
        "a settlement that may be stored is looked for",
        "_spool.py",
        "if self._unsure is not None and self._turned_out_stored(connection, *self._unsure):",
        "if False:",
        "tests/buffer/test_spool.py tests/buffer/test_stores.py tests/faults/test_disk.py",
    ),
    Guard(
        "a POST is settled once",
        "_spool.py",
        "if state.bits & bit:",
        "if False:",
        "tests/buffer/test_spool.py tests/buffer/test_stores.py",
    ),
    Guard(
        "only the holder of the claim settles",
        "_spool.py",
        'if not self.has_claim:\n            raise SpoolError(f"{self.path}: only',
        'if False:\n            raise SpoolError(f"{self.path}: only',
        "tests/buffer/test_spool.py tests/buffer/test_stores.py tests/buffer/test_processes.py",
    ),
    Guard(
        "a file that was replaced is noticed",
        "_open_file.py",
        "return _spool_file.identity(self.path) == self._identity",
        "return True",
        "tests/buffer/test_spool.py tests/faults/test_disk_damage.py",
    ),
    Guard(
        "a limit on the size of the spool",
        "_spool.py",
        "if size >= self._max_bytes:",
        "if False:",
        "tests/buffer/test_spool.py tests/buffer/test_queue_full.py",
    ),
    Guard(
        "a link at the path is refused",
        "_spool_file.py",
        "if stat.S_ISLNK(status.st_mode):",
        "if False:",
        "tests/faults/test_storage_security.py tests/faults/test_disk.py tests/buffer/test_spool.py",
    ),
    Guard(
        "only the owner reads the file",
        "_spool_file.py",
        "_FILE_MODE = 0o600",
        "_FILE_MODE = 0o644",
        "tests/faults/test_storage_security.py tests/buffer/test_spool.py",
    ),
    # -- recording -----------------------------------------------------------------------------------------------------
    Guard(
        "what comes after the end is refused or stored, not forgotten",
        "_intake.py",
        "self.closed = True\n        self.attention = True",
        "self.closed = True",
        "tests/buffer/test_flush_and_close.py",
    ),
    Guard(
        "a limit on the memory",
        "buffer.py",
        "if len(intake.events) >= intake.limit and not",
        "if False and not",
        "tests/buffer/test_queue_full.py",
    ),
    Guard(
        "a commit ends at what was recorded before it",
        "_writer.py",
        "left = min(left - self._store_some(left), len(self._intake.events))",
        "left = self._store_some(left) and len(self._intake.events)",
        "tests/buffer/test_writer.py tests/buffer/test_ledger.py",
    ),
    # -- processes -----------------------------------------------------------------------------------------------------
    Guard(
        "one process delivers",
        "_process.py",
        "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/buffer/test_processes.py",
    ),
    Guard(
        "the database is closed during a fork",
        "_process.py",
        "        thing.pause_for_fork()\n        _paused.append(thing)",
        "        pass",
        "tests/buffer/test_processes.py tests/faults/test_fork.py",
    ),
    Guard(
        "a child forgets what its parent built",
        "_process.py",
        "    for thing in list(_forgetful):\n        thing.forget()",
        "    pass",
        "tests/buffer/test_processes.py tests/faults/test_fork.py",
    ),
    Guard(
        "the connection takes turns",
        "_fair_lock.py",
        "self._turnstile.acquire(timeout=timeout) and self._lock",
        "self._lock",
        "tests/buffer/test_fair_lock.py",
    ),
    # -- delivering ----------------------------------------------------------------------------------------------------
    Guard(
        "a POST keeps its key",
        "_flusher.py",
        "self._deliver(post.body(), post.key)",
        "self._deliver(post.body(), post.key + str(time.monotonic()))",
        "tests/buffer/test_flusher.py tests/buffer/test_full_size.py",
    ),
    Guard(
        "an outage kills nothing",
        "_flusher.py",
        "return delivery.strikes >= self._max_attempts and others_pass",
        "return delivery.attempts >= self._max_attempts",
        "tests/buffer/test_flusher.py",
    ),
    Guard(
        "Retry-After holds everything back",
        "_gate.py",
        "if now >= self._asked_until:",
        "if True:",
        "tests/buffer/test_gate.py",
    ),
    Guard(
        "a refused key keeps everything",
        "_verdict.py",
        "if isinstance(error, AuthenticationError) or status == 407:",
        "if False:",
        "tests/buffer/test_verdict.py",
    ),
    Guard(
        "a redirect loses nothing",
        "_verdict.py",
        "if status is None or status < 400:",
        "if status is None:",
        "tests/buffer/test_verdict.py",
    ),
    Guard(
        "what was not acknowledged stays",
        "_flusher.py",
        "self._store.settle(self._acknowledged, self._buried)",
        "self._store.settle([], self._buried)",
        "tests/buffer/test_flusher.py",
    ),
    # -- the wire ------------------------------------------------------------------------------------------------------
    Guard(
        "redirects are refused",
        "_http.py",
        "if not 300 <= raw.status < 400:",
        "if True:",
        "tests/client/test_redirects.py",
    ),
    Guard(
        "the key is given by an auth object",
        "_http.py",
        "session.auth = bearer",
        "pass",
        "tests/client/test_environment.py tests/client/test_secrets.py tests/client/test_own_session.py",
    ),
    Guard(
        "a bound for the size of an answer",
        "_http.py",
        "if size > LARGEST_ANSWER:",
        "if False:",
        "tests/client/test_answers.py",
    ),
    Guard(
        "the same key over all attempts",
        "client.py",
        'headers = {"Idempotency-Key": key or os.urandom(16).hex()} if method == "POST" else None',
        "headers = None",
        "tests/client/test_retries.py tests/client/test_wire.py",
    ),
    Guard(
        "a child has connections of its own",
        "_http.py",
        "adapter.init_poolmanager(*pools)",
        "pass",
        "tests/client/test_threads_and_forks.py",
    ),
    Guard(
        "the key shows in no repr",
        "_http.py",
        'return "<Bearer ***>"',
        'return f"<Bearer {self._key()}>"',
        "tests/client/test_secrets.py",
    ),
]


def try_without(guard: Guard, copy: pathlib.Path) -> str:
    """What noticed that the guard is gone; empty when nothing did."""
    path = copy / "x402tools" / guard.file
    whole = path.read_text()
    if whole.count(guard.there) != 1:
        return ""
    path.write_text(whole.replace(guard.there, guard.instead))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not full and not proof"]
    try:
        done = subprocess.run(
            [*command, "--timeout=60", *(test for test in guard.tests.split() if (copy / test).exists())],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LONGEST} s"
    finally:
        path.write_text(whole)
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if not found and done.returncode == 1:
        found = re.findall(r"Timeout.*|Fatal.*", done.stdout + done.stderr)[:1]  # pytest itself was ended
    return found[0] if found else ""


def main() -> int:
    """The exit status: 0 when every guard was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="guards whose name has this in it")
    options = parser.parse_args()

    chosen = [guard for guard in GUARDS if options.only in guard.name]
    survivors: List[str] = []
    with tempfile.TemporaryDirectory(prefix="x402tools-mutations-") as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".matrix", "__pycache__", "dist"))
        for guard in chosen:
            began = time.monotonic()
            noticed = try_without(guard, copy)
            if not noticed:
                survivors.append(guard.name)
            print(f"| {guard.name} | `{guard.file}` | {noticed or '**survived**'} |", flush=True)
            print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"\n{len(chosen)} guards, {len(survivors)} survived{': ' + ', '.join(survivors) if survivors else ''}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
