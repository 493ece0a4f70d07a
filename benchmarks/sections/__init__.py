"""One file a section. SECTIONS has them in the order in which they are run: the module of each by its name, imported
when it is wanted, so that a section costs nothing to those who don't run it."""

from __future__ import annotations

import importlib
from typing import Any

SECTIONS = {
    "hot-path": "hot_path",
    "durable": "durable",
    "disk": "disk",
    "delivery": "delivery",
    "coalesced": "coalesced",
    "service-tax": "service_tax",
    "sustained": "sustained",
    "backlog": "backlog",
    "start-exit": "start_exit",
    "growth": "growth",
    "engine": "engine",
    "workers": "workers",
    "fleet": "fleet",
}


def module(name: str) -> Any:
    """The section's module; it has `run(size) -> Section`."""
    return importlib.import_module(f"benchmarks.sections.{SECTIONS[name]}")
