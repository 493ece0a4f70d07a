"""How far the replay of a file came, beside its spool.

What was stored is known from the spool's own ledger, to the event. This says which file it was, so that another one
under the same name is not taken for it and its beginning left out.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple, Optional

_VERSION = 1


class Position(NamedTuple):
    """A line that was dealt with, and the fingerprint of everything up to its end. The first one is line 0."""

    line: int = 0
    fingerprint: str = ""


def path_of(spool: str) -> str:
    """Where the position of a replay over this spool is."""
    return spool + ".position"


def load(spool: str) -> Optional[Position]:
    """The last position that was saved, or None.

    Raises:
        ValueError: the file is no position.
        OSError: it cannot be read.
    """
    try:
        with open(path_of(spool), encoding="utf-8") as file:
            document = json.load(file)
        if document["version"] != _VERSION:
            raise ValueError("of another version")
        return Position(int(document["line"]), str(document["fingerprint"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path_of(spool)}: is not a position of a replay ({error})") from None


def save(spool: str, position: Position) -> None:
    """Replaces the last one as a whole."""
    temporary = path_of(spool) + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump({"version": _VERSION, **position._asdict()}, file)
    os.replace(temporary, path_of(spool))
