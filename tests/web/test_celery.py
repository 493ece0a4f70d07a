"""A prefork worker of Celery: what its tasks record is billed, wherever the client was made."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.web.serving import APPS, ROOT, SECONDS, deliver_to, until
from x402tools.testing import Emulator

pytest.importorskip("celery", reason="needs Celery")
pytestmark = pytest.mark.full  # Celery takes five seconds to end

TASKS = 60
BILLED = [number for number in range(TASKS) if number % 10 != 9]

SEND = f"""
from celery_app import render
for number in range({TASKS}):
    render.delay(number)
"""

WORKER = ["celery", "-A", "celery_app", "worker", "--pool", "prefork", "--concurrency", "2"]
WORKER += ["--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel", "WARNING"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_every_task_is_billed_once(where: str, emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Each task that did not fail is on the bill once, with the task's id as its key."""
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    environment = {
        **os.environ,
        "BASE_URL": emulator.base_url, "SPOOL": str(tmp_path / "usage.db"), "ENVELOPE": emulator.create_envelope(),
        "BROKER": str(tmp_path), "CLIENT": where, "PYTHONPATH": os.pathsep.join([str(ROOT), str(APPS)]),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", SEND], env=environment, cwd=tmp_path, check=True, timeout=SECONDS)

    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", *WORKER], env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: emulator.ledger().events >= len(BILLED), "every task is billed")
        worker.send_signal(signal.SIGTERM)  # a warm shutdown: the tasks at hand are finished
        worker.wait(SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    deliver_to(emulator, tmp_path / "usage.db")

    billed = [event.metadata["number"] for event in emulator.events() if event.metadata]
    assert sorted(billed) == BILLED, (tmp_path / "worker.log").read_text()
    assert all(event.idempotency_key and event.idempotency_key.count("-") == 4 for event in emulator.events())
