"""What the installed package says of itself: requirements, Pythons, extras."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import sys
from typing import List

import pytest

import x402tools

METADATA = importlib.metadata.metadata("x402tools")
CONSTRAINTS = pathlib.Path(__file__).resolve().parent.parent / "constraints-oldest.txt"


def requirements(*, extra: str = "") -> List[str]:
    """The requirements without extras, or those of one extra; without markers."""
    wanted = f'extra == "{extra}"' if extra else ""
    lines = [line.replace("'", '"') for line in importlib.metadata.requires("x402tools") or []]
    if extra:
        return [line.split(";")[0].strip() for line in lines if wanted in line]
    return [line.split(";")[0].strip() for line in lines if "extra ==" not in line]


def project_name(requirement: str) -> str:
    """`requests` of `requests>=2.31`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return found.group().lower()


def promised_pythons() -> List[str]:
    """The minor versions in the classifiers."""
    found = re.findall(r"Python :: (3\.\d+)", "\n".join(METADATA.get_all("Classifier") or []))
    return sorted(found, key=lambda version: int(version.split(".")[1]))


def test_runtime_requirements_are_three() -> None:
    """A plain `pip install x402tools` asks for requests, sqlitedict and tenacity, and for nothing else."""
    names = sorted(project_name(requirement) for requirement in requirements())

    assert names == ["requests", "sqlitedict", "tenacity"]


def test_classifiers_agree_with_requires_python() -> None:
    """The classifiers begin at the version that requires-python names and leave no version out."""
    pythons = promised_pythons()

    first, last = (int(pythons[index].split(".")[1]) for index in (0, -1))

    assert METADATA["Requires-Python"] == f">={pythons[0]}"
    assert pythons == [f"3.{minor}" for minor in range(first, last + 1)]


def test_this_python_is_promised() -> None:
    """The Python that runs the tests is not older than the classifiers say."""
    minors = [int(version.split(".")[1]) for version in promised_pythons()]

    assert sys.version_info[:2] >= (3, minors[0])


def test_version_is_stated_once() -> None:
    """`x402tools.__version__` is the version that was installed."""
    assert x402tools.__version__ == METADATA["Version"]


def test_every_extra_can_be_asked_for_by_name() -> None:
    """The extras that messages and documentation name exist."""
    named = {"async", "cli", "demo", "django", "emulator", "otel", "prometheus"}
    assert named <= set(METADATA.get_all("Provides-Extra") or [])


@pytest.mark.parametrize("extra", ["", "emulator", "demo", "cli", "otel", "prometheus", "async", "django"])
def test_oldest_constraints_are_the_lower_bounds(extra: str) -> None:
    """tests/constraints-oldest.txt pins exactly the lower bounds, so the run with it tests what is promised."""
    pins = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", CONSTRAINTS.read_text(), re.MULTILINE))
    bounds = {
        project_name(requirement): re.findall(r">=([\d.]+)", requirement)
        for requirement in requirements(extra=extra)
        if project_name(requirement) != "x402tools"
    }

    for name, (bound,) in bounds.items():
        assert is_release_of(pins[name], bound), f"{name}: pinned to {pins[name]}, but {bound} is promised"


def is_release_of(version: str, bound: str) -> bool:
    """Whether the version is the first one that the bound allows: `2.31` and `2.31.0` are the same release."""
    parts, wanted = version.split("."), bound.split(".")
    return parts[: len(wanted)] == wanted and all(part == "0" for part in parts[len(wanted) :])
