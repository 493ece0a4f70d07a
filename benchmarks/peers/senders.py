"""Everything that sends one POST an event: clients of this and of the published release, HTTP libraries, a bare socket.

A sender is called as `send(number)` and returns when the answer is there; each thread has its own, except where one is
made to be shared. This file imports nothing at its top but the standard library: it also runs in the environment of the
published release.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import urllib.parse
from typing import Any, Callable, Dict

from benchmarks.peers import events

Send = Callable[[int], None]
_HEADERS = {"Authorization": "Bearer key", "Content-Type": "application/json"}


class Failed(Exception):
    """The answer was not 2xx."""


def published(url: str) -> Send:
    """`record_usage` of x402tools 1.0.0."""
    import x402tools

    if hasattr(x402tools, "UsageBuffer"):
        raise RuntimeError("this is not the published release 1.0.0")
    return _record_usage(x402tools.X402Client("key", url))


def synchronous(url: str) -> Send:
    """`record_usage` of this tree, without a buffer."""
    import x402tools

    return _record_usage(x402tools.X402Client("key", url))


def _record_usage(client: Any) -> Send:
    metadata = events.metadata()
    return lambda number: client.record_usage(events.ENVELOPE, 1, metadata[number % events.USERS]) and None


def session(url: str) -> Send:
    """`Session.post` of requests."""
    import requests

    made, bodies, target = requests.Session(), _bodies(), url + "/usage"
    made.headers.update(_HEADERS)

    def send(number: int) -> None:
        answer = made.post(target, data=bodies(number), timeout=30)
        _check(answer.status_code)
        answer.json()

    return send


def urllib3(url: str) -> Send:
    """A connection pool of urllib3."""
    import urllib3 as library

    parts = urllib.parse.urlsplit(url)
    pool = library.HTTPConnectionPool(str(parts.hostname), parts.port, maxsize=1)
    bodies, path = _bodies(), parts.path + "/usage"

    def send(number: int) -> None:
        answer = pool.urlopen("POST", path, body=bodies(number), headers=_HEADERS)
        _check(answer.status)
        json.loads(answer.data)

    return send


def http_client(url: str) -> Send:
    """http.client of the standard library."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    bodies, path = _bodies(), parts.path + "/usage"

    def send(number: int) -> None:
        connection.request("POST", path, bodies(number), _HEADERS)
        answer = connection.getresponse()
        data = answer.read()
        _check(answer.status)
        json.loads(data)

    return send


def curl(url: str) -> Send:
    """pycurl."""
    import pycurl

    made, bodies = pycurl.Curl(), _bodies()
    made.setopt(pycurl.URL, url + "/usage")
    made.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in _HEADERS.items()])
    made.setopt(pycurl.POST, 1)
    made.setopt(pycurl.NOSIGNAL, 1)

    def send(number: int) -> None:
        answer = io.BytesIO()
        made.setopt(pycurl.POSTFIELDS, bodies(number))
        made.setopt(pycurl.WRITEDATA, answer)
        made.perform()
        _check(made.getinfo(pycurl.RESPONSE_CODE))
        json.loads(answer.getvalue())

    return send


def raw_socket(url: str) -> Send:
    """A socket, ready bytes, and an answer of which only the status is looked at: the least there is in Python."""
    parts = urllib.parse.urlsplit(url)
    connection = socket.create_connection((str(parts.hostname), parts.port or 80))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = _bodies()(0)
    head = f"POST {parts.path}/usage HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    def send(number: int) -> None:
        del number
        connection.sendall(request)
        answer = connection.recv(65_536)
        if answer[9:10] != b"2":
            raise Failed(answer[:12])

    return send


def _bodies() -> Callable[[int], bytes]:
    metadata = events.metadata()
    return lambda number: json.dumps(
        {"envelopeId": events.ENVELOPE, "amount": 1, "metadata": metadata[number % events.USERS]}
    ).encode()


def _check(status: int) -> None:
    if not 200 <= status < 300:
        raise Failed(str(status))


SENDERS: Dict[str, Callable[[str], Send]] = {
    "published": published,
    "synchronous": synchronous,
    "session": session,
    "urllib3": urllib3,
    "http.client": http_client,
    "pycurl": curl,
    "socket": raw_socket,
}
SHARED = ("published", "synchronous")  # one client is made for all threads of a program
REQUIRES = {"published": "x402tools 1.0.0", "pycurl": "pycurl", "urllib3": "urllib3", "session": "requests"}
