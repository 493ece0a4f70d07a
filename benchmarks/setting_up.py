"""Makes what a run needs, once: environments under .bench/ with the pinned peers, and wrk. Standard library only.

Nothing here is fatal but a missing network at the first run: a peer that cannot be installed on this Python is noted
with pip's reason, and the sections name it as missing.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Dict, List

from benchmarks.peers import catalogue

ENVIRONMENT = catalogue.PLACE / "venv"
STAMP = catalogue.PLACE / "installed.json"
PUBLISHED_PIN = "x402tools==1.0.0"


def python() -> pathlib.Path:
    """The interpreter that runs the sections."""
    return ENVIRONMENT / "bin" / "python"


def prepare() -> None:
    """Does what has not been done yet, and says so.

    Raises:
        SystemExit: the project itself cannot be installed.
    """
    wanted = {"python": sys.version, "pins": [*catalogue.pins(), PUBLISHED_PIN]}
    if STAMP.exists() and json.loads(STAMP.read_text(encoding="utf-8")) == wanted and python().exists():
        return
    catalogue.PLACE.mkdir(exist_ok=True)
    print(f"setting up {ENVIRONMENT.parent}: the peers, each in its pinned version (once; a minute or two)", flush=True)
    missing: Dict[str, str] = {}
    _make(ENVIRONMENT)
    if _pip(python(), ["--editable", str(catalogue.ROOT)]):
        raise SystemExit("benchmarks: this project could not be installed; see pip's output above")
    if _pip(python(), catalogue.pins(), quiet=True):
        missing = {**missing, **_one_by_one()}
    missing.update(_published())
    missing.update(_wrk())
    catalogue.REASONS.write_text(json.dumps(missing, indent=1) + "\n", encoding="utf-8")
    STAMP.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _make(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)


def _pip(interpreter: pathlib.Path, requirements: List[str], *, quiet: bool = False) -> str:
    """Installs them; returns pip's last line of complaint, or "" when all is well."""
    command = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode == 0:
        return ""
    if not quiet:
        print(done.stdout, file=sys.stderr)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    return (errors or done.stdout.splitlines() or ["pip failed"])[-1]


def _one_by_one() -> Dict[str, str]:
    """After all of them together failed: those that can be had, and why the others can't."""
    missing: Dict[str, str] = {}
    for pin in catalogue.pins():
        why = _pip(python(), [pin], quiet=True)
        if why:
            print(f"  missing: {pin}: {why}", flush=True)
            missing[pin.partition("=")[0]] = f"{pin} cannot be installed on this Python: {why}"
    return missing


def _published() -> Dict[str, str]:
    directory = catalogue.PUBLISHED.parents[1]
    _make(directory)
    why = _pip(catalogue.PUBLISHED, [PUBLISHED_PIN], quiet=True)
    if why:
        shutil.rmtree(directory, ignore_errors=True)
        return {"x402tools 1.0.0": f"cannot be installed: {why}"}
    if sys.version_info < (3, 9):
        shutil.rmtree(directory, ignore_errors=True)
        return {"x402tools 1.0.0": "does not import on Python 3.8"}
    return {}


def _wrk() -> Dict[str, str]:
    """wrk from the system's packages when we may; otherwise the load generator of the harness stands in for it."""
    if shutil.which("wrk"):
        return {}
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return {"wrk": "not installed, and only root may install it with apt-get: harness/load.py is used instead"}
    log = catalogue.PLACE / "apt.log"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(log, "wb") as output:
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "wrk"]):
            subprocess.run(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, check=False
            )
    if shutil.which("wrk"):
        return {}
    return {"wrk": f"apt-get could not install it (see {log.name}): harness/load.py is used instead"}
