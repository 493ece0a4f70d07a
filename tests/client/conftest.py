"""What the tests of the client share: scripted servers and clients that are closed again, and a clean environment."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Union

import pytest

from tests.client.scripted_server import ScriptedServer
from x402tools import X402Client

KEY = "sk_live_4c1b7e09d2a84fdd"

# Seconds to connect and to wait for bytes; ample for this machine, short enough for a failure to be told soon.
TIMEOUT = (5.0, 5.0, 20.0)

ENVIRONMENT = (
    "X402TOOLS_API_KEY", "X402TOOLS_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC",
)  # fmt: skip

Connect = Callable[..., X402Client]
Serve = Callable[..., ScriptedServer]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing of this machine's own settings reaches the client: no proxy, no key, no netrc."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(*script, always=…)`: a running scripted server."""
    with contextlib.ExitStack() as servers:

        def start(*script: Any, **settings: Any) -> ScriptedServer:
            return servers.enter_context(ScriptedServer(*script, **settings))

        yield start


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(server_or_url, **settings)`: a client of it with the key `KEY`."""
    with contextlib.ExitStack() as clients:

        def make(where: Union[str, Any], api_key: Any = KEY, **settings: Any) -> X402Client:
            url = where if isinstance(where, str) else getattr(where, "url", None) or where.base_url
            return clients.enter_context(X402Client(api_key, url, **{"timeout": TIMEOUT, **settings}))

        yield make
