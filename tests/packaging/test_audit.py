"""The step of CI that looks up vulnerabilities fails for one that is known, and for nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Dict, List

import pytest

from tests.client.conftest import Serve, serve
from tests.client.scripted_server import Exchange, closed_port, says

__all__ = ["serve"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "audit.py"
SECONDS = 60

needs_pip_audit = pytest.mark.skipif(
    importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed here: it is in the extra `lint`"
)


def audit(url: str) -> subprocess.CompletedProcess[str]:
    """The script, which asks the service at this URL."""
    environment = {**os.environ, "PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": url}
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def vulnerability(package: str, number: str, alias: str) -> Dict[str, Any]:
    """As a service of the OSV scheme describes it."""
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [], "versions": []}
    return {"id": number, "aliases": [alias], "summary": "bad", "affected": [affected]}


def service(known: Dict[str, List[Dict[str, Any]]]) -> Any:
    """Answers each question with what is known of the package that it names."""

    def behave(exchange: Exchange) -> bool:
        found = known.get(json.loads(exchange.request.body)["package"]["name"])
        return says({"vulns": found} if found else {})(exchange)

    return behave


@needs_pip_audit
def test_a_known_vulnerability_fails(serve: Serve) -> None:
    """Its number and the release are named."""
    server = serve(always=service({"urllib3": [vulnerability("urllib3", "GHSA-xxxx", "CVE-2099-1")]}))

    done = audit(server.url)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "urllib3" in done.stdout
    assert "CVE-2099-1" in done.stdout


@needs_pip_audit
def test_the_exception_does_not_fail(serve: Serve) -> None:
    """It is told, with the reason and the test; the same number for another package is no exception."""
    excepted = vulnerability("sqlitedict", "GHSA-yyyy", "CVE-2024-35515")
    known = {"sqlitedict": [excepted]}
    server = serve(always=service(known))

    alone = audit(server.url)
    known["requests"] = [vulnerability("requests", "GHSA-zzzz", "CVE-2024-35515")]
    with_another = audit(server.url)

    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "excepted sqlitedict" in alone.stdout
    assert "test_D11_a_planted_pickle_runs_no_code" in alone.stdout
    assert with_another.returncode == 1


@needs_pip_audit
def test_a_service_that_is_not_there_is_told() -> None:
    """Nothing was looked up, which is no finding."""
    done = audit(f"http://127.0.0.1:{closed_port()}")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT CHECKED" in done.stdout


def test_every_exception_names_a_test_that_exists() -> None:
    """The test that shows that the vulnerable path is not taken."""
    text = SCRIPT.read_text(encoding="utf-8")
    named = [line.strip().strip('",').split("::") for line in text.splitlines() if '"tests/' in line]

    assert len(named) == text.count("Exemption(") - 1 == 1  # one of the two is the class
    assert all(f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") for path, test in named)
