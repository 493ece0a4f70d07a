"""Contestants of one section, measured in interleaved rounds: whatever else the machine does meets all of them."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from typing import Any, Callable, Dict, List, Optional, Tuple

from benchmarks.harness.worker import ContestantError, Worker
from benchmarks.peers import catalogue

WARM_UP = 0.2  # of a round: enough to fill caches and open connections


class Contest:
    """A context manager that ends the contestants' processes and removes their files.

    Attributes:
        workers: by the contestant's key, in the order of entering.
        missing: why a contestant does not take part, by the name of its distribution or its key.
    """

    def __init__(self) -> None:
        self.workers: Dict[str, Worker] = {}
        self.missing: Dict[str, str] = {}
        self._folders: List[pathlib.Path] = []
        self._starting: Dict[str, Tuple[Worker, str]] = {}

    def folder(self) -> str:
        """A new folder on the disk of the checkout: a temporary folder in memory would make every sync free."""
        catalogue.PLACE.mkdir(exist_ok=True)
        made = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=catalogue.PLACE))
        self._folders.append(made)
        return str(made)

    def enter(
        self,
        key: str,
        contestant: str,
        options: Dict[str, Any],
        *,
        requires: Optional[str] = None,
        python: Optional[str] = None,
    ) -> None:
        """Starts a contestant, or notes why it is missing. `ready` waits for all that were entered.

        Args:
            key: what it is called here.
            contestant: where its class is; see `Worker`.
            options: what it is made from.
            requires: the distribution without which it cannot take part.
            python: the interpreter, when it is another environment's.
        """
        why = catalogue.why_missing(requires) if requires else None
        if why is None:
            self._starting[key] = (Worker(contestant, options, python), requires or key)
        else:
            self.missing[requires or key] = why

    def ready(self) -> None:
        """Waits for the contestants that were entered; those that cannot be made are missing."""
        for key, (worker, name) in self._starting.items():
            try:
                worker.made()
                self.workers[key] = worker
            except ContestantError as error:
                self.missing[name] = str(error)
        self._starting = {}

    def one(self, key: str, contestant: str, options: Dict[str, Any]) -> Worker:
        """Starts a contestant without which there is nothing to measure, and waits for it.

        Raises:
            ContestantError: it cannot be made.
        """
        worker = Worker(contestant, options)
        worker.made()
        self.workers[key] = worker
        return worker

    def rounds(self, count: int, play: Callable[[str, Worker, float], Any]) -> Dict[str, List[Any]]:
        """Plays so many rounds, each contestant once in each, every other round in the other order.

        Args:
            count: of rounds. One more, to warm up, comes before them and is not among the results.
            play: is given the contestant's key, its worker, and how much of a round to play: 1, or WARM_UP.
        """
        results: Dict[str, List[Any]] = {key: [] for key in self.workers}
        for number in range(count + 1):
            keys = list(self.workers)
            for key in reversed(keys) if number % 2 else keys:
                try:
                    result = play(key, self.workers[key], 1.0 if number else WARM_UP)
                except ContestantError as error:
                    self.leave(key, str(error))
                    continue
                if number:
                    results[key].append(result)
        return {key: found for key, found in results.items() if key in self.workers}

    def leave(self, key: str, why: str) -> None:
        """Takes out a contestant that failed."""
        self.missing[key] = why
        self.workers.pop(key).close()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in [*self.workers.values(), *(worker for worker, _ in self._starting.values())]:
            worker.close()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
