"""Keys, and what is said at doors that do not open."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest

from tests.emulator.wire import ask
from x402tools.testing import Emulator


def test_a_new_key_works_at_once_and_a_deleted_one_no_more(emulator: Emulator) -> None:
    """POST /api-keys answers 201 with the key, which opens the API until DELETE."""
    made = ask(emulator, "POST", "/api-keys", {"name": "Production Key"})
    key = made.json["key"]

    before = ask(emulator, "GET", "/envelopes", api_key=key)
    deletion = ask(emulator, "DELETE", f"/api-keys/{made.json['id']}", api_key=key)
    after = ask(emulator, "GET", "/envelopes", api_key=key)

    assert made.status == 201
    assert set(made.json) == {"id", "key", "name", "organizationId", "createdAt", "lastUsed", "expiresAt"}
    assert made.json["name"] == "Production Key"
    assert (before.status, deletion.status, deletion.body, after.status) == (200, 204, b"", 401)


def test_the_list_of_keys_tells_when_each_was_last_used(emulator: Emulator) -> None:
    """GET /api-keys is a bare list, with the keys in full; lastUsed is null until the first use."""
    made = ask(emulator, "POST", "/api-keys", {"name": "unused"}).json

    keys = ask(emulator, "GET", "/api-keys").json

    assert [key["key"] for key in keys] == [emulator.api_key, made["key"]]
    assert keys[0]["lastUsed"] is not None
    assert keys[1]["lastUsed"] is None


def test_deleting_an_unknown_key_is_404(emulator: Emulator) -> None:
    """The answer is JSON and does not speak of envelopes."""
    answer = ask(emulator, "DELETE", "/api-keys/nowhere")

    assert (answer.status, answer.json) == (404, {"error": "API key not found"})


@pytest.mark.parametrize("authorization", [None, "", "sk_emulator", "Basic c2s6", "Bearer", "Bearer ", "Bearer sk_no"])
def test_without_a_known_key_nothing_opens(emulator: Emulator, authorization: str) -> None:
    """401 in JSON, whatever is wrong with the header."""
    connection = http.client.HTTPConnection(urlsplit(emulator.base_url).netloc, timeout=10)
    headers = {} if authorization is None else {"Authorization": authorization}

    connection.request("GET", "/envelopes", headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()

    assert response.status == 401
    assert b'{"error":' in body


@pytest.mark.parametrize("path", ["/nowhere", "/envelopes/", "/usage/stats/more", "/__emulator__/nowhere"])
def test_an_unknown_path_is_404_in_json(emulator: Emulator, path: str) -> None:
    """Also with a slash at the end, which is no redirect."""
    answer = ask(emulator, "GET", path)

    assert answer.status == 404
    assert "error" in answer.json


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/usage", "GET, HEAD, POST"),
        ("POST", "/usage/stats", "GET, HEAD"),
        ("PATCH", "/envelopes", "GET, HEAD, POST"),
        ("POST", "/envelopes/some", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/api-keys", "GET, HEAD, POST"),
        ("GET", "/api-keys/some", "DELETE"),
        ("GET", "/__emulator__/reset", "POST"),
    ],
)
def test_a_wrong_method_is_405_and_told_the_right_ones(emulator: Emulator, method: str, path: str, allow: str) -> None:
    """`Allow` lists every method of the path."""
    answer = ask(emulator, method, path)

    assert (answer.status, answer.headers["allow"]) == (405, allow)
    assert "error" in answer.json


def test_head_is_get_without_the_body(emulator: Emulator) -> None:
    """HEAD is answered as GET is."""
    answer = ask(emulator, "HEAD", "/envelopes")

    assert (answer.status, answer.body) == (200, b"")
