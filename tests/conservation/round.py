"""Runs one round: starts what the plan names, kills and stops it in time, drains the spool, and asks the judge.

Nothing here waits without a deadline. What does not come in time is written down by its name, its process is made to
print its stacks (SIGABRT, into <process>.err), and the round goes on to its verdict.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

from tests.conservation import judge, logs
from tests.conservation.plan import Ending, Outage, Plan, ProcessPlan, child_name, to_json
from tests.conservation.pulse import Pulse
from x402tools._batch import Post
from x402tools._spool import Spool
from x402tools._takeover import Takeover

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

# Seconds. Far above what a busy machine needs.
_START, _END, _DRAIN = 30.0, 20.0, 30.0
_DRAIN_FLUSH = 25.0

# Below the ports that systems give to clients: a killed server must find its port free again.
_PORTS = range(20_000, 32_000)

# What a process may end with, by how it was meant to end. A signal may always come too late.
_CODES = {"close": 0, "fall": 0, "exit": 3, "raise": 1, "os_exit": 4, "stay": 0}

_DRAINER = "z"


class Harm(Exception):
    """The round itself could not go on; no verdict on the package."""


class Child:
    """A process of the round, and the processes it forks; their standard output stays open until the last has ended."""

    def __init__(self, name: str, folder: pathlib.Path, module: str, *arguments: str) -> None:
        self.name = name
        with open(folder / f"{name}.err", "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.conservation.{module}", *arguments],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a group of its own, to end all of it at once
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        self.pid = self._process.pid

    def line(self, seconds: float) -> Optional[bytes]:
        """The next line that it prints; None when it ends, or does not print one in time."""
        deadline, received = time.monotonic() + seconds, b""
        while not received.endswith(b"\n"):
            if not self._readable(deadline):
                return None
            piece = os.read(self._output, 4096)
            if not piece:
                return None
            received += piece
        return received

    def is_gone(self, seconds: float) -> bool:
        """Waits until it and everything it forked have ended; False when that takes longer."""
        deadline = time.monotonic() + seconds
        while self._readable(deadline):
            if not os.read(self._output, 4096):
                return True
        return False

    def code(self) -> int:
        """What it ended with."""
        return self._process.wait(_END)

    def show_stacks(self) -> None:
        """Ends it so that it prints where it was."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGABRT)
        self.is_gone(2.0)

    def destroy(self) -> None:
        """Ends it and its children, whatever they are doing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: a zombie, on macOS
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _readable(self, deadline: float) -> bool:
        return bool(select.select([self._output], [], [], max(deadline - time.monotonic(), 0.0))[0])


class Round:
    """One round in a folder of its own."""

    def __init__(self, plan: Plan, folder: pathlib.Path, pulse: Pulse) -> None:
        self._plan = plan
        self._folder = folder
        self._pulse = pulse
        self._spool = folder / "usage.db"
        self._log = logs.Log(folder / logs.ROUND)
        self._children: List[Child] = []
        self._server: Optional[Child] = None
        self._port = 0
        self._began = threading.Event()  # the first process records
        self._never = threading.Event()  # only waited on

    def run(self) -> judge.Verdict:
        (self._folder / "plan.json").write_text(to_json(self._plan), encoding="ascii")
        try:
            self._start_server()
            self._live()
            if self._spool.exists():
                self._look_into_spool("before the drain")
            self._drain()
            self._look_into_spool("after the drain")
        finally:
            for child in list(self._children):
                child.destroy()
        self._note_stalls()
        self._log.close()
        return judge.judge(evidence(self._plan, self._folder))

    def _note(self, what: str, **more: Any) -> None:
        self._log.write(what=what, at=logs.now(), **more)

    def _hangs(self, child: Child, what: str) -> None:
        self._note("hang", name=f"{child.name} {what}")
        child.show_stacks()

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, self._folder, module, *arguments)
        self._children.append(child)
        return child

    # -- the service ---------------------------------------------------------------------------------------------

    def _start_server(self) -> None:
        if not self._port:
            self._port = _free_port()
        self._server = self._child("server", "server", str(self._folder), str(self._port), to_json(self._plan.faults))
        if self._server.line(_START) is None:
            raise Harm(f"the server did not start: {(self._folder / 'server.err').read_text()[-500:]}")

    def _outages(self) -> None:
        if not self._began.wait(_START):
            return
        start = time.monotonic()
        for outage in self._plan.outages:
            self._never.wait(max(start + outage.after - time.monotonic(), 0.0))
            self._outage(outage)

    def _outage(self, outage: Outage) -> None:
        assert self._server is not None
        self._note("outage", how=outage.how, seconds=outage.seconds)
        if outage.how == "stop":
            os.kill(self._server.pid, signal.SIGSTOP)
            self._never.wait(outage.seconds)
            os.kill(self._server.pid, signal.SIGCONT)
        else:
            self._server.destroy()
            self._never.wait(outage.seconds)
            self._start_server()

    # -- the processes -------------------------------------------------------------------------------------------

    def _live(self) -> None:
        """From the start of the first process until the last has ended."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            lives = [pool.submit(self._life, process) for process in self._plan.processes]
            lives.append(pool.submit(self._outages))
            for life in lives:
                life.result()

    def _life(self, plan: ProcessPlan) -> None:
        """One process from its start to its end, and then its successor's."""
        child = self._child(plan.name, "recorder", *self._recorder_arguments(plan))
        line = child.line(_START)
        self._began.set()
        if line is not None:
            pids = json.loads(line)
            ended_before = plan.signal is not None and child.is_gone(plan.signal.after)
            if plan.signal is not None and not ended_before:
                self._kill(plan, pids)
                if plan.successor is not None and plan.signal.victim == 0:
                    self._never.wait(plan.successor_pause)
                    self._life(plan.successor)
        elif not child.is_gone(0.0):
            self._hangs(child, f"did not record within {_START:g} s")
        if not child.is_gone(_END):
            self._hangs(child, f"did not end within {_END:g} s")
        self._note("ended", process=plan.name, code=child.code(), planned=_planned_codes(plan))

    def _kill(self, plan: ProcessPlan, pids: Dict[str, int]) -> None:
        assert plan.signal is not None
        victim = plan.name if plan.signal.victim == 0 else child_name(plan.name, plan.signal.victim - 1)
        at = logs.now()
        try:
            os.kill(pids[victim], signal.Signals[plan.signal.name])
        except ProcessLookupError:  # a forked child that has ended already
            return
        self._log.write(what="killed", process=victim, signal=plan.signal.name, at=at)

    def _recorder_arguments(self, plan: ProcessPlan) -> List[str]:
        options = {**self._plan.options, "durability": self._plan.durability}
        url = f"http://127.0.0.1:{self._port}"
        return [str(self._folder), url, to_json(plan), json.dumps(options), str(self._plan.unknown_envelopes)]

    # -- the end -------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """A last process delivers everything to a service without faults."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGUSR1)
        ending = Ending("drain+requeue" if self._plan.requeue else "drain", flush=_DRAIN_FLUSH)
        plan = ProcessPlan(_DRAINER, threads=1, number=0, rate=1.0, burst=1, deliver=True, ending=ending)
        child = self._child(_DRAINER, "recorder", *self._recorder_arguments(plan))
        if not child.is_gone(_START + _DRAIN):
            self._hangs(child, f"did not drain the spool within {_DRAIN:g} s")
        self._note("ended", process=_DRAINER, code=child.code(), planned=[0])

    def _look_into_spool(self, when: str) -> None:
        """Writes down what is in the spool, with what killed processes left, while no process has it open."""
        spool = Spool(str(self._spool), sync="FULL", max_bytes=2**40)
        try:
            Takeover(spool).run()
            counts = spool.counts()
            ledger = {name: list(getattr(counts, name)) for name in judge.LEDGER}
            pending = [_described(post) for post in _stored(spool)]
            dead = [
                {**_described(letter), "reason": letter.reason, "status": letter.status_code}
                for letter in spool.dead_letters(0, 1_000_000)
            ]
        finally:
            spool.close()
        self._note("spool", when=when, pending=pending, dead=dead, ledger=ledger)

    def _note_stalls(self) -> None:
        """How long the machine kept each process waiting around its end."""
        for name, end in judge.ends(evidence(self._plan, self._folder)).items():
            self._note("stall", process=name, nanoseconds=self._pulse.stall(end.at, end.last))


def evidence(plan: Plan, folder: pathlib.Path) -> judge.Evidence:
    """What the round in this folder has written down."""
    return judge.Evidence(
        plan.durability,
        plan.options,
        plan.faults.honours_keys,
        intents=logs.read(folder / logs.INTENTS),
        acks=logs.read(folder / logs.ACKS),
        life=logs.read(folder / logs.LIFE),
        server=logs.read(folder / logs.SERVER),
        round=logs.read(folder / logs.ROUND),
        noise={path.stem: path.read_text("utf-8", "replace") for path in sorted(folder.glob("*.err"))},
    )


def _planned_codes(plan: ProcessPlan) -> List[int]:
    codes = [_CODES[plan.ending.how]]
    if plan.signal is not None and plan.signal.victim == 0:
        # Handled or not: an interpreter that is ending has put the default handler back.
        codes += [0, -signal.Signals[plan.signal.name].value]
    return codes


def _stored(spool: Spool) -> Iterator[Post]:
    after = 0
    while True:
        batches = spool.oldest_sealed(after, 50)
        if not batches:
            return
        after = batches[-1].sequence
        for batch in batches:
            yield from (post for _, post in batch.posts)


def _described(post: Any) -> Dict[str, Any]:
    metadata = json.loads(post.metadata) if isinstance(post.metadata, str) else post.metadata
    return {"key": post.key, "envelope": post.envelope_id, "amount": post.amount, "metadata": metadata}


def _free_port() -> int:
    ports = random.Random().sample(_PORTS, 50)
    for port in ports:
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Harm("no free port")
