"""Contestants of one section, measured in interleaved rounds: whatever else the machine does meets all of them."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from typing import Any, Callable, Dict, List, Optional

from benchmarks.harness.worker import ContestantError, Worker
from benchmarks.peers import catalogue


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
    ) -> Optional[Worker]:
        """Starts a contestant, or notes why it is missing.

        Args:
            key: what it is called here.
            contestant: where its class is; see `Worker`.
            options: what it is made from.
            requires: the distribution without which it cannot take part.
            python: the interpreter, when it is another environment's.
        """
        why = catalogue.why_missing(requires) if requires else None
        if why is None:
            try:
                self.workers[key] = Worker(contestant, options, python)
                return self.workers[key]
            except ContestantError as error:
                why = str(error)
        self.missing[requires or key] = why
        return None

    def rounds(self, count: int, play: Callable[[str, Worker], Any]) -> Dict[str, List[Any]]:
        """Plays so many rounds, each contestant once in each, every other round in the other order."""
        results: Dict[str, List[Any]] = {key: [] for key in self.workers}
        for number in range(count):
            keys = list(self.workers)
            for key in reversed(keys) if number % 2 else keys:
                try:
                    results[key].append(play(key, self.workers[key]))
                except ContestantError as error:
                    self.leave(key, str(error))
        return {key: found for key, found in results.items() if key in self.workers}

    def leave(self, key: str, why: str) -> None:
        """Takes out a contestant that failed."""
        self.missing[key] = why
        self.workers.pop(key).close()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers.values():
            worker.close()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
