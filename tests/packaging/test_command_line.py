"""The command line without its extra: what needs other extras works, the rest says what to install."""

from __future__ import annotations

import subprocess
import sys
from typing import List

import pytest

WITHOUT = """
import sys
for missing in {missing!r}:
    sys.modules[missing] = None
from x402tools.cli import main
sys.exit(main({words!r}))
"""


def run_without(missing: List[str], *words: str) -> subprocess.CompletedProcess:
    """The command in an interpreter that lacks these packages."""
    code = WITHOUT.format(missing=missing, words=list(words))
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("missing", [["click"], ["rich"], ["click", "rich"]])
@pytest.mark.parametrize("words", [["envelopes", "list"], ["buffer", "status", "x.db"], []])
def test_the_extra_is_named(missing: List[str], words: List[str]) -> None:
    """Without click or rich the commands name the extra to install, and exit with 3."""
    ended = run_without(missing, *words)

    assert ended.returncode == 3
    assert 'pip install "x402tools[cli]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_and_version_need_no_extra() -> None:
    """Both are told without click: the commands, the exit codes, and what to install for them."""
    told, version = run_without(["click", "rich"], "--help"), run_without(["click", "rich"], "--version")

    assert (told.returncode, version.returncode) == (0, 0)
    for word in ("envelopes", "buffer", "replay", "worker", "emulator", "demo", "Exit codes", "x402tools[cli]"):
        assert word in told.stdout
    assert version.stdout.startswith("x402tools ")


@pytest.mark.parametrize("command", ["emulator", "demo"])
def test_the_emulator_and_the_demo_need_only_their_own_extra(command: str) -> None:
    """`--help` of both is theirs, without click and rich."""
    ended = run_without(["click", "rich"], command, "--help")

    assert ended.returncode == 0, ended.stderr
    assert f"x402tools {command}" in ended.stdout


def test_python_m() -> None:
    """`python -m x402tools` is the command."""
    ended = subprocess.run(
        [sys.executable, "-m", "x402tools", "--version"], check=False, capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 0
    assert ended.stdout.startswith("x402tools ")
