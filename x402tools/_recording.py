"""`RecordingClient`: a client for unit tests, whose calls are answered in memory and kept in a list.

It is an `X402Client` with another transport, so every method, signature and check of an argument is the real one;
only what would go over the network is answered here.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timezone
from typing import Any, Dict, Generator, List, Optional, Tuple
from urllib.parse import unquote

from x402tools._http import Transport
from x402tools._reply import Reply, Timeouts
from x402tools.client import X402Client
from x402tools.models import Usage

# Reserved for tests: should anything ever be sent there, it does not arrive.
_BASE_URL = "https://recording.invalid"


class RecordingClient(X402Client):
    """A client without HTTP that keeps what was recorded, for unit tests of code that is handed a client.

    >>> client = RecordingClient()
    >>> usage = client.record_usage("env_1", 5, {"endpoint": "/api/users"})
    >>> [(usage.envelope_id, usage.amount) for usage in client.recorded]
    [('env_1', 5)]

    Envelopes and keys that it makes are listed, changed and deleted as usual. Usage of any envelope is taken, also of
    one that was never made, and no limit is enforced; what comes twice under one idempotency key is recorded once.
    For behaviour beyond that use `x402tools.testing.Emulator`, which is a server. Safe to use from several threads.
    """

    def __init__(self) -> None:
        super().__init__("recording", _BASE_URL, max_retries=0)
        self._memory = _Memory(self._transport)
        self._transport = self._memory

    @property
    def recorded(self) -> List[Usage]:
        """Everything recorded so far, in order; a new list each time."""
        return [Usage.from_dict(document) for document in list(self._memory.usage)]

    def fail_with(self, error: Exception, *, times: Optional[int] = 1) -> None:
        """Has the next so many calls raise this error, and record nothing; None for all calls until `clear`."""
        self._memory.failure = (error, times)

    def clear(self) -> None:
        """Forgets everything: usage, envelopes, keys, and an error that was to be raised."""
        self._memory.clear()

    def __repr__(self) -> str:
        return f"<RecordingClient recorded={len(self._memory.usage)}>"


class _Memory(Transport):
    """Answers as the service would, from dictionaries."""

    def __init__(self, instead_of: Transport) -> None:
        super().__init__(instead_of.base_url, instead_of.bearer, instead_of.session, Timeouts(1, 1, 1))
        self._lock = threading.Lock()  # guards everything below
        self.clear()

    def clear(self) -> None:
        self.usage: List[Dict[str, Any]] = []
        self.failure: Optional[Tuple[Exception, Optional[int]]] = None
        self._by_key: Dict[str, Dict[str, Any]] = {}
        self._made: Dict[str, Dict[str, Dict[str, Any]]] = {"envelopes": {}, "api-keys": {}}
        self._count = 0

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Optional[Dict[str, str]] = None,
        body: Optional[bytes] = None,
        headers: Optional[Dict[str, str]] = None,
        deadline: float,  # noqa: ARG002 - nothing here takes time
    ) -> Reply:
        document = json.loads(body) if body else {}
        key = (headers or {}).get("Idempotency-Key", "")
        with self._lock:
            self._fail_if_asked()
            status, answer = self._answer(method, unquote(path).strip("/").split("/", 1), document, query or {}, key)
        return Reply(status, {}, b"" if answer is None else json.dumps(answer).encode("utf-8"))

    def stream(
        self, path: str, *, query: Optional[Dict[str, str]] = None, deadline: float
    ) -> Tuple[Reply, Generator[bytes, None, None]]:
        reply = self.send("GET", path, query=query, deadline=deadline)
        return reply._replace(body=b""), (piece for piece in [reply.body])

    def post_usage(self, body: bytes, key: str) -> Reply:
        return self.send("POST", "/usage", body=body, headers={"Idempotency-Key": key}, deadline=time.monotonic())

    def _fail_if_asked(self) -> None:
        if self.failure is None:
            return
        error, times = self.failure
        left = None if times is None else times - 1
        self.failure = None if left == 0 else (error, left)
        raise error

    def _answer(
        self, method: str, parts: List[str], document: Dict[str, Any], query: Dict[str, str], key: str
    ) -> Tuple[int, Any]:
        """The status and the JSON of one request."""
        if parts[0] == "usage":
            return self._answer_usage(method, parts, document, query, key)
        made = self._made[parts[0]]
        if len(parts) == 1:
            if method == "GET":
                return 200, list(made.values())
            one = self._new_key(document) if parts[0] == "api-keys" else self._new_envelope(document)
            made[one["id"]] = one
            return 201, one
        if parts[1] not in made:
            return 404, {"error": "there is none with this id"}
        if method == "DELETE":
            del made[parts[1]]
            return 204, None
        if method == "PUT":
            made[parts[1]].update(document, updatedAt=_now())
        return 200, made[parts[1]]

    def _answer_usage(
        self, method: str, parts: List[str], document: Dict[str, Any], query: Dict[str, str], key: str
    ) -> Tuple[int, Any]:
        if method == "POST":
            if key not in self._by_key:
                one = {"metadata": None, **document, "id": self._new_id("usage"), "timestamp": _now()}
                self._by_key[key] = one
                self.usage.append(one)
            return 201, self._by_key[key]
        if len(parts) > 1:
            return 200, self._stats()
        wanted = query.get("envelopeId")
        return 200, [one for one in self.usage if wanted is None or one["envelopeId"] == wanted]

    def _stats(self) -> Dict[str, Any]:
        envelopes = self._made["envelopes"]
        used = {one["envelopeId"] for one in self.usage}
        return {
            "totalUsage": sum(one["amount"] for one in self.usage),
            "envelopeCount": len(envelopes),
            "activeEnvelopes": len(used.intersection(envelopes)),
            "periodUsage": [],
        }

    def _new_envelope(self, document: Dict[str, Any]) -> Dict[str, Any]:
        now = _now()
        common = {"organizationId": "org_recording", "createdAt": now, "updatedAt": now}
        return {"resetDay": None, **document, "id": self._new_id("env"), **common}

    def _new_key(self, document: Dict[str, Any]) -> Dict[str, Any]:
        key_id = self._new_id("key")
        return {**document, "id": key_id, "key": f"sk_{key_id}", "organizationId": "org_recording", "createdAt": _now()}

    def _new_id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count}"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
