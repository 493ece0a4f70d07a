"""Whether the version that is measured can use an engine, and has what that needs."""

from __future__ import annotations

import importlib.util

from benchmarks.peers import catalogue

MISSING = "the version that is measured has no store for an engine"


def why_missing() -> str:
    """Why not, or "" when it can."""
    if importlib.util.find_spec("x402tools.redis_store") is None:
        return MISSING
    return catalogue.why_missing("redis") or ""
