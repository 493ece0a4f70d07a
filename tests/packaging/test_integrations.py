"""Integrations without the package they integrate with."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules[{package!r}] = None
from x402tools import MissingExtraError
try:
    import x402tools.integrations.{module}
except MissingExtraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "otel")],
)
def test_the_extra_is_named(module: str, package: str, extra: str) -> None:
    """Importing it without the package names the extra to install."""
    code = WITHOUT.format(module=module, package=package)

    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout

    assert f'pip install "x402tools[{extra}]"' in told
