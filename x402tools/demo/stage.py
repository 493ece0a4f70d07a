"""Where the script is played: changes the emulator's faults, kills, and shows the figures meanwhile."""

from __future__ import annotations

import contextlib
import time
from typing import List, Optional

from x402tools import SpoolError, UsageBuffer
from x402tools._bell import Flag
from x402tools.buffer import BufferStats
from x402tools.demo import log_file, server
from x402tools.demo.checking import Kill
from x402tools.demo.interruption import Interrupted
from x402tools.demo.load import Load
from x402tools.demo.progress import Progress
from x402tools.demo.script import SCRIPT, Act, Scene
from x402tools.demo.server import Server
from x402tools.testing import Emulator

HEAD = "  time   served  spooled  delivered  waiting  the billing service"
START_SECONDS = 30.0  # for gunicorn's workers
TICK = 0.25  # seconds between two looks


class ShowFailed(Exception):
    """The show could not be played to its end; says why."""


class Stage:
    """The running parts of the show, and the clock.

    Attributes:
        kills: the workers killed so far.
    """

    def __init__(
        self,
        emulator: Emulator,
        service: Server,
        watch: UsageBuffer,
        worker_log: str,
        progress: Progress,
        stop: Flag,
    ) -> None:
        self.kills: List[Kill] = []
        self._emulator = emulator
        self._service = service
        self._watch = watch
        self._worker_log = worker_log
        self._progress = progress
        self._stop = stop
        self._weather = ""
        self._stats: Optional[BufferStats] = None
        self._began = time.monotonic()

    def await_workers(self, count: int) -> None:
        """Returns when so many workers are ready."""
        give_up = time.monotonic() + START_SECONDS
        while len(self._booted()) < count:
            if not self._service.running or time.monotonic() > give_up:
                raise ShowFailed("gunicorn did not start its workers; see gunicorn.log with --keep DIR")
            self.pause(0.05)

    def pause(self, seconds: float) -> None:
        """Waits.

        Raises:
            Interrupted: somebody wants the show to end.
        """
        if self._stop.wait(seconds):
            raise Interrupted

    def perform(self, seconds: float, load: Load) -> None:
        """Plays the script in that time."""
        self._began = time.monotonic()
        scenes = list(SCRIPT)
        while self._elapsed() < seconds:
            while scenes and self._elapsed() >= scenes[0].at * seconds:
                self._change(scenes.pop(0))
            self.look(load)
            self.pause(TICK)

    def look(self, load: Load, weather: Optional[str] = None, *, last: bool = False) -> None:
        """Shows how things stand."""
        with contextlib.suppress(SpoolError):  # busy: what was seen last is shown again
            self._stats = self._watch.stats()
        if self._stats is not None:
            recorded, delivered, pending = self._stats.recorded, self._stats.delivered, self._stats.pending
            figures = f"{recorded.events:>7,}  {delivered.events:>9,}  {pending.events:>7,}"
            time_and_served = f"{self._elapsed():>4.0f} s  {load.answered:>7,}"
            self._progress.show(f"{time_and_served}  {figures}  {weather or self._weather}", last=last)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _change(self, scene: Scene) -> None:
        if scene.act is Act.KILL_DELIVERING_WORKER:
            delivering = self._delivering()
            which = "which delivered to the emulator," if delivering else "before any could deliver,"
            self._kill_worker(delivering or next(iter(self._alive()), None), which)
        elif scene.act is Act.KILL_OTHER_WORKER:
            self._kill_worker(self._not_delivering(), "with its requests under way,")
        elif scene.act is Act.KILL_EMULATOR:
            self._note(f"the emulator (process {self._emulator.pid}) is killed by SIGKILL")
            self._emulator.kill()
        elif scene.act is Act.RESTART_EMULATOR:
            self._emulator.restart()
            self._note("the emulator is started again, on the same port and books")
        if scene.act not in (Act.KILL_EMULATOR, Act.KILL_OTHER_WORKER):  # there is none to talk to
            self._emulator.set_faults(*scene.faults)
        self._weather = scene.weather

    def _kill_worker(self, pid: Optional[int], which: str) -> None:
        if pid is None:
            raise ShowFailed("there was no worker to kill; see workers.log with --keep DIR")
        self.kills.append(Kill(pid, time.time()))
        server.kill(pid)
        self._note(f"worker {pid}, {which} is killed by SIGKILL")

    def _note(self, text: str) -> None:
        self._progress.say(f"{self._elapsed():>4.0f} s  ** {text}")

    def _alive(self) -> List[int]:
        killed = {kill.pid for kill in self.kills}
        return [pid for pid in self._booted() if pid not in killed]

    def _booted(self) -> List[int]:
        return [entry.pid for entry in log_file.entries(self._worker_log) if entry.words == ["boot"]]

    def _delivering(self) -> Optional[int]:
        deliverers = [e.pid for e in log_file.last_entries(self._worker_log) if e.words == ["delivered"]]
        alive = self._alive()
        return next((pid for pid in reversed(deliverers) if pid in alive), None)

    def _not_delivering(self) -> Optional[int]:
        delivering = self._delivering()
        return next((pid for pid in self._alive() if pid != delivering), None)
