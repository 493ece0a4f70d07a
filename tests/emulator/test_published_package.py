"""The package as it was first published, x402tools 1.0.0, makes its eleven calls against the emulator.

What the emulator's authors read in the description is one thing, what the first client sends and reads another.
The old package has an environment of its own, in a directory that is made for the session, or in the one that the
variable X402TOOLS_PUBLISHED_VENV names.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import venv
from typing import Any, Dict

import pytest

from tests.emulator.wire import ask
from x402tools.testing import Emulator

VERSION = "1.0.0"
VARIABLE = "X402TOOLS_PUBLISHED_VENV"
INSTALL_SECONDS = 100
SECONDS = 60

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.version_info < (3, 9), reason="x402tools 1.0.0 itself needs Python 3.9"),
]

IS_INSTALLED = f"import importlib.metadata as m; assert m.version('x402tools') == '{VERSION}'"

ELEVEN_CALLS = """
import dataclasses, json, sys
from x402tools import APIError, AuthenticationError, EnvelopeNotFoundError, X402Client

client = X402Client(api_key=sys.argv[2], base_url=sys.argv[1])
made = client.create_envelope(name="API Calls", limit=10000, period="MONTHLY", reset_day=1)
updated = client.update_envelope(envelope_id=made.id, limit=20000)
fetched = client.get_envelope(made.id)
listed = client.get_envelopes()
usage = client.record_usage(envelope_id=made.id, amount=50, metadata={"endpoint": "/api/users"})
client.record_usage(envelope_id=made.id, amount=1)
history, own = client.get_usage(), client.get_usage(envelope_id=made.id)
stats = client.get_usage_stats()
key = client.create_api_key(name="Production Key")
keys = client.get_api_keys()
works = X402Client(api_key=key.key, base_url=sys.argv[1]).get_envelopes()
nothing = client.delete_api_key(key_id=key.id)


def refusal(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]


stranger = X402Client(api_key=key.key, base_url=sys.argv[1])
over = refusal(lambda: client.record_usage(envelope_id=made.id, amount=20000))
nothing_again = client.delete_envelope(envelope_id=made.id)
report = {
    "made": made, "updated": updated, "fetched": fetched, "listed": listed, "usage": usage, "history": history,
    "own": own, "stats": stats, "key": key, "keys": keys, "works": works, "nothing": [nothing, nothing_again],
    "refusals": [
        refusal(stranger.get_envelopes),
        refusal(lambda: client.record_usage(envelope_id="invalid_id", amount=100)),
        over,
    ],
}


def plain(value):
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value.isoformat()


print(json.dumps(report, default=plain))
"""


@pytest.fixture(scope="session")
def published_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment in which x402tools 1.0.0 is installed."""
    given = os.environ.get(VARIABLE)
    if given:
        python = pathlib.Path(given) / "bin" / "python"
        is_valid = python.exists() and subprocess.run([str(python), "-c", IS_INSTALLED], check=False).returncode == 0
        if is_valid:
            return str(python)
    folder = tmp_path_factory.mktemp("published")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"x402tools=={VERSION}"],
        check=True,
        timeout=INSTALL_SECONDS,
    )
    return str(python)


@pytest.fixture
def report(published_python: str, emulator: Emulator, tmp_path: pathlib.Path) -> Dict[str, Any]:
    """What the eleven calls returned."""
    # In an empty folder and without PYTHONPATH, so that it is the published package that is imported.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [published_python, "-c", ELEVEN_CALLS, emulator.base_url, emulator.api_key],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    document = json.loads(finished.stdout)
    assert isinstance(document, dict)
    return document


def test_the_published_package_is_served(report: Dict[str, Any], emulator: Emulator) -> None:
    """All eleven calls return what they promise, and errors are the ones it knows."""
    made = report["made"]

    assert (made["name"], made["limit"], made["period"], made["reset_day"]) == ("API Calls", 10000, "MONTHLY", 1)
    assert made["created_at"].endswith("+00:00")
    assert (report["updated"]["limit"], report["fetched"]) == (20000, report["updated"])
    assert report["listed"] == [report["updated"]]
    assert (report["usage"]["amount"], report["usage"]["metadata"]) == (50, {"endpoint": "/api/users"})
    assert [usage["amount"] for usage in report["history"]] == [50, 1]
    assert report["history"] == report["own"]
    stats = report["stats"]
    assert (stats["total_usage"], stats["envelope_count"], stats["active_envelopes"]) == (51, 1, 1)
    assert report["key"]["key"] in [key["key"] for key in report["keys"]]
    assert report["works"] == report["listed"]
    assert report["nothing"] == [None, None]
    assert [name for name, _ in report["refusals"]] == ["AuthenticationError", "EnvelopeNotFoundError", "APIError"]
    assert "Usage limit exceeded" in report["refusals"][2][1]


def test_and_the_books_show_what_it_did(report: Dict[str, Any], emulator: Emulator) -> None:
    """What the calls returned is what was booked; the envelope and the key are deleted again."""
    ledger = emulator.ledger()

    assert (ledger.events, ledger.units) == (2, 51)
    assert [event.amount for event in emulator.events()] == [50, 1]
    assert ask(emulator, "GET", "/envelopes").json == []
    assert [key["key"] for key in ask(emulator, "GET", "/api-keys").json] == [emulator.api_key]
