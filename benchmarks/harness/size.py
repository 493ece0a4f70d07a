"""How much work a run is: `--quick`, the default, or `--full`."""

from __future__ import annotations

import enum
from typing import TypeVar

_Value = TypeVar("_Value")


class Size(enum.Enum):
    """The default fits all sections into a quarter of an hour, quick into two minutes; full takes what it takes."""

    QUICK = "quick"
    DEFAULT = "default"
    FULL = "full"

    def pick(self, quick: _Value, default: _Value, full: _Value) -> _Value:
        """The value for this size."""
        return {Size.QUICK: quick, Size.DEFAULT: default, Size.FULL: full}[self]
