"""Buffered POSTs: over a connection that is open already they are sent and read by hand, and mean what they meant."""

from __future__ import annotations

import select
import zlib
from typing import Any, Callable, Dict, List, Tuple

import pytest

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import (
    Behaviour,
    Exchange,
    answer,
    chunked,
    cut_short,
    drip,
    hang,
    head,
    raw,
    refuses,
    reset,
    says,
)
from x402tools import X402Client, X402Error
from x402tools._http import Reply
from x402tools._lean import _LARGEST

BODY = b'{"envelopeId":"env_1","amount":1}'
BOOKED = says(documents.usage(), 201)

Post = Callable[[X402Client], Reply]


def post(client: X402Client, key: str = "key-1", body: bytes = BODY) -> Reply:
    """One attempt, as the flusher has it made."""
    return client._transport.post_usage(body, key)


def outcome(client: X402Client) -> Tuple[Any, ...]:
    """What the flusher can see of an attempt."""
    try:
        reply = post(client)
    except X402Error as error:
        return type(error).__name__, getattr(error, "status_code", None), error.retryable
    body = None if reply.status < 300 else reply.body  # nobody wants that of a success
    return "reply", reply.status, body, reply.headers.get("Content-Type"), reply.headers.get("retry-after")


def in_pieces(*pieces: bytes, pause: float = 0.02) -> Behaviour:
    """These bytes, each piece after a pause; the connection stays open."""

    def behave(exchange: Exchange) -> bool:
        for piece in pieces:
            exchange.send(piece)
            exchange.released.wait(pause)
        return True

    return behave


def compressed(status: int) -> Behaviour:
    packed = zlib.compress(b'{"error": "no"}')
    return answer(status, packed, {"Content-Encoding": "deflate", "Content-Type": "application/json"})


ANSWERS: Dict[str, Behaviour] = {
    "201": BOOKED,
    "200 without a body": answer(200),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "no reason phrase": raw(b"HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n"),
    "chunked": chunked(b"{}", b"  "),
    "chunked and cut short": chunked(b"{}", whole=False),
    "cut short": cut_short(documents.usage()),
    "until the end": raw(b"HTTP/1.1 201 Created\r\n\r\n{}"),
    "HTTP/1.0": raw(b"HTTP/1.0 201 Created\r\nContent-Length: 2\r\n\r\n{}"),
    "compressed": compressed(201),
    "compressed error": compressed(422),
    "continue first": in_pieces(b"HTTP/1.1 100 Continue\r\n\r\n", head(201, {"Content-Length": "2"}) + b"{}"),
    "early hints first": in_pieces(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + head(201, {"Content-Length": "0"})),
    "head and body apart": in_pieces(head(201, {"Content-Length": "2"}), b"{", b"}"),
    "head in pieces": in_pieces(b"HTTP/1.1 2", b"01 Created\r\nContent-Le", b"ngth: 0\r\n\r", b"\n"),
    "more than announced": raw(head(201, {"Content-Length": "2"}) + b"{}{}"),
    "a book": answer(201, b"x" * (_LARGEST + 1)),
    "a cookie twice": raw(b"HTTP/1.1 201 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"),
    "folded header": raw(b"HTTP/1.1 201 OK\r\nX-A: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
    "lines that end in LF": raw(b"HTTP/1.1 201 OK\nContent-Length: 0\n\n"),
    "a page": answer(200, b"<html>", {"Content-Type": "text/html"}),
    "400": refuses(400),
    "401": refuses(401),
    "402": refuses(402),
    "404": refuses(404),
    "429": refuses(429, "slowly", {"Retry-After": "7"}),
    "500": refuses(500),
    "503 with a page": answer(503, b"<html>busy</html>", {"Content-Type": "text/html", "Retry-After": "3"}),
    "redirect": answer(307, b"", {"Location": "http://elsewhere.example/"}),
    "999": refuses(999),
    "nothing": raw(b""),
    "half a head": raw(b"HTTP/1.1 201 Cre"),
    "another protocol": raw(b"SSH-2.0-OpenSSH\r\n"),
    "reset": reset(),
    "reset after half a head": reset(b"HTTP/1.1 201 Created\r\n"),
    "error cut short": raw(head(500, {"Content-Length": "100"}) + b"{"),
    "silence": hang(),
    "dripping head": drip(b"HTTP/1.1 201 Created\r\nX: ", b"x"),
    "dripping body": drip(head(201, {"Content-Length": "100000"}), b"x"),
    "dripping error": drip(head(500, {"Content-Length": "100000"}), b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_a_connection_in_use_changes_no_outcome(name: str, serve: Serve, connect: Connect, deadline: Any) -> None:
    """Whatever the service answers means the same over a new connection, which the library opens and reads."""
    fresh = connect(serve(ANSWERS[name]), timeout=(0.4, 0.4))
    server = serve(BOOKED, ANSWERS[name], always=BOOKED)
    kept = connect(server, timeout=(0.4, 0.4))
    post(kept)

    expected = deadline(outcome, fresh, seconds=10)
    found = deadline(outcome, kept, seconds=10)

    assert found == expected
    assert len(server.requests) == 2
    if outcome(kept)[:2] != ("reply", 201):  # the end of the connection came only now, and the flusher tries again
        assert outcome(kept)[:2] == ("reply", 201)  # what is left over of one answer is not taken for the next


def test_the_same_request_goes_out_either_way(serve: Serve, connect: Connect) -> None:
    """But for the connection, the service cannot tell a POST of the library from one of ours."""
    server = serve(always=BOOKED)
    client = connect(server)
    client.session.headers["X-Tenant"] = "blue"

    post(client, "key-1")
    post(client, "key-2", b'{"envelopeId":"env_2","amount":2,"metadata":{"\xc3\xbc":1}}')
    post(client, "key-2", b'{"envelopeId":"env_2","amount":2,"metadata":{"\xc3\xbc":1}}')

    first, second, third = server.requests
    assert server.connections == 1
    assert {**first.headers, "content-length": "", "idempotency-key": ""} == {
        **second.headers, "content-length": "", "idempotency-key": "",
    }  # fmt: skip
    assert second == third
    assert (second.method, second.target, second.headers["idempotency-key"]) == ("POST", "/usage", "key-2")
    assert (second.headers["authorization"], second.headers["x-tenant"]) == (f"Bearer {KEY}", "blue")
    assert second.headers["host"] == f"127.0.0.1:{server.port}"
    assert second.json["amount"] == 2


def test_connection_is_kept_after_a_refusal(serve: Serve, connect: Connect) -> None:
    """A 4xx for one POST costs the next one no new connection."""
    server = serve(BOOKED, refuses(422), refuses(429), BOOKED)
    client = connect(server)

    found = [outcome(client)[1] for _ in range(4)]

    assert found == [201, 422, 429, 201]
    assert server.connections == 1


def test_connection_that_the_service_ends_is_not_used_again(serve: Serve, connect: Connect) -> None:
    """`Connection: close` is obeyed, whoever read it."""
    ends = says(documents.usage(), 201, {"Connection": "close"})
    server = serve(BOOKED, ends, BOOKED)
    client = connect(server)

    found = [outcome(client)[1] for _ in range(3)]

    assert found == [201, 201, 201]
    assert server.connections == 2


def test_service_that_answers_in_chunks_keeps_its_connection(serve: Serve, connect: Connect) -> None:
    """After a few such answers the library does all the reading, on connections that it keeps."""
    server = serve(always=chunked(b"{}"))
    client = connect(server)

    for _ in range(20):
        assert post(client).status == 200

    assert server.connections <= 5


def test_new_key_is_used_from_the_next_post_on(serve: Serve, connect: Connect) -> None:
    """Nothing that may change is remembered."""
    server = serve(always=BOOKED)
    keys: List[str] = []
    client = connect(server, api_key=lambda: keys[-1])

    for key in ("first", "second", "third"):
        keys.append(key)
        post(client)

    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {key}" for key in keys]


@pytest.mark.parametrize("key", ["a b", "a\r\nX-Evil: 1", "ü", "a\tb"])
def test_key_of_a_made_up_spool_adds_no_header(key: str, serve: Serve, connect: Connect) -> None:
    """The library refuses it or sends it as the one header that it is."""
    server = serve(always=BOOKED)
    client = connect(server)
    post(client)

    try:
        post(client, key)
    except X402Error:
        pass

    assert all("x-evil" not in request.headers for request in server.requests)


def test_proxy_is_left_to_the_library(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the whole URL with every request, also over a connection that is open."""
    proxy = serve(always=BOOKED)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    client = connect("http://127.0.0.1:1")

    for _ in range(3):
        post(client)

    assert {request.target for request in proxy.requests} == {"http://127.0.0.1:1/usage"}


def test_connection_that_was_closed_while_idle_is_noticed(serve: Serve, connect: Connect) -> None:
    """The service closes what is idle too long; the next POST goes over a new connection, and is sent once."""
    closed = raw(head(201, {"Content-Length": "0"}))  # and then the end, without a word
    server = serve(BOOKED, closed, BOOKED)
    client = connect(server)
    post(client)
    post(client)

    template = client._transport._post_template
    assert template is not None
    assert template._kept is not None
    (idle,) = template._kept._idle
    assert select.select([idle.sock], [], [], 10)[0]  # the end of the connection has come

    assert outcome(client)[1] == 201
    assert len(server.requests) == 3


def test_large_post_that_is_refused_early(serve: Serve, connect: Connect) -> None:
    """The answer that came while it was still being sent is read, as far as the system has it."""
    server = serve(BOOKED, refuses(413))
    client = connect(server)
    post(client)

    assert post(client, body=b"x" * 60_000).status == 413
