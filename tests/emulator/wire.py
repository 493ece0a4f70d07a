"""A client that hides nothing: one request, and the status, the headers and the body as they came."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, Dict, NamedTuple, Optional
from urllib.parse import urlsplit

from x402tools.testing import Emulator

SECONDS = 10.0


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


def ask(
    emulator: Emulator,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: Optional[str] = None,
    api_key: Optional[str] = None,
    fault: Optional[str] = None,
) -> Answer:
    """Send one request on a connection of its own; bytes are sent as they are, anything else as JSON."""
    headers = {"Authorization": f"Bearer {api_key or emulator.api_key}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    if fault is not None:
        headers["X-Emulator-Fault"] = fault
    content = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
    connection = http.client.HTTPConnection(urlsplit(emulator.base_url).netloc, timeout=SECONDS)
    try:
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def record(emulator: Emulator, envelope_id: str, amount: Any = 1, **options: Any) -> Answer:
    """POST /usage."""
    return ask(emulator, "POST", "/usage", {"envelopeId": envelope_id, "amount": amount}, **options)


def dial(emulator: Emulator) -> socket.socket:
    """Open a bare connection."""
    address = urlsplit(emulator.base_url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=SECONDS)


def raw_post(emulator: Emulator, envelope_id: str, fault: str = "") -> bytes:
    """The bytes of a POST /usage of one unit."""
    body = json.dumps({"envelopeId": envelope_id, "amount": 1})
    lines = [
        "POST /usage HTTP/1.1",
        "Host: emulator",
        f"Authorization: Bearer {emulator.api_key}",
        f"Content-Length: {len(body)}",
        *([f"X-Emulator-Fault: {fault}"] if fault else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("ascii")
