"""The emulator keeps to its OpenAPI file, and refuses what the file does not allow: schemathesis tries both."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

import x402tools.emulator
from x402tools.testing import Emulator

OPENAPI = pathlib.Path(x402tools.emulator.__file__).with_name("openapi.yaml")
EXAMPLES_PER_OPERATION = "60"
SEED = "402"
SECONDS = 100
# A record that fits the schema and not the envelope is refused with 402, which schemathesis does not expect.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 401, 402, 404, 409]
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        importlib.util.find_spec("schemathesis") is None,
        reason="schemathesis is not installed (it needs Python 3.10 and is a tool of the project's own checks)",
    ),
]


def test_the_emulator_keeps_to_its_openapi_file(emulator: Emulator, tmp_path: pathlib.Path) -> None:
    """Requests made from the file, valid and not, are answered as the file says, with every check of schemathesis."""
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), os.path.dirname(sys.executable)])
    program = shutil.which("st", path=scripts)
    assert program is not None
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION, encoding="utf-8")

    finished = subprocess.run(
        [
            program,
            f"--config-file={configuration}",
            "run",
            str(OPENAPI),
            f"--url={emulator.base_url}",
            f"--header=Authorization: Bearer {emulator.api_key}",
            "--checks=all",
            f"--max-examples={EXAMPLES_PER_OPERATION}",
            f"--seed={SEED}",
            "--generation-database=none",
            "--no-color",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        check=False,
    )

    output = finished.stdout.decode("utf-8", "replace")
    print(output)
    assert finished.returncode == 0, output
