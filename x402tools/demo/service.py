"""The metered service: a plain WSGI application whose every request is billed to the customer who sent it.

Its processes write two files:

    access log    `begin` before `record_usage` is called, `done` when it has returned
    worker log    what each process does besides: `boot`, `delivered`, `dead`, `problem`

Why two lines a request. Only `done` is a promise: `record_usage` has returned, the bill has to show it. One line
*before* the call would accuse the buffer of losing what it was never given, when the process is killed in between;
one line *after* it would call the bill too high, when the process is killed between the return and the line. With both
the kill leaves `begin` without `done`, and it is known of exactly which requests nothing can be known: billing such a
request is right, and so is not billing it, because no answer to it ever left.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import zlib
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple

from x402tools import Usage, UsageBuffer, X402Client
from x402tools.demo.log_file import LogFile

LARGEST_BODY = 64 * 1024  # bytes


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode("ascii")


# What the service is for, by method and path. A request costs a unit for each byte it had worked on.
WORK: Dict[Tuple[str, str], Callable[[bytes], bytes]] = {
    ("POST", "/compress"): zlib.compress,
    ("POST", "/digest"): _digest,
}


class Settings(NamedTuple):
    """What a process of the service is told; travels as JSON."""

    spool: str
    access_log: str
    worker_log: str
    durability: str
    envelopes: Dict[str, str]  # the envelope of each customer

    def to_file(self, path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file)

    @classmethod
    def from_file(cls, path: str) -> Settings:
        with open(path, encoding="utf-8") as file:
            return cls(**json.load(file))


class Service:
    """The application.

    Args:
        client: what it reports usage to.
        access_log: what it writes each request to.
        envelopes: the envelope of each customer.
    """

    def __init__(self, client: X402Client, access_log: LogFile, envelopes: Dict[str, str]) -> None:
        self._client = client
        self._access_log = access_log
        self._envelopes = envelopes
        # Not the process id, which the system gives again: ids must tell apart the requests of all processes.
        self._ids = map("{}-{}".format, itertools.repeat(secrets.token_hex(6)), itertools.count(1))

    def __call__(self, environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        work = WORK.get((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        envelope_id = self._envelopes.get(environ.get("HTTP_X_CUSTOMER", ""))
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if work is None:
            return _answer(start_response, "404 Not Found", b"there is POST /compress and POST /digest\n")
        if envelope_id is None:
            return _answer(start_response, "403 Forbidden", b"X-Customer names no customer\n")
        if length > LARGEST_BODY:
            return _answer(start_response, "413 Content Too Large", b"at most 64 KiB\n")
        body = environ["wsgi.input"].read(length)
        result = work(body)
        self._bill(envelope_id, len(body), environ["REQUEST_METHOD"], environ["PATH_INFO"])
        return _answer(start_response, "200 OK", result)

    def _bill(self, envelope_id: str, amount: int, method: str, endpoint: str) -> None:
        request_id = next(self._ids)
        metadata = {"endpoint": endpoint, "method": method, "request_id": request_id}
        self._access_log.write("begin", request_id, envelope_id, amount)
        self._client.record_usage(envelope_id, amount, metadata)
        self._access_log.write("done", request_id)


def application_from(path: str) -> Service:
    """The application with the settings in that file, in the process that serves it.

    Where the usage goes, and with which key, it has from X402TOOLS_BASE_URL and X402TOOLS_API_KEY. Nothing closes the
    client: that happens when the process ends.
    """
    settings = Settings.from_file(path)
    worker_log = LogFile(settings.worker_log)
    buffer = UsageBuffer(
        settings.spool,
        durability=settings.durability,
        on_delivery=lambda _: worker_log.write("delivered"),
        on_dead_letter=lambda usage, reason: _note_death(worker_log, usage, reason),
        on_error=lambda message: worker_log.write("problem", message),
    )
    service = Service(X402Client(buffer=buffer), LogFile(settings.access_log), settings.envelopes)
    worker_log.write("boot")
    return service


def _note_death(worker_log: LogFile, usage: Usage, reason: str) -> None:
    worker_log.write("dead", usage.id, ascii(reason))


def _answer(start_response: Callable[..., Any], status: str, body: bytes) -> List[bytes]:
    start_response(status, [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
    return [body]
