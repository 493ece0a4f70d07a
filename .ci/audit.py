"""Whether a release that a plain `pip install x402tools` brings is known to be vulnerable, by pip-audit.

Looks at the runtime requirements, and theirs, as they are installed beside this interpreter. Exits with 1 for a finding
that is not among EXCEPTIONS. Where no vulnerability service can be reached it says so, and exits with 0: what cannot be
looked up has not been found.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional

from packaging.requirements import Requirement

PACKAGE = "x402tools"
# The second is asked when the first cannot be reached. pip-audit's own variable names the one to ask.
SERVICES = ("pypi", "osv")
CHOSEN = os.environ.get("PIP_AUDIT_VULNERABILITY_SERVICE")
SERVICE_TIMEOUT = 15  # seconds for one answer
COMMAND_TIMEOUT = 300


class Exemption(NamedTuple):
    """Why a known vulnerability of a requirement is none here, and the test that shows it."""

    package: str
    reason: str
    test: str


# By the CVE, which every service gives beside its own number.
EXCEPTIONS = {
    "CVE-2024-35515": Exemption(
        "sqlitedict",
        "its default codec unpickles what the file holds; x402tools never uses that codec",
        "tests/faults/test_storage_security.py::test_D11_a_planted_pickle_runs_no_code",
    ),
}


class Finding(NamedTuple):
    """One known vulnerability of one release."""

    package: str
    version: str
    names: List[str]  # its number, and its other numbers
    fixed_in: List[str]

    @property
    def exemption(self) -> Optional[Exemption]:
        """The entry of EXCEPTIONS for it, if there is one for this package."""
        found = (EXCEPTIONS.get(name) for name in self.names)
        return next((one for one in found if one is not None and one.package == self.package), None)

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {', '.join(self.names)} (fixed in {', '.join(self.fixed_in) or 'none'})"


def runtime_requirements() -> Dict[str, str]:
    """Name and version of everything that a plain install of the package brings."""
    versions: Dict[str, str] = {}
    waiting = [PACKAGE]
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        for line in distribution.requires or ():
            requirement = Requirement(line)
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and name not in versions:
                versions[name] = importlib.metadata.version(name)
                waiting.append(name)
    return versions


def ask(service: str, versions: Dict[str, str]) -> Optional[Dict[str, Any]]:
    """What pip-audit reports; None when it could not report, the reason for which it prints itself."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in versions.items()))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
        command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", str(SERVICE_TIMEOUT)]
        done = subprocess.run(
            [*command, "--requirement", file.name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        print(f"{service}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        return None


def findings(report: Dict[str, Any]) -> List[Finding]:
    """The vulnerabilities in a report of pip-audit."""
    return [
        Finding(one["name"], one["version"], [found["id"], *found.get("aliases", [])], found.get("fix_versions", []))
        for one in report["dependencies"]
        for found in one.get("vulns", [])
    ]


def skipped(report: Dict[str, Any]) -> List[str]:
    """What the service did not know at all. A mirror without the service answers so for everything."""
    return [f"{one['name']}: {one['skip_reason']}" for one in report["dependencies"] if "skip_reason" in one]


def judge(report: Dict[str, Any]) -> int:
    """Prints what was found; 1 when there is something that no exception covers."""
    status = 0
    for finding in findings(report):
        exemption = finding.exemption
        if exemption is None:
            status = 1
            print(f"FOUND    {finding}")
        else:
            print(f"excepted {finding}: {exemption.reason}; shown by {exemption.test}")
    return status


def main() -> int:
    """The exit status."""
    versions = runtime_requirements()
    print("Audited:", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())), flush=True)
    for service in [CHOSEN] if CHOSEN else SERVICES:
        report = ask(service, versions)
        if report is None:
            continue
        unknown = skipped(report)
        if not unknown:
            status = judge(report)
            print(f"{service}: {'a vulnerability is known' if status else 'nothing else is known'}")
            return status
        print(f"{service}: cannot tell ({unknown[0]}{', and others' if unknown[1:] else ''})")
        if judge(report):
            return 1
    print("NOT CHECKED: no vulnerability service can be reached from here; nothing was looked up.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
