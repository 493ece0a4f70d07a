"""A client is made of usable settings or not at all, and its attributes are those of 1.0.0."""

from __future__ import annotations

import inspect
from typing import Any, Dict

import pytest
import requests

from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import says
from x402tools import APIError, ValidationError, X402Client

HOSTED = "https://stakefy-usage-envelope-production.up.railway.app"


def test_arguments_take_positions() -> None:
    """As in 1.0.0: the key first, the base URL second."""
    with X402Client(KEY, "https://billing.example") as client:
        assert (client.api_key, client.base_url) == (KEY, "https://billing.example")


def test_attributes_of_the_first_release_are_there() -> None:
    """`api_key`, `base_url` and `session`, and the hosted service by default."""
    with X402Client(api_key=KEY) as client:
        assert client.api_key == KEY
        assert client.base_url == HOSTED
        assert isinstance(client.session, requests.Session)
        assert client.buffer is None


def test_headers_of_the_session_are_sent(serve: Serve, connect: Connect) -> None:
    """What a user of 1.0.0 puts into `client.session.headers` goes out with every request."""
    server = serve(says([]))
    client = connect(server)

    client.session.headers["X-Team"] = "billing"
    client.get_envelopes()

    assert server.requests[0].headers["x-team"] == "billing"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://billing.example/", "https://billing.example"),
        ("https://billing.example///", "https://billing.example"),
        ("https://billing.example/v1/", "https://billing.example/v1"),
        ("https://billing.example:8443", "https://billing.example:8443"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("HTTPS://billing.example", "HTTPS://billing.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_base_url_is_accepted(given: str, kept: str) -> None:
    """https anywhere and http on this machine; slashes at the end are dropped."""
    with X402Client(KEY, given) as client:
        assert client.base_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "billing.example",
        "//billing.example",
        "https://",
        "https:///v1",
        "ftp://billing.example",
        "file:///etc/passwd",
        "http://billing.example",
        "http://127.0.0.1.billing.example",
        "http://localhost@billing.example",
        "https://me:secret@billing.example",
        "https://me@billing.example",
        "https://@billing.example",
        "https://me:sec/ret@billing.example",
        "https://billing.example?a=1",
        "https://billing.example?",
        "https://billing.example/#top",
        "https://billing.example#",
        "https://billing.example:99999",
        "https://billing.example:port",
        "https://[::1",
        "https://billing.example\\@other.example",
        "https://billing .example",
        " https://billing.example",
        "https://billing.example\n",
        "https://billing.example\r\nX-Header: 1",
        "https://bílling.example",
        b"https://billing.example",
        5,
    ],
    ids=ascii,
)
def test_base_url_is_refused(url: Any) -> None:
    """Whatever could send the key elsewhere, in clear, or not at all; the message repeats no password."""
    with pytest.raises(ValidationError, match="base_url") as caught:
        X402Client(KEY, url)

    assert caught.value.status_code is None
    assert "sec" not in str(caught.value).replace("secure", "")


def test_http_to_another_host_can_be_asked_for() -> None:
    """An internal gateway without TLS is reachable, but only by saying so."""
    with X402Client(KEY, "http://billing.internal", allow_http=True) as client:
        assert client.base_url == "http://billing.internal"


@pytest.mark.parametrize(
    ("key", "says_why"),
    [
        ("", "empty"),
        ("sk_secret\n", "line ends"),
        ("\nsk_secret", "line ends"),
        ("sk_secret\r\nX-Header: 1", "line ends"),
        ("sk_ secret", "spaces"),
        (" ", "spaces"),
        ("sk_secret\t", "visible"),
        ("sk_secret\0", "visible"),
        ("sk_secret\x7f", "visible"),
        ("sk_secrét", "ASCII"),
        ("sk_secret€", "ASCII"),
        ("sk_secret\ud800", "ASCII"),
        (b"sk_secret", "str"),
        (5, "str"),
        (["sk_secret"], "str"),
    ],
    ids=ascii,
)
def test_key_is_refused_without_repeating_it(key: Any, says_why: str) -> None:
    """A key that cannot stand in a header is an error at once, which says why and not what."""
    with pytest.raises(ValidationError, match="api_key") as caught:
        X402Client(key)

    assert says_why in str(caught.value)
    assert "secr" not in repr(caught.value)


def test_key_and_url_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """X402TOOLS_API_KEY and X402TOOLS_BASE_URL stand in for what is not given."""
    monkeypatch.setenv("X402TOOLS_API_KEY", "sk_environment")
    monkeypatch.setenv("X402TOOLS_BASE_URL", "https://environment.example/")

    with X402Client() as client:
        assert (client.api_key, client.base_url) == ("sk_environment", "https://environment.example")


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment fills gaps only."""
    monkeypatch.setenv("X402TOOLS_API_KEY", "sk_environment")
    monkeypatch.setenv("X402TOOLS_BASE_URL", "https://environment.example")

    with X402Client(KEY, "https://given.example") as client:
        assert (client.api_key, client.base_url) == (KEY, "https://given.example")


def test_no_key_at_all_is_told() -> None:
    """The message names both ways to give one."""
    with pytest.raises(ValidationError, match="X402TOOLS_API_KEY"):
        X402Client()


@pytest.mark.parametrize(("name", "value"), [("X402TOOLS_API_KEY", "sk_with space"), ("X402TOOLS_API_KEY", "")])
def test_environment_is_checked_too(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unusable key is refused wherever it comes from, and an empty one does not pass for none."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ValidationError, match="api_key"):
        X402Client()


@pytest.mark.parametrize("timeout", [1, 0.5, (1, 2), (1, 2.5, 3), (0.001, 86400)], ids=str)
def test_timeout_is_accepted(timeout: Any) -> None:
    """One number, two or three, whole or not."""
    with X402Client(KEY, timeout=timeout):
        pass


@pytest.mark.parametrize(
    "timeout",
    [0, -1, True, float("nan"), float("inf"), "5", None, (), (1,), (1, 0), (1, 2, -3), (1, 2, 3, 4), [1, 2], (1, "2")],
    ids=str,
)
def test_timeout_is_refused(timeout: Any) -> None:
    """Nothing that would wait for ever, or not at all."""
    with pytest.raises(ValidationError, match="timeout"):
        X402Client(KEY, timeout=timeout)


@pytest.mark.parametrize("retries", [-1, 1.0, True, "2", None], ids=str)
def test_max_retries_is_refused(retries: Any) -> None:
    """A whole number from 0."""
    with pytest.raises(ValidationError, match="max_retries"):
        X402Client(KEY, max_retries=retries)


def test_everything_new_is_keyword_only() -> None:
    """No position that 1.0.0 did not have, so that it can be used for something else one day."""
    parameters = list(inspect.signature(X402Client).parameters.values())

    assert [parameter.name for parameter in parameters[:2]] == ["api_key", "base_url"]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[2:])


def test_client_works_again_after_close(serve: Serve, connect: Connect) -> None:
    """`close()` may be called twice; a later call opens a new connection."""
    server = serve(says([]), says([]))
    client = connect(server)
    client.get_envelopes()

    client.close()
    client.close()
    client.get_envelopes()

    assert server.connections == 2


@pytest.mark.parametrize("settings", [{"buffered": True}], ids=str)
def test_buffered_needs_a_buffer(settings: Dict[str, Any], serve: Serve, connect: Connect) -> None:
    """Insisting on a buffer that is not there is an error, not a call that waits."""
    server = serve()
    client = connect(server)

    with pytest.raises(ValidationError, match="buffer"):
        client.record_usage("env_1", 1, **settings)
    with pytest.raises(ValidationError, match="buffer"):
        client.flush()

    assert server.requests == []


def test_every_local_refusal_is_an_api_error_and_a_value_error() -> None:
    """Code written for 1.0.0 catches APIError; code that never heard of it catches ValueError."""
    with pytest.raises(APIError) as caught:
        X402Client("")

    assert isinstance(caught.value, ValueError)
