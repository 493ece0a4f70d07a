"""Whether this version of the package can coalesce; shared by the sections that use it."""

from __future__ import annotations

import inspect

MISSING = "UsageBuffer of this version has no argument coalesce"


def is_there() -> bool:
    """Whether `UsageBuffer(coalesce=…)` exists."""
    from x402tools import UsageBuffer

    return "coalesce" in inspect.signature(UsageBuffer.__init__).parameters
