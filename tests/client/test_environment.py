"""What the machine's settings may change, and what they may not: proxies and certificates yes, the bearer no."""

from __future__ import annotations

import gc
import pathlib
import warnings
from typing import Any, Callable, Dict

import pytest

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import answer, closed_port, refuses, says
from x402tools import APIConnectionError, APIError, X402Client

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "get_usage_stats": lambda client: client.get_usage_stats(),
    "get_envelopes": lambda client: client.get_envelopes(),
    "record_usage": lambda client: client.record_usage("env_1", 1),
}
REPLIES = {
    "get_usage_stats": says(documents.stats()),
    "get_envelopes": says([]),
    "record_usage": says(documents.usage()),
}


@pytest.mark.parametrize(
    "entry", ["default login thief password thief", "machine 127.0.0.1 login thief password thief"]
)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["NETRC", "HOME"])
def test_netrc_cannot_replace_the_bearer(
    entry: str, name: str, place: str, serve: Serve, connect: Connect, monkeypatch: Any, tmp_path: pathlib.Path
) -> None:
    """Neither an entry for the host nor one for every host, wherever the file is."""
    netrc = tmp_path / ("netrc" if place == "NETRC" else ".netrc")
    netrc.write_text(entry + "\n", encoding="ascii")
    netrc.chmod(0o600)
    monkeypatch.setenv(place, str(netrc if place == "NETRC" else tmp_path))
    server = serve(REPLIES[name])

    CALLS[name](connect(server))

    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("name", CALLS)
def test_proxy_of_the_environment_is_used(
    variable: str, name: str, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy gets the request, with the whole URL as its target, and the service itself is not spoken to."""
    proxy, server = serve(REPLIES[name]), serve()
    monkeypatch.setenv(variable, proxy.url)

    CALLS[name](connect(server))

    assert proxy.requests[0].target.startswith(server.url + "/")
    assert server.connections == 0


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("value", ["127.0.0.1", "*", "example.com, 127.0.0.1"])
def test_no_proxy_is_honoured(
    variable: str, value: str, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is excepted is spoken to directly."""
    proxy, server = serve(), serve(says([]))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv(variable, value)

    connect(server).get_envelopes()

    assert proxy.connections == 0
    assert server.requests[0].target == "/envelopes"


def test_proxy_for_https_is_asked_for_a_tunnel_without_the_key(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy learns the host and nothing else; when it refuses, nothing was sent."""
    proxy = serve(always=refuses(407, "who are you?"))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    with pytest.raises(APIConnectionError, match="proxy") as caught:
        connect("https://billing.invalid", max_retries=0).record_usage("env_1", 1)

    (request,) = proxy.requests
    assert (request.method, request.target) == ("CONNECT", "billing.invalid:443")
    assert "authorization" not in request.headers
    assert KEY not in repr(request)
    assert caught.value.maybe_processed is False
    with warnings.catch_warnings():  # Python 3.8 itself forgets to close what it read the proxy's refusal from
        warnings.simplefilter("ignore", ResourceWarning)
        del caught
        gc.collect()


@pytest.mark.parametrize("name", CALLS)
def test_proxy_that_is_down_is_a_connection_error(name: str, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the proxy, so that nobody looks for the fault at the service; and nothing was sent."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")

    with pytest.raises(APIConnectionError, match="proxy") as caught:
        CALLS[name](connect("http://127.0.0.1:1", max_retries=0))

    assert caught.value.maybe_processed is False


def test_password_of_a_proxy_is_in_no_message(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's own credentials are a secret too."""
    monkeypatch.setenv("HTTP_PROXY", f"http://me:hunter2@127.0.0.1:{closed_port()}")

    with pytest.raises(APIConnectionError) as caught:
        connect("http://127.0.0.1:1", max_retries=0).get_envelopes()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("status", [407, 502])
def test_answer_of_a_proxy_is_an_error_with_its_status(
    status: int, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that answers in place of the service is not taken for it."""
    proxy = serve(always=answer(status, b"<html>proxy</html>"))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)

    with pytest.raises(APIError) as caught:
        connect("http://127.0.0.1:1", max_retries=0).get_envelopes()

    assert caught.value.status_code == status


@pytest.mark.parametrize("name", CALLS)
def test_cookies_are_not_kept(name: str, serve: Serve, connect: Connect) -> None:
    """A client that serves many threads has no session for a service to keep apart."""
    cookies = {"Set-Cookie": "session=abc; Path=/"}
    server = serve(
        says([], 200, cookies),
        refuses(409, "no", {"Set-Cookie": "other=1; Path=/; Domain=127.0.0.1"}),
        REPLIES[name],
    )
    client = connect(server)
    client.get_envelopes()
    with pytest.raises(APIError):
        client.get_usage_stats()

    CALLS[name](client)

    assert all("cookie" not in request.headers for request in server.requests)
    assert len(client.session.cookies) == 0


def test_bundle_that_is_missing_is_a_connection_error(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE is honoured; when it names nothing, the message says so and nothing is sent."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")

    with pytest.raises(APIConnectionError, match=r"bundle\.pem"):
        connect(f"https://127.0.0.1:{closed_port()}", max_retries=0).get_envelopes()
