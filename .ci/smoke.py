"""What `pip install` gives a user: the wheel and the sdist in `DIRECTORY`, each installed alone and tried.

The wheel on the oldest Python at hand and the sdist on the newest, without extras and away from the checkout.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from typing import List

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIREMENTS = ["requests", "sqlitedict", "tenacity"]
COMMAND_TIMEOUT = 300

# Runs in the new environment. Prints what the checks below compare.
INSPECT = """
import importlib.metadata, pathlib, re
import x402tools
base = [r for r in importlib.metadata.requires("x402tools") if "extra ==" not in r]
print(x402tools.__version__ == importlib.metadata.version("x402tools"))
print(" ".join(sorted(re.match("[A-Za-z0-9_.-]+", r).group() for r in base)))
print(pathlib.Path(x402tools.__file__).resolve().parent)
"""


def check(condition: bool, what: str) -> None:
    """Prints what was found to hold; ends the program when it does not."""
    print(f"  {'ok  ' if condition else 'FAIL'} {what}", flush=True)
    if not condition:
        sys.exit(1)


def run(command: List[str], cwd: str) -> subprocess.CompletedProcess[str]:
    """The finished command, output captured as text."""
    return subprocess.run(
        command,
        cwd=cwd,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
    )


def check_wheel_content(wheel: pathlib.Path) -> None:
    """The package and its data are in, and nothing else is."""
    names = zipfile.ZipFile(wheel).namelist()
    check("x402tools/py.typed" in names, "the wheel has py.typed")
    check(any(re.match(r"x402tools/.*openapi.*\.(json|yaml|yml)$", name) for name in names), "the wheel has openapi")
    strangers = [name for name in names if not re.match(r"x402tools(-[^/]*\.dist-info)?/", name)]
    check(not strangers, f"the wheel has the package alone {strangers or ''}")


def check_installed(artifact: pathlib.Path, python: str) -> None:
    """The artifact in an environment of its own: imports, names its version, answers and refuses as promised."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True, timeout=COMMAND_TIMEOUT)
        installed = f"{folder}/venv/bin/python"
        for arguments in (["--upgrade", "pip"], [str(artifact)]):
            result = run([installed, "-m", "pip", "install", "--quiet", *arguments], folder)
            check(result.returncode == 0, f"pip install {arguments[-1]} {result.stderr if result.returncode else ''}")

        result = run([installed, "-c", INSPECT], folder)
        check(result.returncode == 0, f"import x402tools {result.stderr}")
        version_agrees, requirements, place = result.stdout.splitlines()
        check(version_agrees == "True", "x402tools.__version__ is the version installed")
        check(requirements.split() == REQUIREMENTS, f"runtime requirements: {requirements}")
        check(not place.startswith(str(ROOT)), "imported from the environment, not from the checkout")

        command = f"{folder}/venv/bin/x402tools"
        check(run([command, "--help"], folder).returncode == 0, "x402tools --help")
        result = run([command, "emulator"], folder)
        told = "x402tools[emulator]" in result.stderr + result.stdout
        check(result.returncode != 0 and told, "x402tools emulator names the extra to install, and fails")
        check("Traceback" not in result.stderr, "and does so without a traceback")


def main(directory: str) -> None:
    """Both artifacts, or exit 1 at the first thing that does not hold."""
    lines = subprocess.run([str(ROOT / ".ci" / "find-python")], check=True, stdout=subprocess.PIPE, text=True).stdout
    pythons = [line.split(" ", 2) for line in lines.splitlines()]
    newest, oldest = pythons[0], pythons[-1]
    (wheel,) = pathlib.Path(directory).resolve().glob("*.whl")
    (sdist,) = pathlib.Path(directory).resolve().glob("*.tar.gz")

    check_wheel_content(wheel)
    for artifact, (_, version, python) in ((wheel, oldest), (sdist, newest)):
        print(f"{artifact.name} on Python {version}")
        check_installed(artifact, python)


if __name__ == "__main__":
    main(sys.argv[1])
