"""Which packages take part, which of them are here, and why one is not."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
from importlib import metadata
from typing import Dict, List, Optional

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLACE = ROOT / ".bench"  # everything that the set-up makes, and the files of a run: on the disk of the checkout
PUBLISHED = PLACE / "published" / "bin" / "python"  # the environment of x402tools 1.0.0
REASONS = PLACE / "missing.json"  # why something could not be installed, by the name of its distribution

# What a peer needs and does not ask for.
NEEDED = ("packaging",)

# Module by distribution.
MODULES = {
    "segment-analytics-python": "segment.analytics",
    "posthog": "posthog",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "confluent-kafka": "confluent_kafka",
    "persist-queue": "persistqueue",
    "litequeue": "litequeue",
    "diskcache": "diskcache",
    "huey": "huey",
    "pycurl": "pycurl",
    "flask": "flask",
    "gunicorn": "gunicorn",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "requests": "requests",
    "urllib3": "urllib3",
    "redis": "redis",
    "celery": "celery",
    "rq": "rq",
}


def pins() -> List[str]:
    """The requirements of the extra `bench`, read from pyproject.toml (tomllib came only with Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^bench = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert found, "pyproject.toml has no extra named bench"
    return re.findall(r'^\s*"([^"]+)"', found.group(1), re.MULTILINE)


def why_missing(distribution: str) -> Optional[str]:
    """None when it can be used; otherwise the reason, in words."""
    if distribution == "x402tools 1.0.0":
        return None if PUBLISHED.exists() else reason(distribution)
    try:
        found = importlib.util.find_spec(MODULES[distribution])
    except ModuleNotFoundError:
        found = None
    return None if found is not None else reason(distribution)


def reason(distribution: str) -> str:
    """Why the set-up could not install it, as far as it noted that."""
    if REASONS.exists():
        reasons: Dict[str, str] = json.loads(REASONS.read_text(encoding="utf-8"))
        if distribution in reasons:
            return reasons[distribution]
    return "not installed in this environment (run without --no-setup)"


def versions() -> Dict[str, str]:
    """Of all that is here."""
    found: Dict[str, str] = {}
    for distribution in ("x402tools", *MODULES):
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found
