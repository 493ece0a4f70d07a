"""An id reaches its own endpoint or none: it is quoted, or refused before anything is sent."""

from __future__ import annotations

from typing import Any, Callable, Dict
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.client import documents
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import answer, says
from x402tools import ValidationError, X402Client

# By path: the call, and what stands before the id.
IN_A_PATH: Dict[str, Any] = {
    "get_envelope": (lambda client, value: client.get_envelope(value), "/envelopes/"),
    "update_envelope": (lambda client, value: client.update_envelope(value, limit=1), "/envelopes/"),
    "delete_envelope": (lambda client, value: client.delete_envelope(value), "/envelopes/"),
    "delete_api_key": (lambda client, value: client.delete_api_key(value), "/api-keys/"),
}

CALLS: Dict[str, Callable[[X402Client, Any], Any]] = {
    **{name: call for name, (call, _) in IN_A_PATH.items()},
    "record_usage": lambda client, value: client.record_usage(value, 1),
    "get_usage": lambda client, value: client.get_usage(value),
    "iter_usage": lambda client, value: client.iter_usage(value),  # refused by the call, not by the first next()
}

LEGAL = [
    "env_1", "a/b", "../api-keys/key_1", "a/../../api-keys", "%2e%2e", "%2e%2e/api-keys/key_1", "..%2fapi-keys", "...",
    ".hidden", "a b", " a ", "a?b=c", "a#b", "a&envelopeId=b", "a;b", "a+b", "a=b", "a%b", "100%", "a\\b", "a:b", "a@b",
    "//other.example/x", "http://other.example/", "Größe", "日本", "🙂", "~a-b_c.d", "'\"<>", "a" * 256, "🙂" * 256,
]  # fmt: skip

ILLEGAL = [
    "", ".", "..", "a\r\nX-Header: 1", "a\n", "\r", "\t", "a\0b", "\x7f", "\x1b[31m", "\ud800", "a\udfff", "\u2028",
    "\u200b", "a" * 257, "a" * 10_000, b"env_1", 5, 0, 1.0, True, False, None, [], ["env_1"], {}, range(3),
]  # fmt: skip


@pytest.mark.parametrize("value", LEGAL, ids=lambda value: ascii(value)[:40])
@pytest.mark.parametrize("name", IN_A_PATH)
def test_id_in_a_path_is_one_segment(name: str, value: str, serve: Serve, connect: Connect) -> None:
    """However it looks, it adds one segment below its own endpoint, and the service reads back the very id."""
    call, prefix = IN_A_PATH[name]
    server = serve(answer(204) if name.startswith("delete") else says(documents.envelope()))

    call(connect(server), value)

    target = server.requests[0].target
    segment = target[len(prefix) :]
    assert target.startswith(prefix)
    assert not set(segment) & set("/?#\\ ")
    assert segment not in (".", "..", "%2e%2e", "%2E%2E")
    assert unquote(segment, errors="strict") == value


@pytest.mark.parametrize("value", LEGAL, ids=lambda value: ascii(value)[:40])
def test_id_in_a_query_is_one_value(value: str, serve: Serve, connect: Connect) -> None:
    """It cannot add a parameter or end the query."""
    server = serve(says([]))

    connect(server).get_usage(value)

    parts = urlsplit(server.requests[0].target)
    assert parts.path == "/usage"
    assert parse_qs(parts.query, strict_parsing=True) == {"envelopeId": [value]}


@pytest.mark.parametrize("value", LEGAL, ids=lambda value: ascii(value)[:40])
def test_id_in_a_body_is_sent_as_it_is(value: str, serve: Serve, connect: Connect) -> None:
    """JSON needs no quoting of ours."""
    server = serve(says(documents.usage()))

    connect(server).record_usage(value, 1)

    assert server.requests[0].json["envelopeId"] == value


@pytest.mark.parametrize("value", ILLEGAL, ids=lambda value: ascii(value)[:40])
@pytest.mark.parametrize("name", CALLS)
def test_id_that_is_none_is_refused(name: str, value: Any, serve: Serve, connect: Connect) -> None:
    """A ValidationError that names the argument, and nothing is sent. (get_usage takes None and "" for "all".)"""
    if name in ("get_usage", "iter_usage") and (value is None or value == ""):
        return
    server = serve()
    argument = "key_id" if name == "delete_api_key" else "envelope_id"

    with pytest.raises(ValidationError, match=argument) as caught:
        CALLS[name](connect(server), value)

    assert caught.value.status_code is None
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    assert server.connections == 0
