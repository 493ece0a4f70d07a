"""A redirect is an error: a 302 would turn a lost POST into a success, a 307 would hand the body to another host."""

from __future__ import annotations

from typing import Any, Callable, Dict

import pytest

from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import answer, drip, head, says
from x402tools import APIError, X402Client

CALLS: Dict[str, Callable[[X402Client], Any]] = {
    "GET": lambda client: client.get_envelope("env_1"),
    "GET a list": lambda client: client.get_usage(),
    "POST": lambda client: client.record_usage("env_1", 1),
    "PUT": lambda client: client.update_envelope("env_1", limit=1),
    "DELETE": lambda client: client.delete_envelope("env_1"),
}


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
@pytest.mark.parametrize("name", CALLS)
def test_redirect_to_another_host_is_an_error(status: int, name: str, serve: Serve, connect: Connect) -> None:
    """One request, nothing sent to the other host, not tried again, and the status is kept."""
    other = serve(always=says({"stolen": True}))
    server = serve(always=answer(status, b"", {"Location": f"{other.url}/usage?token=abc"}))

    with pytest.raises(APIError, match="redirect") as caught:
        CALLS[name](connect(server))

    assert type(caught.value) is APIError
    assert caught.value.status_code == status
    assert not caught.value.retryable
    assert len(server.requests) == 1
    assert other.connections == 0


@pytest.mark.parametrize("name", CALLS)
def test_redirect_to_itself_is_an_error(name: str, serve: Serve, connect: Connect) -> None:
    """A loop ends with its first turn."""
    server = serve(always=answer(302, b"", {"Location": "/envelopes"}))

    with pytest.raises(APIError, match="redirect"):
        CALLS[name](connect(server))

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("https://other.example/usage?token=abc#frag", "https://other.example;"),
        ("http://me:token@other.example/", "http://other.example;"),
        ("file:///etc/passwd?token", "itself"),
        ("/relative?token=abc", "itself"),
        ("//other.example/token", "itself"),
        ("https://[token", "not a URL"),
        ("javascript:token", "itself"),
        ("", "nowhere"),
    ],
)
def test_message_names_no_more_than_scheme_and_host(location: str, named: str, serve: Serve, connect: Connect) -> None:
    """A path and a query may hold what is not for a log; a Location that is no URL is no reason to fail otherwise."""
    server = serve(always=answer(307, b"", {"Location": location}))

    with pytest.raises(APIError, match="base_url") as caught:
        connect(server).record_usage("env_1", 1)

    assert named in str(caught.value)
    assert "token" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_redirect_without_a_location_is_an_error(serve: Serve, connect: Connect) -> None:
    """There is nothing to follow, and it is no success either."""
    server = serve(always=answer(302))

    with pytest.raises(APIError, match="redirect"):
        connect(server).delete_envelope("env_1")


@pytest.mark.parametrize("name", CALLS)
def test_body_of_a_redirect_is_not_waited_for(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """A redirect whose body never ends is an error at once."""
    server = serve(always=drip(head(302, {"Location": "/x", "Content-Length": "1000000"}), b" ", 0.05))

    with pytest.raises(APIError, match="redirect"):
        deadline(CALLS[name], connect(server), seconds=3)


def test_connection_is_not_lost_over_a_redirect(serve: Serve, connect: Connect) -> None:
    """The next call gets its own answer."""
    server = serve(answer(302, b"moved", {"Location": "/x"}), says([]))
    client = connect(server)

    with pytest.raises(APIError):
        client.get_usage_stats()

    assert client.get_envelopes() == []
