"""The folder of one run: spool, books and logs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Iterator, Optional


class FolderInUseError(Exception):
    """The folder to keep has something in it already, which a new run would mix with its own."""


@contextlib.contextmanager
def run_folder(kept: Optional[str]) -> Iterator[str]:
    """Yields the absolute path of an empty folder: `kept`, made when it is missing, or a temporary one.

    Raises:
        FolderInUseError: `kept` is not empty.
        OSError: it cannot be made.
    """
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="x402tools-demo-") as folder:
            yield folder
        return
    os.makedirs(kept, mode=0o700, exist_ok=True)
    if os.listdir(kept):
        raise FolderInUseError(f"{kept} is not empty: give --keep a new folder")
    yield os.path.abspath(kept)
