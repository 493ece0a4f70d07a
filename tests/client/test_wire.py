"""What each call sends, to the byte that matters: exactly the wire contract and nothing more."""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple, Optional

import pytest

from tests.client import documents
from tests.client.conftest import KEY, Connect, Serve
from tests.client.scripted_server import answer, says
from x402tools import X402Client


class Row(NamedTuple):
    """A call, and what it must send."""

    name: str
    call: Callable[[X402Client], Any]
    method: str
    target: str
    body: Any
    reply: Any


ENVELOPE, USAGE, API_KEY = documents.envelope(), documents.usage(), documents.api_key()

ROWS = [
    Row("get_envelopes", lambda c: c.get_envelopes(), "GET", "/envelopes", None, [ENVELOPE]),
    Row("get_envelope", lambda c: c.get_envelope("env_1"), "GET", "/envelopes/env_1", None, ENVELOPE),
    Row(
        "create_envelope",
        lambda c: c.create_envelope("N", 5, "DAILY"),
        "POST",
        "/envelopes",
        {"name": "N", "limit": 5, "period": "DAILY"},
        ENVELOPE,
    ),
    Row(
        "create_envelope with a reset day",
        lambda c: c.create_envelope(name="N", limit=0, period="MONTHLY", reset_day=1),
        "POST",
        "/envelopes",
        {"name": "N", "limit": 0, "period": "MONTHLY", "resetDay": 1},
        ENVELOPE,
    ),
    Row(
        "update_envelope",
        lambda c: c.update_envelope("env_1", limit=20000),
        "PUT",
        "/envelopes/env_1",
        {"limit": 20000},
        ENVELOPE,
    ),
    Row(
        "update_envelope, every field",
        lambda c: c.update_envelope("env_1", "N", 1, "YEARLY", 2),
        "PUT",
        "/envelopes/env_1",
        {"name": "N", "limit": 1, "period": "YEARLY", "resetDay": 2},
        ENVELOPE,
    ),
    Row("delete_envelope", lambda c: c.delete_envelope("env_1"), "DELETE", "/envelopes/env_1", None, None),
    Row(
        "record_usage",
        lambda c: c.record_usage("env_1", 5),
        "POST",
        "/usage",
        {"envelopeId": "env_1", "amount": 5},
        USAGE,
    ),
    Row(
        "record_usage with metadata",
        lambda c: c.record_usage("env_1", 5, {"ü": [1, {"deep": None}], "f": 0.5}),
        "POST",
        "/usage",
        {"envelopeId": "env_1", "amount": 5, "metadata": {"ü": [1, {"deep": None}], "f": 0.5}},
        USAGE,
    ),
    Row(
        "record_usage with empty metadata",
        lambda c: c.record_usage("env_1", 5, {}),
        "POST",
        "/usage",
        {"envelopeId": "env_1", "amount": 5},
        USAGE,
    ),
    Row("get_usage", lambda c: c.get_usage(), "GET", "/usage", None, [USAGE]),
    Row("get_usage of one", lambda c: c.get_usage("env_1"), "GET", "/usage?envelopeId=env_1", None, [USAGE]),
    Row("get_usage_stats", lambda c: c.get_usage_stats(), "GET", "/usage/stats", None, documents.stats()),
    Row("get_api_keys", lambda c: c.get_api_keys(), "GET", "/api-keys", None, [API_KEY]),
    Row("create_api_key", lambda c: c.create_api_key("N"), "POST", "/api-keys", {"name": "N"}, API_KEY),
    Row("delete_api_key", lambda c: c.delete_api_key("key_1"), "DELETE", "/api-keys/key_1", None, None),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_call_sends_the_contract(row: Row, serve: Serve, connect: Connect) -> None:
    """One request with the method, path, query and body of the table, the bearer, and a key when it is a POST."""
    server = serve(answer(204) if row.reply is None else says(row.reply))

    row.call(connect(server))

    (request,) = server.requests
    assert (request.method, request.target) == (row.method, row.target)
    assert (request.json if request.body else None) == row.body
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert ("idempotency-key" in request.headers) is (row.method == "POST")


@pytest.mark.parametrize("row", [row for row in ROWS if row.reply is not None], ids=lambda row: row.name)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_any_2xx_is_a_success(row: Row, status: int, serve: Serve, connect: Connect) -> None:
    """The contract names no status but "2xx"."""
    server = serve(says(row.reply, status))

    assert row.call(connect(server))


@pytest.mark.parametrize("call", ["delete_envelope", "delete_api_key"])
@pytest.mark.parametrize(
    "reply",
    [answer(204), answer(200), says({"deleted": True}), answer(200, b"<html>gone</html>")],
    ids=["204", "empty 200", "JSON", "HTML"],
)
def test_delete_does_not_mind_what_the_body_is(call: str, reply: Any, serve: Serve, connect: Connect) -> None:
    """Nothing is promised about the body of a DELETE, so nothing in it is an error."""
    server = serve(reply)

    assert getattr(connect(server), call)("id_1") is None


def test_path_of_the_base_url_is_kept(serve: Serve, connect: Connect) -> None:
    """An API behind a path of a gateway is reached under that path."""
    server = serve(says([]), says(documents.stats()))
    client = connect(server.url + "/billing/v1/")

    client.get_envelopes()
    client.get_usage_stats()

    assert [request.target for request in server.requests] == ["/billing/v1/envelopes", "/billing/v1/usage/stats"]


def test_connection_is_used_again(serve: Serve, connect: Connect) -> None:
    """Calls that follow one another share one connection, whichever calls they are."""
    replies = [answer(204) if row.reply is None else says(row.reply) for row in ROWS]
    server = serve(*replies)
    client = connect(server)

    for row in ROWS:
        row.call(client)

    assert server.connections == 1


@pytest.mark.parametrize("given", [None, "order-4711", "~!#", "k" * 255])
def test_idempotency_key_of_the_caller_is_sent(given: Optional[str], serve: Serve, connect: Connect) -> None:
    """Word for word when given; otherwise a fresh one of at least 122 random bits, visible ASCII."""
    server = serve(says(USAGE))

    connect(server).record_usage("env_1", 1, idempotency_key=given)

    sent = server.requests[0].headers["idempotency-key"]
    assert sent == given if given is not None else re.fullmatch(r"[0-9a-f]{32}", sent)
    assert server.requests[0].json == {"envelopeId": "env_1", "amount": 1}


def test_extra_fields_of_an_answer_are_ignored(serve: Serve, connect: Connect) -> None:
    """A service that learns new fields does not break a client that does not know them."""
    new = {"plan": {"tier": 3}, "self": None}
    server = serve(
        says([documents.envelope(**new)]),
        says(documents.envelope(**new)),
        says([documents.usage(**new)]),
        says([documents.api_key(**new)]),
        says(documents.stats(**new)),
    )
    client = connect(server)

    assert client.get_envelopes() == [client.get_envelope("env_1")]
    assert client.get_usage()[0].amount == 5
    assert client.get_api_keys()[0].id == "key_1"
    assert client.get_usage_stats().total_usage == 150


def test_fields_that_may_be_missing_may_be_missing(serve: Serve, connect: Connect) -> None:
    """Optional fields are None when they are null and when they are absent; a missing periodUsage is empty."""
    bare_envelope, bare_usage, bare_stats = documents.envelope(), documents.usage(), documents.stats()
    del bare_envelope["resetDay"], bare_usage["metadata"], bare_stats["periodUsage"]
    server = serve(
        says([bare_envelope, documents.envelope(resetDay=None)]),
        says([bare_usage, documents.usage(metadata=None)]),
        says([documents.api_key(), documents.api_key(lastUsed=None, expiresAt=None)]),
        says(bare_stats),
    )
    client = connect(server)

    assert [envelope.reset_day for envelope in client.get_envelopes()] == [None, None]
    assert [usage.metadata for usage in client.get_usage()] == [None, None]
    assert [(key.last_used, key.expires_at) for key in client.get_api_keys()] == [(None, None)] * 2
    assert client.get_usage_stats().period_usage == []


def test_times_of_a_key_are_read(serve: Serve, connect: Connect) -> None:
    """lastUsed and expiresAt are times like any other."""
    server = serve(says([documents.api_key(lastUsed=documents.TIME, expiresAt="2026-01-01T00:00:00Z")]))

    (key,) = connect(server).get_api_keys()

    assert key.last_used == key.created_at
    assert key.expires_at is not None
    assert key.expires_at.year == 2026
