"""A success whose body is not what is promised is an APIError with its status, and never an exception of a parser."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any, Callable, Dict

import pytest

from tests.client import documents
from tests.client.conftest import Connect, Serve
from tests.client.scripted_server import answer, chunked, head, raw, says
from x402tools import APIConnectionError, APIError, X402Client

ENVELOPE = json.dumps(documents.envelope()).encode()

SINGLE: Dict[str, Callable[[X402Client], Any]] = {
    "get_envelope": lambda client: client.get_envelope("env_1"),
    "create_envelope": lambda client: client.create_envelope("N", 1, "DAILY"),
    "update_envelope": lambda client: client.update_envelope("env_1", limit=1),
    "record_usage": lambda client: client.record_usage("env_1", 1),
    "get_usage_stats": lambda client: client.get_usage_stats(),
    "create_api_key": lambda client: client.create_api_key("N"),
}
LISTS: Dict[str, Callable[[X402Client], Any]] = {
    "get_envelopes": lambda client: client.get_envelopes(),
    "get_usage": lambda client: client.get_usage(),
    "get_api_keys": lambda client: client.get_api_keys(),
}
CALLS = {**SINGLE, **LISTS}

NOT_WHAT_ANY_CALL_EXPECTS = {
    "HTML": b"<html>welcome</html>",
    "empty": b"",
    "white space": b" \r\n ",
    "truncated object": b'{"id": "env_1", "na',
    "truncated list": b'[{"id": "env_1", "na',
    "text": b'"ok"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
    "NaN": b"NaN",
    "object with nothing in it": b"{}",
    "list with nothing in an object": b"[{}]",
    "list of lists": b"[[]]",
    "list of null": b"[null]",
    "not UTF-8": b'{"id": "\xff"}',
    "UTF-16": json.dumps(documents.envelope()).encode("utf-16"),
    "a hundred thousand brackets": b"[" * 100_000,
    "a hundred thousand brackets in an object": b'[{"id":' + b"[" * 100_000,
    "two documents": b"{}{}",
    "huge number": b'{"limit": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", NOT_WHAT_ANY_CALL_EXPECTS)
def test_body_that_is_not_promised_is_an_api_error(name: str, kind: str, serve: Serve, connect: Connect) -> None:
    """The status is kept, and a POST that succeeded is not sent again."""
    body = NOT_WHAT_ANY_CALL_EXPECTS[kind]
    server = serve(answer(200, body))

    with pytest.raises(APIError) as caught:
        CALLS[name](connect(server))

    assert type(caught.value) is APIError
    assert caught.value.status_code == 200
    assert not caught.value.retryable
    assert "JSON" in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", SINGLE)
def test_list_for_an_object_is_an_api_error(name: str, serve: Serve, connect: Connect) -> None:
    """Also when the list holds the very object."""
    server = serve(says([documents.envelope()]))

    with pytest.raises(APIError, match="JSON"):
        CALLS[name](connect(server))


@pytest.mark.parametrize("name", LISTS)
def test_object_for_a_list_is_an_api_error(name: str, serve: Serve, connect: Connect) -> None:
    """A list wrapped in an object is another contract."""
    server = serve(says({"data": [documents.envelope()]}))

    with pytest.raises(APIError, match="JSON"):
        CALLS[name](connect(server))


@pytest.mark.parametrize("name", LISTS)
def test_anything_after_a_list_is_an_api_error(name: str, serve: Serve, connect: Connect) -> None:
    """A list with a page of a proxy behind it is not the list that was promised."""
    server = serve(answer(200, b"[] <html>timeout</html>"))

    with pytest.raises(APIError, match="JSON"):
        CALLS[name](connect(server))


@pytest.mark.parametrize("field", ["id", "name", "limit", "period", "organizationId", "createdAt", "updatedAt"])
def test_missing_field_is_named(field: str, serve: Serve, connect: Connect) -> None:
    """The message says which one, so that nobody has to guess."""
    document = documents.envelope()
    del document[field]
    server = serve(says(document), says([document]))
    client = connect(server)

    with pytest.raises(APIError, match=field):
        client.get_envelope("env_1")
    with pytest.raises(APIError, match=field):
        client.get_envelopes()


@pytest.mark.parametrize("time", ["", "yesterday", "2025-13-45T99:99:99Z", 5, None, [], True], ids=repr)
def test_time_that_is_none_is_an_api_error(time: Any, serve: Serve, connect: Connect) -> None:
    """A field of the wrong kind is an answer that makes no sense."""
    server = serve(says(documents.usage(timestamp=time)), says([documents.usage(timestamp=time)]))
    client = connect(server)

    with pytest.raises(APIError, match="JSON"):
        client.record_usage("env_1", 1)
    with pytest.raises(APIError, match="JSON"):
        client.get_usage()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_number_that_json_does_not_have_is_an_api_error(number: str, serve: Serve, connect: Connect) -> None:
    """`NaN` is a word of JavaScript, not of JSON, and an amount that is NaN spoils every sum."""
    body = json.dumps(documents.usage()).replace('"amount": 5', f'"amount": {number}').encode()
    server = serve(answer(200, body), answer(200, b"[" + body + b"]"))
    client = connect(server)

    with pytest.raises(APIError, match="JSON"):
        client.record_usage("env_1", 1)
    with pytest.raises(APIError, match="JSON"):
        client.get_usage()


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"\xef\xbb\xbf" + ENVELOPE),
        answer(200, b" \r\n\t" + ENVELOPE + b"\n"),
        answer(200, ENVELOPE, {"Content-Type": "text/plain; charset=latin-1"}),
        answer(200, ENVELOPE, {"Content-Type": "application/json; charset=utf-16"}),
        answer(200, gzip.compress(ENVELOPE), {"Content-Encoding": "gzip"}),
        answer(200, zlib.compress(ENVELOPE), {"Content-Encoding": "deflate"}),
        chunked(ENVELOPE[:10], ENVELOPE[10:]),
        chunked(*(ENVELOPE[i : i + 1] for i in range(len(ENVELOPE)))),
        raw(b"HTTP/1.1 200 OK\r\n\r\n" + ENVELOPE),
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + ENVELOPE),
        raw(b"HTTP/1.1 200\r\ncontent-length: %d\r\n\r\n" % len(ENVELOPE) + ENVELOPE),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n" + head(200, {"Content-Length": str(len(ENVELOPE))}) + ENVELOPE),
    ],
    ids=[
        "BOM", "white space", "wrong charset", "wronger charset", "gzip", "deflate", "chunked", "chunks of a byte",
        "until the end of the connection", "HTTP/1.0", "lower case, no reason", "100 first",
    ],
)  # fmt: skip
def test_honest_body_is_read_however_it_comes(reply: Any, serve: Serve, connect: Connect) -> None:
    """JSON is UTF-8 whatever a header claims; compression and framing are HTTP's own business."""
    server = serve(reply)

    assert connect(server).get_envelope("env_1").name == "API Calls"


@pytest.mark.parametrize(
    "reply",
    [
        answer(200, b"\xef\xbb\xbf[" + ENVELOPE + b"]"),
        answer(200, gzip.compress(b"[" + ENVELOPE + b"]"), {"Content-Encoding": "gzip"}),
        chunked(b"[", ENVELOPE[:10], ENVELOPE[10:], b"]"),
        raw(b"HTTP/1.1 200 OK\r\n\r\n[" + ENVELOPE + b"]"),
    ],
    ids=["BOM", "gzip", "chunked", "until the end of the connection"],
)
def test_honest_list_is_read_however_it_comes(reply: Any, serve: Serve, connect: Connect) -> None:
    """The same for the lists, which are read while they arrive."""
    server = serve(reply)

    assert [envelope.name for envelope in connect(server).get_envelopes()] == ["API Calls"]


def test_text_beyond_ascii_arrives(serve: Serve, connect: Connect) -> None:
    """Names are UTF-8 on the wire, both ways."""
    server = serve(answer(200, json.dumps(documents.envelope(name="Größe 🙂"), ensure_ascii=False).encode("utf-8")))

    assert connect(server).create_envelope("Größe 🙂", 1, "DAILY").name == "Größe 🙂"
    assert server.requests[0].json["name"] == "Größe 🙂"


@pytest.mark.parametrize("name", SINGLE)
def test_answer_of_any_size_is_refused(name: str, serve: Serve, connect: Connect) -> None:
    """Beyond a mebibyte nothing is kept: an APIError with the status, and one request."""
    server = serve(answer(200, b'{"id": "' + b"x" * 2_000_000))

    with pytest.raises(APIError, match="larger than") as caught:
        CALLS[name](connect(server))

    assert caught.value.status_code == 200
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["get_envelope", "get_envelopes"])
def test_bomb_does_not_go_off(name: str, serve: Serve, connect: Connect) -> None:
    """A hundred kilobytes that unpack to a hundred megabytes are stopped near the limit."""
    start = b'{"id": "' if name == "get_envelope" else b'[{"id": "'
    bomb = gzip.compress(start + b"x" * 100_000_000, 9)
    server = serve(answer(200, bomb, {"Content-Encoding": "gzip"}))

    with pytest.raises(APIError, match=r"larger than|too large") as caught:
        CALLS[name](connect(server))

    assert caught.value.status_code == 200
    assert len(bomb) < 200_000


@pytest.mark.parametrize("name", ["get_envelope", "get_envelopes"])
def test_compression_that_is_broken_is_a_connection_error(name: str, serve: Serve, connect: Connect) -> None:
    """What cannot be unpacked is not a whole answer."""
    server = serve(answer(200, b"not gzip at all", {"Content-Encoding": "gzip"}))

    with pytest.raises(APIConnectionError):
        CALLS[name](connect(server, max_retries=0))


def test_length_that_is_too_small_spoils_one_answer_only(serve: Serve, connect: Connect) -> None:
    """The rest of a body must not be taken for the answer to the next request."""
    liar = raw(head(200, {"Content-Length": "10"}) + ENVELOPE)
    server = serve(liar, answer(200, ENVELOPE))
    client = connect(server)

    with pytest.raises(APIError, match="JSON"):
        client.get_envelope("env_1")

    assert client.get_envelope("env_1").id == "env_1"
