"""Nothing is sent to a server that cannot prove who it is, and nothing waits for a handshake for ever."""

from __future__ import annotations

import pathlib
import socket
import ssl
from typing import Any

import pytest
import requests

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import says
from x402tools import APIConnectionError, APITimeoutError

# A certificate of its own for 127.0.0.1, valid for a hundred years, with its key. It opens nothing.
CERTIFICATE = str(pathlib.Path(__file__).parent / "data" / "self_signed.pem")


def self_signed() -> ssl.SSLContext:
    """The server's side of TLS, with a certificate that nobody has vouched for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def test_unknown_certificate_is_an_error(serve: Serve, connect: Connect) -> None:
    """Nothing was sent, and nothing is tried again: a certificate does not get better by waiting."""
    server = serve(tls=self_signed())

    with pytest.raises(APIConnectionError, match="TLS") as caught:
        connect(server).record_usage("env_1", 1)

    assert not isinstance(caught.value, APITimeoutError)
    assert not caught.value.retryable
    assert caught.value.maybe_processed is False
    assert server.requests == []
    assert server.connections == 1


def test_certificate_for_another_name_is_an_error(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being trusted is not enough: the name has to be the one that was asked for."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", CERTIFICATE)
    server = serve(tls=self_signed())

    with pytest.raises(APIConnectionError, match="TLS"):
        connect(server.url.replace("127.0.0.1", "localhost")).get_envelopes()

    assert server.requests == []


def test_bundle_of_the_environment_is_trusted(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE is how a company names its own authority."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", CERTIFICATE)
    server = serve(says(documents.stats()), says([]), tls=self_signed())
    client = connect(server)

    assert client.get_usage_stats().total_usage == 150
    assert client.get_envelopes() == []
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("verify", [CERTIFICATE, False], ids=["a bundle", "False"])
@pytest.mark.parametrize("environment", [None, "/no/such/bundle.pem"], ids=["plain", "another in the environment"])
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificates_of_an_own_session_rule(
    verify: Any, environment: Any, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session says of certificates holds, whatever the environment says."""
    if environment is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", environment)
    server = serve(says(documents.stats()), tls=self_signed())

    with requests.Session() as session:
        session.verify = verify
        stats = connect(server, session=session).get_usage_stats()

    assert stats.total_usage == 150


def test_own_session_that_trusts_nobody_rules(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment does not widen what a session trusts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", CERTIFICATE)
    server = serve(tls=self_signed())

    with requests.Session() as session:
        session.verify = requests.certs.where()
        with pytest.raises(APIConnectionError, match="TLS"):
            connect(server, session=session).get_usage_stats()

    assert server.requests == []


def test_port_that_does_not_speak_tls_is_an_error(serve: Serve, connect: Connect) -> None:
    """The key is not sent in clear to find out."""
    heard = []

    def speak_plainly(connection: socket.socket, _: Any) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    server = serve(instead=speak_plainly)

    with pytest.raises(APIConnectionError) as caught:
        connect(server, max_retries=0).get_envelopes()

    assert caught.value.maybe_processed is False
    assert KEY.encode() not in b"".join(heard)


def test_handshake_that_is_cut_heals(serve: Serve, connect: Connect) -> None:
    """A server that restarts ends connections within the handshake: that is tried again."""
    server = serve(instead=lambda connection, _: connection.recv(65536))

    with pytest.raises(APIConnectionError) as caught:
        connect(server, max_retries=1).get_envelopes()

    assert caught.value.retryable
    assert server.connections == 2


def test_handshake_that_stalls_ends_in_time(serve: Serve, connect: Connect, deadline: Any) -> None:
    """A port that accepts and says nothing."""
    server = serve(instead=lambda _, released: released.wait(20))
    client = connect(server, timeout=(0.5, 0.5, 5), max_retries=0)

    with pytest.raises(APIConnectionError):
        deadline(client.get_envelopes, seconds=5)
