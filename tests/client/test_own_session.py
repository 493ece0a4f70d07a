"""A session of the user's own: its adapters, proxies and hooks are used, and what they do wrong stays contained."""

from __future__ import annotations

import http.client
import socket
from typing import Any, Dict, Iterator, List

import pytest
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import refuses, says
from x402tools import APIConnectionError, APIError, AuthenticationError


class RecordingAdapter(HTTPAdapter):
    """Sends as requests does, and keeps what it was asked to send and how."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.sent: List[Dict[str, Any]] = []
        self.closed = 0

    def send(self, request: Any, **settings: Any) -> Any:
        self.sent.append({"url": request.url, **settings})
        # The files of certificates named in these tests do not exist, and plain http needs none.
        return super().send(request, **{**settings, "verify": True, "cert": None})

    def close(self) -> None:
        self.closed += 1
        super().close()


class FailingAdapter(BaseAdapter):
    """Raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.asked = 0

    def send(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        raise self.error

    def close(self) -> None:
        pass


class SillyAdapter(BaseAdapter):
    """Returns what is no response."""

    def send(self, *_: Any, **__: Any) -> Any:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session, closed in the end."""
    with requests.Session() as made:
        yield made


def test_mounted_adapter_is_used(session: requests.Session, serve: Serve, connect: Connect) -> None:
    """For every call, with a stream, no redirects, and time-outs."""
    adapter = RecordingAdapter()
    session.mount("http://", adapter)
    server = serve(says([]), says(documents.usage()))
    client = connect(server, session=session)

    client.get_envelopes()
    client.record_usage("env_1", 1)

    assert [sent["url"] for sent in adapter.sent] == [f"{server.url}/envelopes", f"{server.url}/usage"]
    assert all(sent["stream"] for sent in adapter.sent)
    assert all(0 < seconds <= 5 for sent in adapter.sent for seconds in sent["timeout"])
    assert client.session is session


def test_bearer_is_ours_whatever_the_session_has(session: requests.Session, serve: Serve, connect: Connect) -> None:
    """Neither its auth nor its headers get in the way of the key."""
    session.auth = ("me", "password")
    session.headers["Authorization"] = "Basic bWU6cGFzc3dvcmQ="
    server = serve(says([]))

    connect(server, session=session).get_envelopes()

    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert session.auth == ("me", "password")


def test_headers_and_hooks_of_the_session_are_used(session: requests.Session, serve: Serve, connect: Connect) -> None:
    """What a company adds to every request, for tracing for example, is there."""
    seen: List[int] = []
    session.headers["X-Trace"] = "t1"
    session.hooks["response"].append(lambda response, **_: seen.append(response.status_code))
    server = serve(says([]), refuses(404))
    client = connect(server, session=session)

    client.get_envelopes()
    with pytest.raises(APIError):
        client.get_usage_stats()

    assert [request.headers["x-trace"] for request in server.requests] == ["t1", "t1"]
    assert seen == [200, 404]
    assert len(session.hooks["response"]) == 1


def test_proxies_of_the_session_rule(
    session: requests.Session, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over those of the environment."""
    proxy, other, server = serve(says([])), serve(), serve()
    monkeypatch.setenv("HTTP_PROXY", other.url)
    session.proxies["http"] = proxy.url

    connect(server, session=session).get_envelopes()

    assert proxy.requests[0].target == f"{server.url}/envelopes"
    assert other.connections == server.connections == 0


def test_session_that_does_not_trust_the_environment_rules(
    session: requests.Session, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trust_env = False` switches the environment off."""
    other, server = serve(), serve(says([]))
    monkeypatch.setenv("HTTP_PROXY", other.url)
    session.trust_env = False

    connect(server, session=session).get_envelopes()

    assert other.connections == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("verify", [True, False, "/own/bundle.pem"])
@pytest.mark.parametrize("bundle", [None, "/environment/bundle.pem"])
def test_verify_reaches_the_adapter(
    verify: Any, bundle: Any, session: requests.Session, serve: Serve, connect: Connect, monkeypatch: Any
) -> None:
    """What the session says; only where it says no more than "yes" may the environment name the authorities."""
    if bundle is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    adapter = RecordingAdapter()
    session.mount("http://", adapter)
    session.verify, session.cert = verify, ("/own/cert.pem", "/own/key.pem")

    connect(serve(says([])), session=session).get_envelopes()

    (sent,) = adapter.sent
    assert sent["verify"] == (bundle if verify is True and bundle is not None else verify)
    assert sent["cert"] == ("/own/cert.pem", "/own/key.pem")


def test_session_is_not_closed(session: requests.Session, serve: Serve, connect: Connect) -> None:
    """It is the user's, and may be in use elsewhere."""
    adapter = RecordingAdapter()
    session.mount("http://", adapter)
    client = connect(serve(says([])), session=session)
    client.get_envelopes()

    client.close()

    assert adapter.closed == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError("odd"),
        ConnectionResetError(104, "odd"),
        socket.timeout("odd"),
        http.client.BadStatusLine("odd"),
        http.client.IncompleteRead(b"odd"),
        requests.RequestException("odd"),
        requests.TooManyRedirects("odd"),
        requests.exceptions.RetryError("odd"),
        requests.exceptions.ContentDecodingError("odd"),
        requests.exceptions.InvalidURL("odd"),
        urllib3.exceptions.HTTPError("odd"),
        urllib3.exceptions.ProtocolError("odd", ConnectionResetError(104, "odd")),
        ValueError("odd"),
        KeyError("odd"),
        RuntimeError("odd"),
        UnicodeEncodeError("ascii", KEY + "\u20ac", 0, 1, "odd"),
        RuntimeError(f"Authorization: Bearer {KEY}"),
        StopIteration(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["get_usage_stats", "get_envelopes"])
def test_adapter_that_raises_is_a_connection_error(
    name: str, error: Exception, session: requests.Session, connect: Connect
) -> None:
    """Whatever it raises, `except APIError` catches it, and it does not carry the key along."""
    session.mount("https://", FailingAdapter(error))

    with pytest.raises(APIConnectionError) as caught:
        getattr(connect("https://billing.example", session=session, max_retries=0), name)()

    assert type(error).__name__ in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug")], ids=repr)
def test_adapter_s_own_bug_is_not_tried_again(error: Exception, session: requests.Session, connect: Connect) -> None:
    """Nothing says that it would heal; and nobody knows whether the request was sent."""
    adapter = FailingAdapter(error)
    session.mount("https://", adapter)

    with pytest.raises(APIConnectionError) as caught:
        connect("https://billing.example", session=session).record_usage("env_1", 1)

    assert adapter.asked == 1
    assert caught.value.maybe_processed is True


def test_adapter_that_returns_nothing_is_a_connection_error(session: requests.Session, connect: Connect) -> None:
    """Not an AttributeError from deep inside."""
    session.mount("https://", SillyAdapter())

    with pytest.raises(APIConnectionError):
        connect("https://billing.example", session=session).get_envelopes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), AuthenticationError("ours")], ids=repr)
def test_what_is_meant_for_others_goes_through(
    error: BaseException, session: requests.Session, connect: Connect
) -> None:
    """Ctrl-C, an exit, and an error of this package are not touched."""
    session.mount("https://", FailingAdapter(error))

    with pytest.raises(type(error)) as caught:
        connect("https://billing.example", session=session).get_envelopes()

    assert caught.value is error


def test_adapter_that_retries_itself_does_not_hide_what_was_sent(
    session: requests.Session, serve: Serve, connect: Connect
) -> None:
    """When the adapter's own attempts are used up, the request was sent, and may have been processed."""
    retrying = urllib3.Retry(total=1, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    session.mount("http://", HTTPAdapter(max_retries=retrying))
    server = serve(always=refuses(503))

    with pytest.raises(APIConnectionError) as caught:
        connect(server, session=session, max_retries=0).record_usage("env_1", 1)

    assert caught.value.maybe_processed is True
    assert len(server.requests) == 2
